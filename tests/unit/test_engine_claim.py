"""Rule 1: taking a partition over."""

from __future__ import annotations

from typing import Any

import pytest

from flowpilot.core.state import decode_execution
from flowpilot.engine.errors import EngineHalt
from flowpilot.engine.keys import definition_key, state_key
from flowpilot.engine.owned import Watermark
from flowpilot.engine.table import HEADER_SRC, WATERMARK_KEY, entry_of, headers_of
from flowpilot.ports.log import Record
from flowpilot_schemas import messages as m
from flowpilot_schemas.ids import keyed_execution_id
from flowpilot_schemas.topics import HOUR
from tests.unit.engine_world import BRIEF, CHAIN, Owner, T, World, completed, drain


def on(topic: str) -> Any:
    return lambda record: record.topic == topic


def changelog(key: bytes, value: bytes | None, src: int, epoch: int, partition: int = 0) -> Record:
    return Record(T.changelog, key, value, partition, headers_of(src, epoch))


def epochs(world: World) -> list[int]:
    return [entry_of(record).epoch for record in world.log.records(T.changelog)]


def test_each_claim_is_one_above_the_highest_that_was_seen() -> None:
    world = World()
    for expected in (1, 2, 3):
        owner = world.owner()
        assert entry_of(world.log.records(T.changelog)[-1]).epoch == expected
        owner.crash()
    world.land(changelog(b"def/some", b"{}", 0, 41))
    world.owner()
    assert 42 in epochs(world)


def test_of_two_claims_at_the_same_epoch_one_ends_before_it_sends_anything() -> None:
    world = World()
    execution = world.start(CHAIN, "1")
    first, second = Owner(world), Owner(world)
    calls = [first.take(0), second.take(0)]
    for call in calls:
        call.before(on(T.changelog))  # both have read the same end
    for call in calls:
        call.to_end()
    claims = [entry_of(r).epoch for r in world.log.records(T.changelog)]
    assert claims == [1, 1, 2]
    drain(second)
    first.positions[0] = 0
    with pytest.raises(EngineHalt, match="newer owner"):
        drain(first)
    assert world.history(execution) == ["ExecutionStarted", "StepReady"]
    assert len(world.log.records(T.history)) == 2


def test_the_same_epoch_with_another_nonce_ends_the_process() -> None:
    world = World()
    owner = world.owner()
    world.start(CHAIN, "1")
    world.land(changelog(WATERMARK_KEY, Watermark(nonce="another").entry(1).value, -1, 1))
    with pytest.raises(EngineHalt):
        drain(owner)
    assert not world.log.records(T.history)


def test_an_owner_that_went_on_during_the_claim_is_no_truncated_log() -> None:
    """What the claim's gap holds may be newer than the end of the log that was read before it."""
    world = World()
    slow = world.owner()
    heir = Owner(world)
    claim = heir.take(0)
    claim.before(on(T.changelog))
    execution = world.start(CHAIN, "1")
    slow.process(slow.fetch(9)).to_end()
    claim.to_end()
    assert heir.engine.stopped == {}
    drain(heir)
    assert world.history(execution) == ["ExecutionStarted", "StepReady"]


def test_the_highest_src_then_the_highest_epoch_wins_and_is_written_again() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(CHAIN, "1")
    drain(owner)
    mine = world.log.records(T.changelog)
    state = next(record for record in mine if record.key == state_key(execution))
    owner.crash()
    world.land(changelog(state_key(execution), b"an older one", -1, 0))
    heir = world.owner()
    last = [record for record in world.log.records(T.changelog) if record.key == state_key(execution)][-1]
    assert last.value == state.value
    assert entry_of(last).epoch == 2
    world.log.compact(T.changelog)
    heir.crash()
    third = world.owner()
    assert third.engine.table(0).get(state_key(execution)) == state.value


def test_a_late_tombstone_of_an_older_claim_does_not_outrank_a_later_state() -> None:
    """protocol.md c4: (src, epoch), not (epoch, src)."""
    world = World()
    owner = world.owner()
    execution = world.start(CHAIN, "1")
    drain(owner)
    state = owner.engine.table(0).entry(state_key(execution))
    assert state is not None
    owner.crash()
    world.land(changelog(state_key(execution), None, state.src - 1, state.epoch + 1))
    heir = world.owner()
    assert heir.engine.table(0).get(state_key(execution)) == state.value


def test_a_removed_key_stays_removed_when_its_last_value_lands_late() -> None:
    """A partition that is claimed again without being given up has forgotten its tombstones."""
    world = World()
    owner = world.owner()
    execution = world.start(BRIEF, "1")
    drain(owner)
    late = [record for record in world.log.records(T.changelog) if record.key == state_key(execution)][-1]
    world.event(completed(world.tasks()[0]), execution)
    drain(owner)
    world.now += 5_000
    owner.tick().to_end()
    drain(owner)
    owner.tick().to_end()
    assert owner.engine.table(0).get(state_key(execution)) is None
    world.land(changelog(late.key or b"", late.value, entry_of(late).src, 0))
    owner.take(0).to_end()
    assert owner.engine.table(0).get(state_key(execution)) is None
    assert [record.value for record in world.log.records(T.changelog) if record.key == late.key][-1] is None


def test_a_key_of_a_newer_owner_comes_back_to_one_that_was_away() -> None:
    world = World()
    owner = world.owner()
    heir = world.owner()
    execution = world.start(CHAIN, "1")
    drain(heir)
    heir.crash()
    owner.take(0).to_end()
    assert owner.engine.table(0).get(state_key(execution)) is not None


def test_reading_starts_at_what_is_committed_even_where_more_is_folded() -> None:
    world = World()
    owner = world.owner()
    for number in range(4):
        world.start(CHAIN, str(number))
    owner.process(owner.fetch(2)).to_end()
    owner.commit(0)
    owner.process(owner.fetch(2)).to_end()
    owner.crash()
    assert world.owner().positions == {0: 2}


def test_without_a_commit_everything_there_is_is_read_again() -> None:
    world = World()
    owner = world.owner()
    for number in range(4):
        world.start(CHAIN, str(number))
    owner.process(owner.fetch(9)).to_end()
    owner.crash()
    world.log.delete_before(T.events, 0, 1)
    assert world.owner().positions == {0: 1}


def test_a_state_behind_the_commit_is_made_good_by_reading_back() -> None:
    world = World()
    execution = world.start(CHAIN, "1")
    world.committed[0] = 1
    owner = world.owner()
    assert owner.positions == {0: 0}
    drain(owner)
    assert world.history(execution) == ["ExecutionStarted", "StepReady"]


# -- a log that is not the one that was folded: the partition stops, the others go on ---------------------------


def folded(world: World) -> None:
    owner = world.owner(0, 1)
    for number in range(12):
        world.start(CHAIN, str(number))
    drain(owner)
    owner.crash()


def others_go_on(world: World, heir: Owner, sentence: str) -> None:
    assert heir.engine.stopped.keys() == {0}
    assert sentence in heir.engine.stopped[0]
    assert heir.engine.stopped[0].count("\n") == 0
    before = len(world.log.records(T.history))
    for number in range(100, 110):
        world.start(CHAIN, str(number))
    drain(heir)
    fresh = world.log.records(T.history)
    assert len(fresh) > before
    assert not heir.finished.get(0)


def test_an_events_topic_that_was_made_anew_stops_the_partition() -> None:
    world = World(2)
    folded(world)
    table_of_another = Watermark(offset=99, nonce="x", topic_id="another").entry(9)
    world.land(changelog(WATERMARK_KEY, table_of_another.value, 99, 9))
    others_go_on(world, world.owner(0, 1), "belongs to another topic")


def test_a_log_that_ends_before_what_is_folded_stops_the_partition() -> None:
    world = World(2)
    folded(world)
    ahead = Watermark(offset=99, nonce="x", topic_id=world.log.topic_id(T.events)).entry(9)
    world.land(changelog(WATERMARK_KEY, ahead.value, 99, 9))
    others_go_on(world, world.owner(0, 1), "truncated")


def test_retention_beyond_what_is_folded_stops_the_partition() -> None:
    world = World(2)
    folded(world)
    for number in range(20, 40):
        world.start(CHAIN, str(number))
    _, end = world.log.bounds(T.events, 0)
    world.log.delete_before(T.events, 0, end)
    others_go_on(world, world.owner(0, 1), "retention")


def test_late_records_after_a_long_stand_still_stop_the_partition() -> None:
    """protocol.md c1: what compaction did meanwhile cannot be known."""
    world = World(2)
    folded(world)
    key = next(r.key for r in world.log.records(T.changelog) if r.partition == 0 and r.key != WATERMARK_KEY)
    world.now += 2 * HOUR
    world.land(changelog(key or b"", b"{}", -1, 0))
    others_go_on(world, world.owner(0, 1), "rebuild")


def test_an_unknown_permitted_set_stops_the_partition_at_its_raise() -> None:
    world = World(2)
    owner = world.owner(0, 1)
    mine = next(key for key in map(str, range(40)) if world.home(starting_id(key)) == 0)
    before = world.start(CHAIN, mine)
    world.raise_to(m.RULES + 1)
    world.start(CHAIN, "later")
    batch = owner.fetch(9)
    done = owner.process(batch).to_end()
    assert [record.offset for record in done if record.partition == 0] == [0]
    assert world.history(before) == ["ExecutionStarted", "StepReady"]
    assert "upgrade the engine" in owner.engine.stopped[0]
    assert owner.finished[0] == 1
    other = next(key for key in map(str, range(40, 90)) if world.home(starting_id(key)) == 1)
    running = world.start(CHAIN, other)
    drain(owner)
    assert world.history(running) == ["ExecutionStarted", "StepReady"]


def starting_id(key: str) -> str:
    return keyed_execution_id(CHAIN.name, key)


def test_deadlines_are_known_again_after_recovery() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(CHAIN, "1")
    drain(owner)
    world.event(m.StepStarted(task_id=world.tasks()[0]), execution)
    drain(owner)
    owner.crash()
    heir = world.owner()
    world.now += 1_001
    heir.tick().to_end()
    drain(heir)
    assert "StepTimedOut" in world.history(execution)


def test_a_changelog_whose_last_records_are_gone_can_be_claimed() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(CHAIN, "1")
    drain(owner)
    owner.crash()
    world.land(changelog(b"gone", None, 0, 1))
    world.log.compact(T.changelog, tombstones=True)
    heir = world.owner()
    state = heir.engine.table(0).get(state_key(execution))
    assert state is not None
    assert decode_execution(state).id == execution


def test_a_changelog_that_lost_its_end_is_a_doubt() -> None:
    """Acknowledged records that are gone again: offsets go back, and nothing is sure any more."""
    world = World()
    owner = world.owner()
    world.start(CHAIN, "1")
    owner.engine.table(0).next_changelog_offset += 3  # as if three more had been acknowledged
    with pytest.raises(EngineHalt):
        drain(owner)
    assert not world.log.records(T.history)


def test_a_changelog_that_cannot_take_a_record_is_a_doubt() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(CHAIN, "1")
    world.log.delete_topic(T.changelog)
    with pytest.raises(EngineHalt, match="refused"):
        drain(owner)
    assert world.history(execution) == []
    assert world.committed == {}


def test_an_owner_that_is_merely_idle_is_at_work() -> None:
    """Rule 8 asks how long no engine ran, not how long nothing was written."""
    world = World()
    owner = world.owner()
    execution = world.start(CHAIN, "1")
    drain(owner)
    for _ in range(30):
        world.now += HOUR // 10
        owner.tick().to_end()
    world.land(changelog(state_key(execution), b"late", -1, 0))
    owner.take(0).to_end()
    assert owner.engine.stopped == {}


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        (b"0ee6144c-a1a4-53ce-9f92-7f04c7a7a0bc", b"not json", "0ee6144c"),
        (b"0ee6144c-a1a4-53ce-9f92-7f04c7a7a0bc", b'{"id":"x"}', "0ee6144c"),
        (b"a/b", b"{}", "a/b"),
        (WATERMARK_KEY, b"{}", "wm"),
        (WATERMARK_KEY, b'{"w":"1","n":"","t":""}', "wm"),
        (WATERMARK_KEY, b'{"w":-1,"n":"","t":"","try":[7]}', "wm"),
    ],
)
def test_what_no_engine_wrote_stops_its_partition_and_no_other(key: bytes, value: bytes, named: str) -> None:
    world = World(2)
    world.land(changelog(key, value, -1, 7))
    owner = world.owner(0, 1)
    assert set(owner.engine.live()) == {1}
    assert named in owner.engine.stopped[0]
    assert "restore" in owner.engine.stopped[0]


def test_a_changelog_record_with_broken_headers_is_nobodys() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(CHAIN, "1")
    drain(owner)
    owner.crash()
    for broken in (b"", b"x", b"9" * 5_000):
        world.land(Record(T.changelog, state_key(execution), b"foreign", 0, ((HEADER_SRC, broken),)))
    world.owner()
    winner = world.log.records(T.changelog)[-1]
    assert (winner.key, decode_execution(winner.value or b"").id) == (state_key(execution), execution)


def test_a_definition_that_no_engine_wrote_stops_its_partition_when_it_is_needed() -> None:
    """Not its executions one by one, each record after three crashes."""
    world = World()
    execution = world.start(CHAIN, "k")
    drain(world.owner())
    world.land(changelog(definition_key(CHAIN.hash), b"{", 99, 99))
    world.event(completed(world.tasks()[0]), execution)
    owner = world.owner()
    drain(owner)
    assert "restore" in owner.engine.stopped[0]
    assert world.dead_letters() == []
    assert world.committed == {0: 1}
