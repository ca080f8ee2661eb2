"""What was given up stays so, whatever of an earlier owner's lands late or is lost."""

from __future__ import annotations

import pytest

from flowpilot.engine.keys import output_key, state_key
from flowpilot.engine.owned import Watermark
from flowpilot.engine.table import WATERMARK_KEY, PartitionTable, headers_of
from flowpilot.engine.trial import CRASHES
from flowpilot.ports.log import Fetched
from flowpilot_schemas import messages as m
from tests.unit.bars_world import (
    Scene,
    is_state_of,
    is_watermark,
    next_to_give_up,
    offsets_that_kill,  # noqa: F401
    one,
    standing_still,
    wake,
    was_given_up,
)
from tests.unit.engine_world import BRIEF, CHAIN, Owner, T, World, completed, drain

# -- the bar itself lands late, or only half of it --------------------------------------------------------------


@pytest.mark.parametrize("further", [True, False])
def test_a_bar_that_lands_after_the_next_claim_takes_nothing_back(kills: set[int], further: bool) -> None:
    """protocol.md c4: the next owner found what the earlier had written, told it, and committed."""
    scene = standing_still(begins=False, further=further)
    world = scene.world
    owner = next_to_give_up(scene, kills)
    owner.process(owner.fetch(1)).before(is_state_of(scene.execution))
    owner.crash(ghosts=True)
    bar = world.ghosts.pop()
    wake(scene.zombie)
    kills.clear()
    heir = world.owner()
    for _ in range(1 + further):
        one(heir)
    before = heir.engine.table(0).get(state_key(scene.execution))
    assert "StepCompleted" in world.history(scene.execution)
    heir.crash()
    world.ghosts.append(bar)
    world.land_ghosts()
    last = world.owner()
    assert last.engine.table(0).get(state_key(scene.execution)) == before
    output = last.engine.table(0).get(output_key(scene.execution, 0, "a"))
    assert output is not None


@pytest.mark.parametrize("begins", [True, False])
def test_an_owner_that_ends_while_it_gives_a_record_up_has_barred_the_watermark(
    kills: set[int], begins: bool
) -> None:
    """Else the earlier one's, which is further, says that a start after the record was folded and forgotten."""
    scene = standing_still(begins=begins)
    owner = next_to_give_up(scene, kills)
    call = owner.process(owner.fetch(1))
    call.before(lambda r: is_watermark(r) and Watermark.of(r.value).offset == scene.offset)
    wake(scene.zombie)
    owner.crash()
    kills.clear()
    drain(scene.world.owner())
    assert was_given_up(scene)


# -- left unread ------------------------------------------------------------------------------------------------


def left_unread(scene: Scene) -> None:
    """Six processes end over the record, but for another reason than that it cannot be read."""
    world = scene.world
    for _ in range(2 * CRASHES - 1):
        owner = world.owner()
        owner.process(owner.fetch(1)).before(lambda record: not is_watermark(record))
        owner.crash()
    owner = world.owner()
    one(owner)
    owner.crash()
    wake(scene.zombie)
    drain(world.owner())


@pytest.mark.parametrize("begins", [True, False])
def test_what_is_left_unread_may_have_been_folded(begins: bool) -> None:
    scene = standing_still(begins=begins)
    left_unread(scene)
    assert was_given_up(scene)


def test_what_is_left_unread_may_concern_a_retry() -> None:
    """Its key names the root."""
    world = World()
    root = world.start(CHAIN, "k")
    drain(owner := world.owner())
    fatal = m.StepError(kind="Fatal", message="m", retryable=False)
    world.event(m.StepFailed(task_id=world.tasks()[0], error=fatal), root)
    world.event(m.RetryExecution(execution=root, request="r", actor="user:ann", reason="fixed"), root)
    drain(owner)
    retry = f"{root}.1"
    offset = world.event(completed(world.tasks()[-1]), retry)
    world.event(m.CancelExecution(execution=retry, reason="enough", actor="user:ann"), retry)
    zombie = world.owner()
    zombie.process(zombie.fetch(9)).before(is_state_of(retry))
    scene = Scene(world, retry, zombie, offset)
    left_unread(scene)
    assert was_given_up(scene)


# -- outputs ----------------------------------------------------------------------------------------------------


def give_up_last(world: World, execution: str, kills: set[int]) -> Owner:
    """Of the execution's last record an output has landed, if it has one, and nothing else; it is given up."""
    slain = world.owner()
    batch = slain.fetch(1)
    slain.process(batch).before(is_state_of(execution))
    slain.crash()
    owner = next_to_give_up(Scene(world, execution, slain, batch[0].offset), kills)
    one(owner)
    assert world.dead_letters() == [("engine_crash", batch[0].offset)]
    return owner


def test_a_retry_does_not_share_the_output_of_an_answer_that_was_given_up(kills: set[int]) -> None:
    world = World()
    execution = world.start(BRIEF, "k")
    drain(world.owner())
    [task] = world.tasks()
    world.event(completed(task), execution)
    owner = give_up_last(world, execution, kills)
    fatal = m.StepError(kind="Fatal", message="m", retryable=False)
    world.event(m.StepFailed(task_id=task, error=fatal), execution)
    drain(owner)
    world.event(m.RetryExecution(execution=execution, request="r", actor="user:ann", reason="fixed"), execution)
    drain(owner)
    assert world.history(f"{execution}.1") == ["ExecutionStarted", "StepReady"]


def test_the_output_of_an_earlier_answer_stays(kills: set[int]) -> None:
    """It is the second answer to the same task that is given up."""
    world = World()
    execution = world.start(CHAIN, "k")
    drain(owner := world.owner())
    [task] = world.tasks()
    world.event(completed(task, 1), execution)
    drain(owner)
    world.event(completed(task, 2), execution)
    owner = give_up_last(world, execution, kills)
    assert owner.engine.table(0).get(output_key(execution, 0, "a")) == b"1"


# -- later owners -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begins", [True, False])
def test_an_owner_that_kept_its_table_knows_what_it_has_barred(kills: set[int], begins: bool) -> None:
    """It loses the partition and gets it again, and reads only what was written meanwhile."""
    scene = standing_still(begins=begins)
    owner = next_to_give_up(scene, kills)
    one(owner)
    wake(scene.zombie)
    owner.take(0).to_end()
    drain(owner)
    assert was_given_up(scene)


def test_an_owner_that_kept_its_table_knows_what_others_have_barred(kills: set[int]) -> None:
    scene = standing_still(begins=True)
    kept = scene.world.owner()
    owner = next_to_give_up(scene, kills)
    one(owner)
    wake(scene.zombie)
    owner.crash()
    kept.take(0).to_end()
    drain(kept)
    assert was_given_up(scene)


def test_states_ahead_of_the_barred_watermark_are_told_once(kills: set[int]) -> None:
    """Another execution's, which the late owner has folded lawfully: the next comes to the same, or finds it."""
    world = World()
    execution = world.start(CHAIN, "k")
    other = world.start(BRIEF, "other")
    zombie = world.owner()
    zombie.process(zombie.fetch(9)).before(is_state_of(execution))
    owner = next_to_give_up(Scene(world, execution, zombie, 0), kills)
    one(owner)
    owner.crash()
    wake(zombie)
    heir = world.owner()
    assert heir.engine._owned[0].recovered_watermark == 0
    drain(heir)
    assert world.history(other) == ["ExecutionStarted", "StepReady"]
    assert len(world.tasks()) == 1
    assert world.history(execution) == []


def test_after_a_barred_watermark_later_ones_win(kills: set[int]) -> None:
    scene = standing_still(begins=True)
    owner = next_to_give_up(scene, kills)
    one(owner)
    wake(scene.zombie)
    drain(owner)
    owner.crash()
    heir = scene.world.owner()
    assert heir.engine._owned[0].recovered_watermark == 1
    scene.world.start(BRIEF, "more")
    drain(heir)
    heir.crash()
    assert scene.world.owner().engine._owned[0].recovered_watermark == 2


def test_a_barred_key_is_forgotten_as_any(kills: set[int]) -> None:
    """Its marker and tombstone come after the bar; what lands late brings nothing back; its id is free again."""
    world = World()
    execution = world.start(BRIEF, "k")
    drain(world.owner())
    world.event(completed(world.tasks()[0]), execution)
    world.event(m.CancelExecution(execution=execution, reason="enough", actor="user:ann"), execution)
    zombie = world.owner()
    zombie.process(zombie.fetch(9)).before(is_state_of(execution))
    owner = next_to_give_up(Scene(world, execution, zombie, 1), kills)
    one(owner)
    for _ in range(4):
        drain(owner)
        world.now += 4_000
        owner.tick().to_end()
    assert owner.engine.table(0).get(state_key(execution)) is None
    owner.crash()
    wake(zombie)
    heir = world.owner()
    assert heir.engine.table(0).get(state_key(execution)) is None
    told = world.history(execution)
    world.start(BRIEF, "k")
    drain(heir)
    assert world.history(execution) == [*told, "ExecutionStarted", "StepReady"]


# -- the table --------------------------------------------------------------------------------------------------


def table_of(*entries: tuple[bytes, int, int, bool]) -> PartitionTable:
    """What recovery makes of (value, src, epoch, bars) of one key, each after a watermark where a claim is new."""
    table = PartitionTable(0)
    for offset, (value, src, epoch, bars) in enumerate(entries):
        key = WATERMARK_KEY if value == b"claim" else b"k"
        table.load(Fetched(T.changelog, 0, offset, 0, key, value, headers_of(src, epoch, bars=bars)))
    return table


def test_a_late_bar_that_wins_bars_what_comes_after_it() -> None:
    """It lies under what the next owner does, who takes it for the execution's state."""
    table = table_of((b"old", 1, 1, False), (b"claim", 0, 3, False), (b"bar", 4, 2, True), (b"late", 9, 1, False))
    assert table.get(b"k") == b"bar"
    assert [key for key, _ in table.overtaken()] == [b"k"]


def test_a_late_bar_that_loses_bars_nothing() -> None:
    table = table_of((b"on", 5, 1, False), (b"claim", 0, 3, False), (b"bar", 4, 2, True), (b"late", 9, 1, False))
    assert table.get(b"k") == b"late"


def test_a_later_bar_bars_more() -> None:
    table = table_of((b"bar", 4, 2, True), (b"claim", 0, 3, False), (b"bar 2", 6, 3, True), (b"late", 9, 2, False))
    assert table.get(b"k") == b"bar 2"
