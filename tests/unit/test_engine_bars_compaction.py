"""Compaction around what was given up, and around late records in general (rule 8)."""

from __future__ import annotations

import pytest

from flowpilot.engine.errors import EngineHalt
from flowpilot.engine.keys import state_key
from flowpilot.engine.owned import Watermark
from flowpilot.engine.table import entry_of
from flowpilot_schemas import messages as m
from flowpilot_schemas.topics import HOUR
from tests.unit.bars_world import (
    Scene,
    changelog_end,
    compact_before,
    is_state_of,
    is_watermark,
    next_to_give_up,
    offsets_that_kill,  # noqa: F401
    one,
    standing_still,
    wake,
    was_given_up,
)
from tests.unit.engine_world import CHAIN, T, World, answer_all, drain


def test_that_there_is_no_execution_is_written_over_what_is_ahead(kills: set[int]) -> None:
    """An owner without a state leaves alone what is ahead of it: it will come to the same. Not if it gave up what
    the other has folded. Compaction would keep only the late record."""
    world = World()
    execution = world.start(CHAIN, "k")
    world.event(m.CancelExecution(execution=execution, reason="enough", actor="user:ann"), execution)
    zombie = world.owner()
    zombie.process(zombie.fetch(9)).before(is_state_of(execution))
    owner = next_to_give_up(Scene(world, execution, zombie, 0), kills)
    one(owner)
    wake(zombie)
    drain(owner)
    owner.crash()
    world.log.compact(T.changelog)
    heir = world.owner()
    assert heir.engine.table(0).get(state_key(execution)) is None
    assert world.history(execution) == []


@pytest.mark.parametrize("answered_by", ["batch", "owner", "heir"])
@pytest.mark.parametrize("begins", [True, False])
def test_compaction_may_end_between_a_late_record_and_the_answer(
    kills: set[int], answered_by: str, begins: bool
) -> None:
    """It has removed the bar, not what was barred: the answer has to bar it again."""
    scene = standing_still(begins=begins)
    world = scene.world
    owner = next_to_give_up(scene, kills)
    call = owner.process(owner.fetch(1))
    if answered_by == "batch":
        call.before(lambda r: is_watermark(r) and Watermark.of(r.value).offset == scene.offset)
        wake(scene.zombie)
        late = changelog_end(world)
        call.to_end()
    else:
        call.to_end()
        wake(scene.zombie)
        late = changelog_end(world)
    owner.commit(0)
    if answered_by == "owner":
        world.now += 3_000
        owner.tick().to_end()
    owner.crash()
    if answered_by == "heir":
        world.owner().crash()
    compact_before(world, late)
    drain(world.owner())
    assert was_given_up(scene)


def test_who_stood_still_over_a_compaction_tells_nothing(kills: set[int]) -> None:
    """All of its batch has landed, late; the claim that its gap check would find is not there any more."""
    scene = standing_still(begins=True)
    world = scene.world
    owner = next_to_give_up(scene, kills)
    one(owner)
    late = scene.zombie.call
    assert late is not None
    late.before(is_watermark)
    late.step()
    drain(owner)
    world.now += 3_000
    owner.tick().to_end()
    world.log.compact(T.changelog)
    with pytest.raises(EngineHalt):
        late.to_end()
    assert was_given_up(scene)


def test_what_compaction_may_have_left_alone_stops_the_partition() -> None:
    """Rule 8: the owner had written and committed more, ended, and nobody saw the late record for hours."""
    world = World()
    execution = world.start(CHAIN, "k")
    zombie = world.owner()
    zombie.process(zombie.fetch(9)).before(is_state_of(execution))
    drain(owner := world.owner())
    answer_all(world, set())
    drain(owner)
    owner.crash()
    world.land(zombie.line.flying[0])
    zombie.crash()
    world.now += 3 * HOUR
    world.log.compact(T.changelog)
    assert "rebuild" in world.owner().engine.stopped[0]


def test_what_was_found_alone_in_time_is_the_next_owner_s() -> None:
    """The same for a first record of its key, soon after: it is written again, and no later claim wonders."""
    world = World()
    execution = world.start(CHAIN, "k")
    zombie = world.owner()
    zombie.process(zombie.fetch(9)).before(is_state_of(execution))
    world.owner().crash()
    wake(zombie)
    heir = world.owner()
    last = [record for record in world.log.records(T.changelog) if record.key == state_key(execution)][-1]
    assert entry_of(last).epoch == heir.engine._owned[0].epoch
    heir.crash()
    world.now += 3 * HOUR
    drain(world.owner())
    assert world.history(execution) == ["ExecutionStarted", "StepReady"]
