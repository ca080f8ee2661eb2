"""A record that ends the process every time is given up after three crashes; its neighbours are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flowpilot.core.state import decode_execution
from flowpilot.engine import fold as folds
from flowpilot.engine import reading, trial
from flowpilot.engine.errors import DefinitionsUnread
from flowpilot.engine.owned import Watermark
from flowpilot.engine.table import WATERMARK_KEY
from flowpilot.ports.log import Fetched, LogUnavailable, Record
from flowpilot_schemas import messages as m
from tests.unit.bars_world import Killed, offsets_that_kill, one, standing_still, wake  # noqa: F401
from tests.unit.engine_world import BRIEF, CHAIN, Owner, T, World, answer_all, drain, quiet  # noqa: F401


def crashes_until_done(world: World, most: int, work: Callable[[Owner], object] = drain) -> int:
    """Start processes one after another until one lives through it."""
    for crash in range(most):
        owner = world.owner()
        try:
            work(owner)
        except Killed:
            owner.crash()
        else:
            return crash
    raise AssertionError(f"still dying after {most} processes")


@pytest.mark.parametrize("place", [0, 1, 3, 7])
@pytest.mark.parametrize("most", [1, 4, 500])
def test_it_becomes_a_dead_letter_wherever_in_its_batch_it_lies(kills: set[int], place: int, most: int) -> None:
    world = World()
    executions = [world.start(BRIEF, str(number)) for number in range(8)]
    kills.add(place)
    assert crashes_until_done(world, 9, lambda owner: drain(owner, most)) <= 4
    assert set(world.dead_letters()) == {("engine_crash", place)}
    for number, execution in enumerate(executions):
        assert world.history(execution) == ([] if number == place else ["ExecutionStarted", "StepReady"])


def test_what_is_in_the_state_already_is_not_given_up() -> None:
    """Three processes ended right after its state had landed: its fold ends nobody, and its outputs are owed."""
    world = World()
    execution = world.start(BRIEF, "k")
    for _ in range(trial.CRASHES):
        owner = world.owner()
        call = owner.process(owner.fetch(10))
        call.before(lambda record: record.key == WATERMARK_KEY and Watermark.of(record.value).offset == 0)
        owner.crash()
    drain(world.owner())
    assert world.history(execution) == ["ExecutionStarted", "StepReady"]
    assert len(world.tasks()) == 1
    assert world.dead_letters() == []


@pytest.mark.parametrize("begins", [True, False])
def test_a_late_owner_does_not_bring_back_what_was_given_up(kills: set[int], begins: bool) -> None:
    """One that had folded the record stands still; others give the record up; then what the first had on its way
    lands. Nobody would ever tell what it had decided."""
    world = World()
    execution = world.start(CHAIN, "k")
    if not begins:
        drain(world.owner())
        answer_all(world, set())
    zombie = world.owner()
    zombie.process(zombie.fetch(9)).before(lambda record: record.key == execution.encode())
    kills.add(0 if begins else 1)
    crashes_until_done(world, 9)
    zombie.crash(ghosts=True)
    world.land_ghosts()
    owner = world.owner()
    drain(owner)
    stored = owner.engine.table(0).get(execution.encode())
    if begins:
        assert stored is None
    else:
        assert stored is not None
        assert decode_execution(stored).steps[0].status == "ready"
    assert "StepCompleted" not in world.history(execution)


@pytest.mark.parametrize("begins", [True, False])
def test_a_late_owner_that_was_further_does_not_bring_it_back_either(kills: set[int], begins: bool) -> None:
    """As before, but what lands late has folded later records of the execution as well, and so is ahead of whoever
    gave the record up. It would win, with decisions that nobody has told, or pass later records off as folded."""
    world, execution, zombie, given_up = standing_still(begins=begins)
    kills.add(given_up)
    crashes_until_done(world, 9, one)
    assert world.dead_letters() == [("engine_crash", given_up)]
    world.lawful[0].crash()
    wake(zombie)
    drain(world.owner())
    told = world.history(execution)
    if begins:
        assert told == ["ExecutionStarted", "StepReady"]
    else:
        assert ("StepCompleted" in told, "ExecutionCancelled" in told) == (False, True)


def test_several_of_them_in_one_batch(kills: set[int]) -> None:
    world = World()
    executions = [world.start(BRIEF, str(number)) for number in range(8)]
    kills |= {2, 5}
    crashes_until_done(world, 12)
    assert set(world.dead_letters()) == {("engine_crash", 2), ("engine_crash", 5)}
    assert sum(bool(world.history(execution)) for execution in executions) == 6


def test_it_stays_given_up_when_the_commit_is_lost(kills: set[int]) -> None:
    world = World()
    for number in range(4):
        world.start(BRIEF, str(number))
    kills.add(1)
    crashes_until_done(world, 9)
    world.committed.clear()
    world.lawful[0].crash()
    assert crashes_until_done(world, 9) == 0


def test_a_process_that_is_killed_once_makes_no_record_a_suspect() -> None:
    """`kill -9` in the first batch: afterwards that batch is taken one by one, then batches go on."""
    world = World()
    for number in range(6):
        world.start(BRIEF, str(number))
    owner = world.owner()
    owner.process(owner.fetch(3)).before(lambda record: record.topic == T.history)
    owner.crash()
    heir = world.owner()
    drain(heir, 3)
    assert world.dead_letters() == []
    assert heir.engine._owned[0].watermark.offset == 5
    before = len(world.log.records(T.changelog))
    for number in range(10, 30):
        world.start(CHAIN, str(number))
    drain(heir)
    fresh = world.log.records(T.changelog)[before:]
    assert sum(record.key == b"wm" for record in fresh) == 2  # one batch, announced and done


def test_replayed_records_are_given_up_as_well(kills: set[int]) -> None:
    """One that lies below the watermark, where only its outputs are sent again."""
    world = World()
    for number in range(3):
        world.start(BRIEF, str(number))
    owner = world.owner()
    owner.process(owner.fetch(9)).to_end()
    owner.crash()
    kills.add(1)
    crashes_until_done(world, 9)
    assert ("engine_crash", 1) in world.dead_letters()


def test_what_a_record_that_is_given_up_has_decided_before_is_still_told(kills: set[int]) -> None:
    """Its state has landed, its outputs have not; then reading it again ends the processes."""
    world = World()
    execution = world.start(BRIEF, "k")
    owner = world.owner()
    owner.process(owner.fetch(9)).before(lambda record: record.topic == T.history)
    owner.crash()
    kills.add(0)
    crashes_until_done(world, 9)
    assert world.history(execution) == ["ExecutionStarted", "StepReady"]
    assert ("engine_crash", 0) in world.dead_letters()


def test_far_behind_the_commit_it_is_found_too(kills: set[int]) -> None:
    """Many batches are read again before the record that ends the process comes."""
    world = World()
    for number in range(60):
        world.start(BRIEF, str(number))
    owner = world.owner()
    while owner.positions[0] < 40:
        owner.process(owner.fetch(10)).to_end()  # and nothing is committed
    owner.crash()
    kills.add(57)
    assert crashes_until_done(world, 9, lambda owner: drain(owner, 10)) <= 4
    assert set(world.dead_letters()) == {("engine_crash", 57)}


def test_later_batches_are_not_announced() -> None:
    world = World()
    for number in range(700):
        world.raw(b"%d" % number)
    owner = world.owner()
    while batch := owner.fetch(100):
        owner.process(batch).to_end()
    written = [record.value or b"" for record in world.log.records(T.changelog)]
    assert sum(b"try" in value for value in written) == 5


def test_an_owner_that_is_asked_for_the_partition_leaves_what_it_takes_one_by_one(kills: set[int]) -> None:
    """Else owners that take it from each other faster than what was in hand at a crash is done never come on."""
    world = World()
    for number in range(8):
        world.start(BRIEF, str(number))
    kills.add(7)
    with pytest.raises(Killed):
        drain(slain := world.owner())
    slain.crash()
    owner = world.owner()
    call = owner.process(owner.fetch(8))
    call.before(lambda record: record.topic == T.history, nth=5)  # the third record's
    owner.engine.cut_short()
    assert [record.offset for record in call.to_end()] == [0, 1, 2]
    owner.commit(0)

    kills.clear()
    heir = world.owner()
    assert heir.positions == {0: 3}
    assert [record.offset for record in heir.process(heir.fetch(8)).to_end()] == [3, 4, 5, 6, 7]


def test_a_record_that_stops_its_partition_is_not_given_up() -> None:
    """However often it is read: an engine that knows those rules takes it up."""
    world = World()
    world.start(BRIEF, "before")
    world.raise_to(m.RULES + 1)
    for _ in range(3 * trial.CRASHES):
        owner = world.owner()
        drain(owner)
        assert owner.engine.stopped
        assert owner.engine.table(0).get(WATERMARK_KEY) is not None
        owner.crash()
    assert world.dead_letters() == []
    assert world.committed == {0: 1}


def test_definitions_that_cannot_be_read_are_no_record_s_fault() -> None:
    world = World(definitions=())
    execution = world.start(BRIEF, "k")
    whole = world.definitions.refresh

    async def refresh() -> None:
        raise LogUnavailable("no leader")

    world.definitions.refresh = refresh  # type: ignore[method-assign]
    for _ in range(2 * trial.CRASHES):
        owner = world.owner()
        with pytest.raises(DefinitionsUnread):
            drain(owner)
        owner.crash()
    world.definitions.refresh = whole  # type: ignore[method-assign]
    world.definitions.by_hash[BRIEF.hash] = BRIEF
    drain(world.owner())
    assert world.dead_letters() == []
    assert world.history(execution) == ["ExecutionStarted", "StepReady"]


def test_a_record_that_ends_whoever_reads_it_is_given_up_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Giving it up would like to know which execution it concerns."""
    world = World()
    first = world.start(BRIEF, "first")
    world.raw(b"{}")
    last = world.start(BRIEF, "last")
    whole = reading.read

    def read(record: Fetched) -> m.Event:
        if record.offset == 1:
            raise Killed
        return whole(record)

    monkeypatch.setattr(reading, "read", read)
    monkeypatch.setattr(folds, "read", read)
    assert crashes_until_done(world, 9) == 2 * trial.CRASHES
    assert world.dead_letters() == [("engine_crash", 1)]
    for execution in (first, last):
        assert world.history(execution) == ["ExecutionStarted", "StepReady"]


def test_what_is_half_done_and_cannot_be_read_again_is_told(kills: set[int]) -> None:
    """Its state has landed, not its batch's watermark; then each process ends over it."""
    world = World()
    execution = world.start(BRIEF, "k")
    owner = world.owner()
    owner.process(owner.fetch(9)).before(_ends_a_batch)
    owner.crash()
    kills.add(0)
    crashes_until_done(world, 9)
    assert world.history(execution) == ["ExecutionStarted", "StepReady"]
    assert world.dead_letters() == [("engine_crash", 0)]


def _ends_a_batch(record: Record) -> bool:
    return record.key == WATERMARK_KEY and Watermark.of(record.value).offset == 0


def test_as_many_of_them_as_a_batch_holds(kills: set[int]) -> None:
    """Nothing of them is committed before the last is given up: what is known of the first has to last."""
    world = World()
    for number in range(60):
        world.start(BRIEF, str(number))
    kills |= set(range(60))
    crashes_until_done(world, 3 * 60)
    assert world.dead_letters()[-60:] == [("engine_crash", offset) for offset in range(60)]


def test_an_innocent_neighbour_is_never_given_up(kills: set[int]) -> None:
    """Each batch in which it lay with the deadly one counts against it once; after that it is alone in hand."""
    world = World()
    executions = [world.start(BRIEF, str(number)) for number in range(9)]
    kills |= {0, 4, 8}
    crashes_until_done(world, 30, lambda owner: drain(owner, 3))
    assert {offset for _, offset in world.dead_letters()} == {0, 4, 8}
    for number in (1, 2, 3, 5, 6, 7):
        assert world.history(executions[number]) == ["ExecutionStarted", "StepReady"]


def test_cut_short_it_hands_over_a_beginning_of_each_partition_and_takes_the_next_batch_whole(
    kills: set[int],
) -> None:
    world = World(partitions=2)
    for number in range(16):
        world.start(BRIEF, str(number))
    kills.add(3)
    with pytest.raises(Killed):
        drain(slain := world.owner(0, 1))  # over the batch of partition 0
    slain.crash()
    kills.clear()
    owner = world.owner(0, 1)
    call = owner.process(batch := owner.fetch(4))
    call.before(lambda record: record.topic == T.history)
    owner.engine.cut_short()
    assert call.to_end() == [record for record in batch if record.partition == 1 or record.offset == 0]
    owner.positions[0] = 1
    batch = owner.fetch(4)
    assert owner.process(batch).to_end() == batch
