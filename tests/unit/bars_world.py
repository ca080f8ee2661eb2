"""Records that end processes; and an owner that stands still over one that others give up, and wakes then."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from flowpilot.engine.fold import Fold
from flowpilot.engine.keys import state_key
from flowpilot.engine.table import WATERMARK_KEY
from flowpilot.engine.trial import CRASHES
from flowpilot.ports.log import Fetched, Record
from flowpilot_schemas import messages as m
from tests.unit.engine_world import CHAIN, Owner, T, World, answer_all, drain


class Killed(BaseException):
    """The process ends without another word, as by a signal."""


@pytest.fixture(name="kills")
def offsets_that_kill(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The offsets whose fold ends the process."""
    deadly: set[int] = set()
    whole = Fold.record

    def record(self: Fold, record: Fetched) -> None:
        if record.offset in deadly:
            raise Killed
        whole(self, record)

    monkeypatch.setattr(Fold, "record", record)
    return deadly


class Scene(NamedTuple):
    """An owner stands still that has folded a record of an execution, and maybe the next: nothing of it landed."""

    world: World
    execution: str
    zombie: Owner
    offset: int  # of the record that will end processes


def standing_still(*, begins: bool, further: bool = True) -> Scene:
    """The record is the start, and the next another; or an answer, and the next a cancel."""
    world = World()
    execution = world.start(CHAIN, "k")
    if begins:
        world.start(CHAIN, "k", input={"key": "later"})
    else:
        drain(world.owner())
        answer_all(world, set())
        world.event(m.CancelExecution(execution=execution, reason="enough", actor="user:ann"), execution)
    zombie = world.owner()
    zombie.process(zombie.fetch(9 if further else 1)).before(is_state_of(execution))
    return Scene(world, execution, zombie, 0 if begins else 1)


def is_state_of(execution: str) -> Callable[[Record], bool]:
    return lambda record: record.topic == T.changelog and record.key == state_key(execution)


def is_watermark(record: Record) -> bool:
    return record.key == WATERMARK_KEY


def next_to_give_up(scene: Scene, kills: set[int], ended: int = CRASHES) -> Owner:
    """After `ended` processes, he who stands still among them, have ended over the record."""
    kills.add(scene.offset)
    for _ in range(ended - 1):
        owner = scene.world.owner()
        with pytest.raises(Killed):
            one(owner)
        owner.crash()
    return scene.world.owner()


def one(owner: Owner) -> None:
    owner.process(owner.fetch(1)).to_end()
    owner.commit(0)


def wake(zombie: Owner) -> None:
    """What it had on its way lands; then it ends."""
    zombie.crash(ghosts=True)
    zombie.world.land_ghosts()


def was_given_up(scene: Scene) -> bool:
    """Whether all that is told tells of the later record alone, and there is a letter for the other."""
    world, execution = scene.world, scene.execution
    told = world.history(execution)
    assert set(world.dead_letters()) == {("engine_crash", scene.offset)}
    if scene.offset == 0:
        return told == ["ExecutionStarted", "StepReady"]
    return "StepCompleted" not in told and told[-1] == "ExecutionCancelled"


def compact_before(world: World, offset: int) -> None:
    """As Kafka does: of what lies before `offset`, each key's last record."""
    place = world.log._topics[T.changelog].partitions[0]
    last = {record.key: record.offset for record in place.records if record.offset < offset}
    place.records = [r for r in place.records if r.offset >= offset or last[r.key] == r.offset]


def changelog_end(world: World) -> int:
    return world.log.bounds(T.changelog, 0)[1]
