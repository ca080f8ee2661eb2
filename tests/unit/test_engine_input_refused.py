"""A refused input and its key, through the log: crashes, records read again, and the runs that come after."""

from __future__ import annotations

import orjson
import pytest

from flowpilot.engine import fold
from flowpilot.engine.keys import input_key
from flowpilot.engine.table import PartitionTable
from flowpilot_schemas import messages as m
from flowpilot_schemas.ids import TaskId
from tests.unit.engine_world import (
    BRIEF,
    Owner,
    T,
    World,
    drain,
    quiet,  # noqa: F401
    starting,
)

FIRST = m.Origin(topic="orders", topic_id="id", partition=0, offset=3, timestamp=1)
SECOND = m.Origin(topic="orders", topic_id="id", partition=0, offset=4, timestamp=2)
EXECUTION = starting(BRIEF, "k").execution


def start(world: World, origin: m.Origin | None, n: object) -> int:
    message = starting(BRIEF, "k", input={"n": n}, origin=origin)
    return world.event(message, message.execution)


def refuse(world: World, run: int) -> int:
    """A worker's report on the only step of a run."""
    error = m.StepError(kind="input_invalid", message="n: Input should be an integer", retryable=False)
    task = str(TaskId(EXECUTION, run, "only", 1))
    return world.event(m.StepFailed(task_id=task, error=error), EXECUTION)


def runs(world: World) -> list[tuple[int, str]]:
    """(run, type) of what began and ended, each once and in order."""
    told = {(v["run"], v["seq"]): v["type"] for v in world.values(T.history)}
    return [(run, kind) for (run, _), kind in sorted(told.items()) if kind.startswith("Execution")]


def table(world: World) -> PartitionTable:
    found = PartitionTable(0)
    for record in world.log.records(T.changelog):
        found.load(record)
    return found


def test_a_corrected_record_with_the_same_key_begins_a_run() -> None:
    world = World()
    owner = world.owner()
    start(world, FIRST, "x")
    drain(owner)
    refuse(world, 0)
    second = start(world, SECOND, 1)
    drain(owner)
    assert runs(world) == [(0, "ExecutionStarted"), (0, "ExecutionFailed"), (second, "ExecutionStarted")]
    assert world.dead_letters() == [("input_invalid", 3)]
    assert "StartDeduplicated" not in world.history(EXECUTION)
    assert "KeyConflict" not in world.history(EXECUTION)


@pytest.mark.parametrize("most", [1, 2, 500])
def test_the_same_record_read_again_begins_no_run(most: int) -> None:
    """Before another record has taken the key, and after."""
    world = World()
    owner = world.owner()
    start(world, FIRST, "x")
    refuse(world, 0)
    start(world, FIRST, "x")
    drain(owner, most)
    assert runs(world) == [(0, "ExecutionStarted"), (0, "ExecutionFailed")]
    second = start(world, SECOND, "y")
    start(world, FIRST, "x")
    refuse(world, second)
    start(world, FIRST, "x")
    start(world, SECOND, "y")
    drain(owner, most)
    assert runs(world)[2:] == [(second, "ExecutionStarted"), (second, "ExecutionFailed")]
    assert world.dead_letters() == [("input_invalid", 3), ("input_invalid", 4)]


def test_a_start_without_a_record_begins_another_run() -> None:
    world = World()
    owner = world.owner()
    start(world, None, "x")
    refuse(world, 0)
    again = start(world, None, "x")
    drain(owner)
    assert runs(world)[-1] == (again, "ExecutionStarted")


def test_every_crash_sends_the_same_dead_letter() -> None:
    """Stopped before each record that is written, and folded again by the next owner."""
    whole = World()
    start(whole, FIRST, "x")
    refuse(whole, 0)
    start(whole, SECOND, 1)
    drain(whole.owner())
    stops = len(whole.log.records(T.history)) + len(whole.log.records(T.changelog)) + 6
    for stop in range(1, stops):
        world = World()
        start(world, FIRST, "x")
        refuse(world, 0)
        start(world, SECOND, 1)
        owner = world.owner()
        call = owner.process(owner.fetch(500))
        written = 0
        while not call.done and written < stop:
            written += call.at.record is not None
            call.step()
        owner.crash()
        drain(world.owner())
        assert runs(world) == runs(whole), stop
        assert {r.value for r in world.log.records(T.dead_letters)} == {
            r.value for r in whole.log.records(T.dead_letters)
        }, stop


def test_the_refusal_read_again_after_its_input_is_gone_changes_nothing() -> None:
    """A later run has the key, the first run's input was removed, and the commit was lost."""
    world = World()
    start(world, FIRST, "x")
    refuse(world, 0)
    start(world, SECOND, 1)
    owner = world.owner()
    owner.process(owner.fetch(500)).to_end()  # acknowledged, but never committed
    owner.tick().to_end()
    assert table(world).get(input_key(EXECUTION, 0)) is None
    before = [record.value for record in world.log.records(T.dead_letters)]
    owner.crash()
    successor: Owner = world.owner()
    drain(successor)
    assert not successor.engine.stopped
    assert {record.value for record in world.log.records(T.dead_letters)} == set(before)


def test_a_defect_over_the_next_start_is_a_refused_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with every start that would begin a run: the record has an outcome."""
    world = World()
    owner = world.owner()
    start(world, FIRST, "x")
    refuse(world, 0)
    drain(owner)

    def broken(*_: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(fold, "begin", broken)
    start(world, SECOND, 1)
    drain(owner)
    monkeypatch.undo()
    assert world.history(EXECUTION)[-1] == "StartRefused"
    third = start(world, SECOND.model_copy(update={"offset": 5}), 1)
    start(world, FIRST, "x")
    drain(owner)
    assert runs(world)[-1] == (third, "ExecutionStarted")


def test_what_begins_after_a_refusal_is_rendered_from_its_own_input() -> None:
    world = World()
    owner = world.owner()
    start(world, FIRST, "x")
    refuse(world, 0)
    second = start(world, SECOND, 1)
    drain(owner)
    steps = [orjson.loads(record.value or b"") for record in world.log.records(T.steps("q"))]
    assert {step["task_id"].split("/")[1]: step["input"] for step in steps} == {
        "0": {"n": "x"}, str(second): {"n": 1},
    }  # fmt: skip
