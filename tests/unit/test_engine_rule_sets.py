"""Raises of the permitted rule set, and starts judged by them (tests/model has every interleaving of it)."""

from __future__ import annotations

import pytest

from flowpilot.core.rule_sets import Raise, RuleSets
from flowpilot.core.state import decode_execution
from flowpilot.engine.fold import Fold
from flowpilot.engine.keys import RULES_KEY, state_key
from flowpilot.engine.table import headers_of
from flowpilot.engine.trial import CRASHES
from flowpilot.ports.log import Record
from flowpilot_schemas import messages as m
from tests.unit.bars_world import Killed, is_state_of, is_watermark, offsets_that_kill, one
from tests.unit.engine_world import BRIEF, CHAIN, Owner, T, World, answer_all, drain, quiet, starting
from tests.unit.retry_world import answers, ask, failed_at_b, finish

__all__ = ["offsets_that_kill", "quiet"]


def rules_of(owner: Owner, execution: str) -> int:
    value = owner.engine.table(0).get(state_key(execution))
    assert value is not None
    return decode_execution(value).rules


def held(owner: Owner) -> RuleSets:
    return RuleSets.decode(owner.engine.table(0).get(RULES_KEY))


# -- judging a start ----------------------------------------------------------------------------------------


def test_start_above_the_permitted_set_is_refused_and_recorded() -> None:
    world = World()
    refused = world.start(CHAIN, "above", rules=2)
    running = world.start(CHAIN, "next")
    owner = world.owner()
    drain(owner)
    assert owner.engine.stopped == {}
    assert world.history(refused) == ["StartRefused"]
    [told] = [value for value in world.values(T.history) if value["execution"] == refused]
    assert told["reason"] == "rules_not_permitted"
    assert "it asks for rule set 2, and 1 is the highest" in told["detail"]
    assert "flowpilot setup" in told["detail"]
    assert world.history(running) == ["ExecutionStarted", "StepReady"]
    assert world.dead_letters() == []


@pytest.mark.parametrize("rules", [2, 3, 10**6, 2**62])
def test_no_number_in_a_start_stops_a_partition(rules: int) -> None:
    world = World()
    world.start(CHAIN, "above", rules=rules)
    running = world.start(CHAIN, "next")
    owner = world.owner()
    assert drain(owner) == 2
    assert owner.engine.stopped == {}
    assert world.history(running) == ["ExecutionStarted", "StepReady"]


def test_refused_start_gives_way_once_its_set_is_permitted() -> None:
    world = World()
    execution = world.start(CHAIN, "k", rules=2)
    world.raise_to(2)
    world.start(CHAIN, "k", rules=2)
    owner = world.owner(rules=2)
    drain(owner)
    assert world.history(execution) == ["StartRefused", "ExecutionStarted", "StepReady"]
    assert rules_of(owner, execution) == 2


def test_start_without_rules_takes_the_permitted_set() -> None:
    world = World()
    before, pinned = world.start(CHAIN, "before"), world.start(CHAIN, "pinned")
    world.raise_to(2)
    after, first = world.start(CHAIN, "after"), world.start(CHAIN, "first", rules=1)
    owner = world.owner(rules=3)
    drain(owner)
    assert [rules_of(owner, execution) for execution in (before, pinned, after, first)] == [1, 1, 2, 1]


def test_an_execution_keeps_its_rule_set_over_a_raise() -> None:
    world = World()
    execution = world.start(CHAIN, "k")
    owner = world.owner(rules=2)
    drain(owner)
    world.raise_to(2)
    answer_all(world, set())
    drain(owner)
    assert rules_of(owner, execution) == 1


def test_duplicate_start_is_judged_by_the_run_that_holds_the_id() -> None:
    world = World()
    execution = world.start(CHAIN, "k")
    world.start(CHAIN, "k", rules=2)
    drain(world.owner())
    assert world.history(execution) == ["ExecutionStarted", "StepReady", "StartDeduplicated"]


# -- requests for retries -----------------------------------------------------------------------------------


def test_retry_above_the_permitted_set_is_refused_with_a_sentence() -> None:
    world = World()
    owner = world.owner()
    execution = failed_at_b(world, owner)
    ask(world, execution, rules=2, reply=m.ReplyTo(topic=T.replies, partition=0))
    drain(owner)
    assert owner.engine.stopped == {}
    assert world.history(execution)[-1] == "RetryRefused"
    [answer] = answers(world)
    assert answer["refused"] == "rules_not_permitted"
    assert "it asks for rule set 2" in answer["detail"]
    ask(world, execution, "r2")
    drain(owner)
    assert world.history(f"{execution}.1")[0] == "ExecutionStarted"


def test_retry_runs_by_the_set_permitted_where_it_starts() -> None:
    world = World()
    owner = world.owner(rules=2)
    execution = failed_at_b(world, owner)
    world.raise_to(2)
    ask(world, execution)
    drain(owner)
    assert rules_of(owner, f"{execution}.1") == 2
    finish(world, owner, f"{execution}.1")


def test_retry_anew_above_the_permitted_set_leaves_nothing() -> None:
    world = World()
    owner = world.owner()
    unknown = starting(CHAIN, "never").execution
    anew = {"workflow": CHAIN.name, "version": CHAIN.version, "definition": CHAIN.hash}
    ask(world, unknown, rules=2, from_start=True, input=m.GivenInput(value={"n": 1}), **anew)
    drain(owner)
    assert world.history(unknown) == ["RetryRefused"]
    assert world.history(f"{unknown}.1") == []


# -- raising ------------------------------------------------------------------------------------------------


def test_raises_are_kept_as_entries_with_their_offsets() -> None:
    world = World()
    world.start(BRIEF, "a")
    offsets = [world.raise_to(2), world.raise_to(2), world.raise_to(3), world.raise_to(2), world.raise_to(1)]
    owner = world.owner(rules=3)
    drain(owner)
    assert held(owner).raises == (Raise(offsets[0], 2), Raise(offsets[2], 3))
    assert world.dead_letters() == []


def test_raise_that_skips_a_set_is_a_dead_letter() -> None:
    world = World()
    skipped = [world.raise_to(3), world.raise_to(10**6), world.raise_to(2**31 - 1)]
    running = world.start(CHAIN, "k")
    owner = world.owner()
    drain(owner)
    assert owner.engine.stopped == {}
    assert world.dead_letters() == [("rules_skipped", offset) for offset in skipped]
    assert world.history(running) == ["ExecutionStarted", "StepReady"]


def test_dead_letter_of_a_skip_is_the_same_on_a_replay() -> None:
    """It is judged by the raises below it, also when what was skipped has been permitted since."""
    world = World()
    world.raise_to(3), world.raise_to(2), world.raise_to(3)
    drain(world.owner(rules=3))
    letters = world.values(T.dead_letters)
    world.committed.clear()
    owner = world.owner(rules=3)
    drain(owner)
    assert world.values(T.dead_letters) == [*letters, *letters]
    assert held(owner).highest == 3


def test_each_partition_permits_by_its_own_raises() -> None:
    world = World(2)
    world.raise_to(2, partition=1)
    keys = [next(str(k) for k in range(99) if world.home(starting(CHAIN, str(k)).execution) == p) for p in (0, 1)]
    refused, running = [world.start(CHAIN, key, rules=2) for key in keys]
    drain(world.owner(0, 1, rules=2))
    assert world.history(refused) == ["StartRefused"]
    assert world.history(running)[0] == "ExecutionStarted"


# -- replays ------------------------------------------------------------------------------------------------


def test_replayed_start_is_judged_by_the_raise_below_it() -> None:
    """Raise and start are of one batch: the raise lands, the state does not."""
    world = World()
    before = world.start(CHAIN, "before", rules=2)
    bare = world.start(CHAIN, "bare")
    world.raise_to(2)
    after = world.start(CHAIN, "after", rules=2)
    world.raise_to(3)
    owner = world.owner(rules=3)
    owner.process(owner.fetch(9)).before(is_state_of(before))
    assert any(record.key == RULES_KEY for record in world.log.records(T.changelog))
    owner.crash()
    heir = world.owner(rules=3)
    drain(heir)
    assert world.history(before) == ["StartRefused"]
    assert world.history(after)[0] == "ExecutionStarted"
    assert (rules_of(heir, bare), rules_of(heir, after)) == (1, 2)


def test_raises_survive_compaction() -> None:
    world = World()
    world.raise_to(2)
    drain(world.owner(rules=3))
    world.raise_to(3)
    drain(world.owner(rules=3))
    world.log.compact(T.changelog, tombstones=True)
    assert len([record for record in world.log.records(T.changelog) if record.key == RULES_KEY]) == 1
    execution = world.start(CHAIN, "k", rules=3)
    owner = world.owner(rules=3)
    drain(owner)
    assert held(owner).highest == 3
    assert world.history(execution)[0] == "ExecutionStarted"


def test_late_raise_of_an_earlier_owner_is_written_over() -> None:
    world = World()
    world.raise_to(2), world.raise_to(3)
    zombie = world.owner(rules=3)
    zombie.process(zombie.fetch(1)).before(lambda record: record.key == RULES_KEY)
    heir = world.owner(rules=3)
    drain(heir)
    zombie.crash(ghosts=True)
    world.land_ghosts()
    world.now += 4_000
    heir.tick().to_end()
    world.log.compact(T.changelog, tombstones=False)
    assert held(world.owner(rules=3)).raises == (Raise(0, 2), Raise(1, 3))


def test_rules_land_before_the_states_of_their_batch() -> None:
    world = World()
    execution = world.start(CHAIN, "k")
    world.raise_to(2)
    drain(world.owner(rules=2))
    keys = [record.key for record in world.log.records(T.changelog)]
    assert keys.index(RULES_KEY) < keys.index(state_key(execution))


def test_raise_whose_fold_fails_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.raise_to(2)
    execution = world.start(CHAIN, "k", rules=2)
    whole = Fold._record

    def record(self: Fold, record: object) -> None:
        whole(self, record)  # type: ignore[arg-type]
        if record.offset == 0:  # type: ignore[attr-defined]
            raise ValueError("a defect")

    monkeypatch.setattr(Fold, "_record", record)
    owner = world.owner(rules=2)
    drain(owner)
    assert held(owner).highest == 1
    assert world.dead_letters() == [("engine_fault", 0)]
    assert world.history(execution) == ["StartRefused"]


# -- an engine that does not have a permitted set -----------------------------------------------------------


def test_unknown_permitted_set_stops_the_partition_until_an_upgrade() -> None:
    world = World()
    before = world.start(CHAIN, "before")
    offset = world.raise_to(2)
    after = world.start(CHAIN, "after")
    old = world.owner(rules=1)
    drain(old)
    [sentence] = old.engine.stopped.values()
    assert sentence == (
        f"partition 0 permits rule set 2 from offset {offset} on; "
        "this release has rule sets up to 1: upgrade the engine"
    )
    assert world.history(before)[0] == "ExecutionStarted"
    assert world.history(after) == []
    old.crash()
    drain(world.owner(rules=2))
    assert world.history(after)[0] == "ExecutionStarted"


def test_recovery_of_an_unknown_permitted_set_stops_at_the_claim() -> None:
    world = World()
    world.raise_to(2)
    drain(world.owner(rules=2))
    execution = world.start(CHAIN, "k")
    changelog = world.log.records(T.changelog)
    old = world.owner(rules=1)
    assert "permits rule set 2 from offset 0 on" in old.engine.stopped[0]
    assert drain(old) == 0
    assert world.log.records(T.changelog) == changelog
    assert world.history(execution) == []


def test_unknown_set_that_lands_during_the_claim_stops_it() -> None:
    """An earlier owner of a later release was still writing: its raise lies between the end read and the claim."""
    world = World()
    world.raise_to(2)
    newer = world.owner(rules=2)
    newer.process(newer.fetch(9)).before(lambda record: record.key == RULES_KEY)
    old = Owner(world, rules=1)
    old.take(0).before(is_watermark)
    newer.crash(ghosts=True)
    world.land_ghosts()
    assert old.call is not None
    old.call.to_end()
    assert "permits rule set 2" in old.engine.stopped[0]


def test_other_partitions_go_on_beside_an_unknown_set() -> None:
    world = World(2)
    world.raise_to(2)
    other = next(str(k) for k in range(99) if world.home(starting(CHAIN, str(k)).execution) == 1)
    running = world.start(CHAIN, other)
    old = world.owner(0, 1, rules=1)
    drain(old)
    assert old.engine.stopped.keys() == {0}
    assert world.history(running)[0] == "ExecutionStarted"


@pytest.mark.parametrize(
    "value", [b"{", b"[]", b'{"src":1}', b'{"src":1,"raises":[[0,3]]}', b'{"src":1,"raises":[[0,"2"]]}']
)
def test_rule_sets_that_cannot_be_read_stop_the_partition(value: bytes) -> None:
    world = World()
    world.land(Record(T.changelog, RULES_KEY, value, 0, headers_of(1, 1)))
    owner = world.owner()
    assert "holds under b'rules' what no engine wrote" in owner.engine.stopped[0]


# -- raises that end processes ------------------------------------------------------------------------------


def test_raise_is_folded_however_often_processes_end_over_it(kills: set[int]) -> None:
    """Starts of other executions are judged by it: it is passed over only if reading it ends processes."""
    world = World()
    world.raise_to(2)
    kills.add(0)
    for _ in range(CRASHES + 1):
        owner = world.owner(rules=2)
        with pytest.raises(Killed):
            one(owner)
        owner.crash()
    kills.clear()
    owner = world.owner(rules=2)
    drain(owner)
    assert held(owner).highest == 2
    assert world.dead_letters() == []


def test_raise_passed_over_unread_bars_what_lands_late(kills: set[int]) -> None:
    world = World()
    world.raise_to(2)
    zombie = world.owner(rules=2)
    zombie.process(zombie.fetch(1)).before(lambda record: record.key == RULES_KEY)
    kills.add(0)
    for _ in range(2 * CRASHES - 1):
        owner = world.owner(rules=2)
        with pytest.raises(Killed):
            one(owner)
        owner.crash()
    drain(world.owner(rules=2))
    zombie.crash(ghosts=True)
    world.land_ghosts()
    owner = world.owner(rules=2)
    assert held(owner).highest == 1
    execution = world.start(CHAIN, "k", rules=2)
    drain(owner)
    assert world.history(execution) == ["StartRefused"]
    world.raise_to(2)
    drain(owner)
    assert held(owner).highest == 2


def test_raise_that_landed_stays_when_an_earlier_one_is_left_unread(kills: set[int]) -> None:
    world = World()
    world.raise_to(2)
    world.raise_to(3)
    owner = world.owner(rules=3)
    owner.process(owner.fetch(2)).before(is_watermark, 2)  # both raises are in, their batch is not
    owner.crash()
    kills.add(0)
    for _ in range(2 * CRASHES - 1):
        owner = world.owner(rules=3)
        with pytest.raises(Killed):
            one(owner)
        owner.crash()
    owner = world.owner(rules=3)
    drain(owner)
    assert held(owner).raises == (Raise(0, 2), Raise(1, 3))
