"""Rule 4: foreign records in the changelog while this owner serves; and what may be removed (rules 7 and 8)."""

from __future__ import annotations

from typing import Any

import pytest

from flowpilot.core.state import decode_execution
from flowpilot.engine import changelog as changelogs
from flowpilot.engine.errors import EngineHalt
from flowpilot.engine.keys import input_key, state_key
from flowpilot.engine.owned import Watermark
from flowpilot.engine.table import WATERMARK_KEY, PartitionTable, entry_of, headers_of
from flowpilot.ports.log import Record
from flowpilot_schemas import messages as m
from flowpilot_schemas.definition import StepDefinition, WorkflowDefinition
from tests.unit.engine_world import BRIEF, CHAIN, DIAMOND, Owner, T, World, answer_all, completed, drain, starting


def on(topic: str) -> Any:
    return lambda record: record.topic == topic


def late(key: bytes, value: bytes | None, src: int, epoch: int = 0) -> Record:
    return Record(T.changelog, key, value, 0, headers_of(src, epoch))


def last(world: World, key: bytes) -> Any:
    return [record for record in world.log.records(T.changelog) if record.key == key][-1]


def serving(world: World) -> tuple[Owner, str]:
    """An owner at epoch 2 with one execution whose state has src 1."""
    world.owner().crash()
    owner = world.owner()
    world.raw(b"{}")
    execution = world.start(CHAIN, "1")
    drain(owner)
    return owner, execution


def look(world: World, owner: Owner) -> None:
    world.now += 3_000
    owner.tick().to_end()


@pytest.mark.parametrize("src", [0, 99])
def test_a_late_record_is_overwritten_whether_behind_or_ahead(src: int) -> None:
    """protocol.md b1 and c3."""
    world = World()
    owner, execution = serving(world)
    mine = owner.engine.table(0).get(state_key(execution))
    world.land(late(state_key(execution), b"foreign", src, 1))
    look(world, owner)
    assert last(world, state_key(execution)).value == mine
    assert entry_of(last(world, state_key(execution))).epoch == 2


def test_the_zombie_that_is_ahead_then_the_ghost_that_is_behind() -> None:
    """protocol.md c3, whole: without an answer to the first, compaction would leave the second."""
    world = World()
    owner, execution = serving(world)
    key = state_key(execution)
    mine = owner.engine.table(0).get(key)
    world.land(late(key, mine, 5, 1))
    look(world, owner)
    world.land(late(key, b"ghost", 0, 0))
    look(world, owner)
    world.log.compact(T.changelog)
    table = PartitionTable(0)
    for record in world.log.records(T.changelog):
        table.load(record)
    assert table.get(key) == mine


def test_a_late_record_of_a_key_without_state_becomes_a_tombstone() -> None:
    world = World()
    owner, _ = serving(world)
    world.land(late(b"00000000-0000-0000-0000-000000000000", b"old", 0, 1))
    look(world, owner)
    record = last(world, b"00000000-0000-0000-0000-000000000000")
    assert record.value is None
    assert (entry_of(record).src, entry_of(record).epoch) == (0, 2)


def test_a_late_record_ahead_of_everything_is_left_alone() -> None:
    world = World()
    owner, _ = serving(world)
    world.land(late(b"00000000-0000-0000-0000-000000000000", b"ahead", 70, 1))
    before = len(world.log.records(T.changelog))
    look(world, owner)
    assert len(world.log.records(T.changelog)) == before
    assert owner.engine.table(0).get(b"00000000-0000-0000-0000-000000000000") is None


def test_a_late_watermark_is_answered_with_the_owner_s_own() -> None:
    world = World()
    owner, _ = serving(world)
    world.land(late(WATERMARK_KEY, Watermark(offset=0, nonce="old").entry(1).value, 0, 1))
    look(world, owner)
    assert Watermark.of(last(world, WATERMARK_KEY).value).offset == 1


def test_a_late_record_between_the_owner_s_own_is_answered_with_the_batch_s_value() -> None:
    world = World()
    owner, execution = serving(world)
    world.event(completed(world.tasks()[0]), execution)
    call = owner.process(owner.fetch(9))
    call.before(lambda record: record.key == WATERMARK_KEY and b'"try"' not in (record.value or b""))
    world.land(late(state_key(execution), b"foreign", 1, 1))
    call.to_end()
    assert decode_execution(last(world, state_key(execution)).value).src == 2
    places = [record.topic for record in world.log.records(T.history)]
    assert places
    assert world.history(execution)[-2:] == ["StepCompleted", "StepReady"]


def test_a_newer_claim_ends_the_process_before_any_output_of_the_batch() -> None:
    world = World()
    owner, execution = serving(world)
    world.event(completed(world.tasks()[0]), execution)
    call = owner.process(owner.fetch(9))
    call.before(on(T.changelog), nth=2)
    told = len(world.log.records(T.history))
    heir = world.owner()
    with pytest.raises(EngineHalt):
        call.to_end()
    assert len(world.log.records(T.history)) == told
    assert owner.finished[0] == 2
    drain(heir)
    assert world.history(execution)[-2:] == ["StepCompleted", "StepReady"]


def test_an_idle_process_notices_a_newer_claim() -> None:
    world = World()
    owner, _ = serving(world)
    world.owner()
    world.now += 3_000
    with pytest.raises(EngineHalt):
        owner.tick().to_end()


def test_foreign_records_during_the_answer_are_answered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    owner, execution = serving(world)
    mine = owner.engine.table(0).get(state_key(execution))
    rest = [late(state_key(execution), b"foreign %d" % number, number, 1) for number in range(4)]
    world.land(rest.pop())
    answer = changelogs._answer

    def and_another(*given: Any) -> Any:
        found = answer(*given)
        if rest:
            world.land(rest.pop())
        return found

    monkeypatch.setattr(changelogs, "_answer", and_another)
    look(world, owner)
    assert rest == []
    assert last(world, state_key(execution)).value == mine


# -- timers ---------------------------------------------------------------------------------------------------


def test_a_timer_is_fired_again_until_the_state_no_longer_has_the_deadline() -> None:
    world = World()
    owner = Owner(world, skew=60_000)  # this machine's clock is a minute fast
    owner.take(0).to_end()
    execution = world.start(CHAIN, "1")
    drain(owner)
    world.event(m.StepStarted(task_id=world.tasks()[0]), execution)
    drain(owner)
    for fired, timed_out in ((1, 0), (1, 0), (1, 0), (2, 1)):  # armed again a second after it fired
        owner.tick().to_end()
        owner.tick().to_end()
        drain(owner)
        assert sum(value["type"] == "timer.fired" for value in world.values(T.events)) == fired
        assert world.history(execution).count("StepTimedOut") == timed_out
        world.now += 400


def test_an_early_timer_changes_nothing() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(CHAIN, "1")
    drain(owner)
    state = owner.engine.table(0).get(state_key(execution))
    world.event(m.TimerFired(execution=execution, run=0), execution)
    world.event(m.TimerFired(execution=execution, run=7), execution)
    drain(owner)
    assert owner.engine.table(0).get(state_key(execution)) == state
    assert world.dead_letters() == []


def test_two_owners_that_fire_the_same_timer_time_a_step_out_once() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(DIAMOND, "1")
    drain(owner)
    world.event(m.StepStarted(task_id=world.tasks()[0]), execution)
    drain(owner)
    heir = Owner(world)
    heir.take(0).to_end()
    world.now += 31_000
    for process in (owner, heir):
        process.tick().before(on(T.events))
        assert process.call is not None
        process.call.step()
    drain(heir)
    assert world.history(execution).count("StepTimedOut") == 1


# -- forgetting -----------------------------------------------------------------------------------------------


def forgotten(world: World, owner: Owner) -> str:
    """An execution whose Forget is in the log, not folded yet."""
    execution = world.start(BRIEF, "1")
    drain(owner)
    world.event(completed(world.tasks()[-1]), execution)
    drain(owner)
    world.now += 10_000
    world.event(m.Forget(before=world.now), execution, 0)
    return execution


def test_a_marker_stays_until_its_outbox_is_surely_sent() -> None:
    """protocol.md c7: the process ends between the marker's state and its outputs; then it is recovered."""
    world = World()
    owner = world.owner()
    execution = world.start(BRIEF, "1")
    world.event(completed(f"{execution}/0/only/1"), execution)
    world.now += 10_000
    world.event(m.Forget(before=world.now), execution, 0)
    owner.process(owner.fetch(9)).before(on(T.history))
    owner.crash()
    heir = world.owner()
    heir.tick().to_end()
    stored = heir.engine.table(0).get(state_key(execution))
    assert stored is not None
    assert decode_execution(stored).forgotten
    assert heir.engine.table(0).get(input_key(execution, 0)) is not None
    drain(heir)
    heir.tick().to_end()
    assert heir.engine.table(0).get(state_key(execution)) is None
    assert heir.engine.table(0).get(input_key(execution, 0)) is None
    assert world.history(execution)[-1] == "ExecutionCompleted"


def test_the_tombstone_carries_the_marker_s_src() -> None:
    world = World()
    owner = world.owner()
    execution = forgotten(world, owner)
    drain(owner)
    owner.tick().to_end()
    record = last(world, state_key(execution))
    assert record.value is None
    assert entry_of(record).src == 2


def test_a_start_right_after_the_forget_is_a_new_run_and_is_not_removed() -> None:
    world = World()
    owner = world.owner()
    execution = forgotten(world, owner)
    run = world.event(starting(BRIEF, "1"), execution)
    drain(owner)
    owner.tick().to_end()
    owner.tick().to_end()
    stored = owner.engine.table(0).get(state_key(execution))
    assert stored is not None
    assert (decode_execution(stored).run, decode_execution(stored).seq) == (run, 2)
    assert owner.engine.table(0).get(input_key(execution, run)) is not None
    assert owner.engine.table(0).get(input_key(execution, 0)) is None
    answered = {world.tasks()[0]}
    while drain(owner) or answer_all(world, answered):
        pass
    assert world.history(execution)[4:] == [
        *("ExecutionStarted", "StepReady", "StepCompleted", "ExecutionCompleted"),
    ]


def test_what_comes_after_the_forget_finds_no_execution() -> None:
    world = World()
    owner = world.owner()
    execution = forgotten(world, owner)
    world.event(completed(world.tasks()[0]), execution)
    world.event(m.TimerFired(execution=execution, run=0), execution)
    drain(owner)
    assert {reason for reason, _ in world.dead_letters()} == {"unknown_execution"}


# -- load -----------------------------------------------------------------------------------------------------


def test_nothing_grows_with_what_is_over() -> None:
    one = WorkflowDefinition(
        name="one", version="1", dedupe_window_ms=100, steps=(StepDefinition(name="only", queue="q"),)
    )
    world = World(definitions=[one])
    owner = world.owner()
    for number in range(1_500):
        world.start(one, str(number))
    drain(owner)
    answered: set[str] = set()
    for _ in range(8):
        answer_all(world, answered)
        drain(owner)
        world.now += 1_100
        owner.tick().to_end()
        drain(owner)
    owned = owner.engine._owned[0]
    assert len(owned.ended) == len(owned.markers) == len(owned.deadlines) == len(owned.forgets) == 0
    assert len(owned.deadlines._heap) <= 64
    assert len(owned.forgets._heap) <= 64
    assert len(owned.table) == 2  # the watermark and the definition
    world.log.compact(T.changelog, tombstones=True)
    assert len(world.log.records(T.changelog)) <= 2


def test_a_hole_in_which_nothing_is_found_any_more_is_a_doubt() -> None:
    """Compaction was there before this owner, which so stood still for longer than the lag. A claim may be gone."""
    world = World()
    owner, execution = serving(world)
    world.land(late(b"def/x", None, 0, 1))
    world.log.compact(T.changelog, tombstones=True)
    world.event(completed(world.tasks()[0]), execution)
    with pytest.raises(EngineHalt, match="compacted"):
        drain(owner)
    assert world.history(execution) == ["ExecutionStarted", "StepReady"]
