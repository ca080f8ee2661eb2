"""What is ignored is recorded once: replays and foreign reports make no further history, and no large state."""

from __future__ import annotations

import random

import pytest

from flowpilot.core.ignored import MOST
from flowpilot.core.state import decode_execution, encode_execution
from flowpilot_schemas import messages as m
from flowpilot_schemas.ids import TaskId
from tests.property.run import Run, chain_of, workflow
from tests.unit.engine_world import CHAIN, T, World, drain

TWICE = {"retry": {"max_attempts": 3, "initial_ms": 1_000}}


def ignored(run: Run) -> list[tuple[str, int, str]]:
    records = [each["record"] for each in run.history]
    return [
        (record["step"], record["attempt"], record["reason"])
        for record in records
        if record["type"] == "CompletionIgnored"
    ]


def of(run: Run, step: str, attempt: int, later: int = 0) -> m.StepCompleted:
    """A report; of a run that began `later`."""
    return m.StepCompleted(task_id=run.task(step, attempt, run.state.run + later), output=1)


def test_each_attempt_and_reason_is_recorded_once() -> None:
    run = Run(chain_of("a", "b", **TWICE))
    for _ in range(2):
        run.fail("a")
        run.timer()
    for attempt in (1, 2, 1, 2, 1):
        run.send(of(run, "a", attempt))
        run.send(m.StepStarted(task_id=run.task("a", attempt)))
    assert ignored(run) == [("a", 1, "stale_attempt"), ("a", 2, "stale_attempt")]
    run.complete("a")
    for _ in range(3):
        run.send(of(run, "a", 3))
    assert ignored(run)[2:] == [("a", 3, "not_in_flight")]


@pytest.mark.parametrize("how", ["completed", "failed", "cancelled"])
def test_replays_after_the_end_are_recorded_once(how: str) -> None:
    run = Run(chain_of("a", "b"))
    run.complete("a")
    match how:
        case "completed":
            run.complete("b")
        case "failed":
            run.fail("b", retryable=False)
        case _:
            run.cancel()
    assert str(run.state.status) == how
    for _ in range(50):
        for step in ("a", "b"):
            run.send(of(run, step, 1))
    assert ignored(run) == [("a", 1, "execution_over"), ("b", 1, "execution_over")]


def test_foreign_attempts_are_one_a_step_and_reason() -> None:
    """Attempts, runs and steps that never were must not fill the state."""
    run = Run(chain_of("a", "b"))
    chance = random.Random(1)
    for _ in range(300):
        number = chance.randrange(2, 999_999_999)
        run.send(of(run, "a", number))
        run.send(of(run, "a", number, later=number))
        run.send(of(run, f"s{number}", number))
    assert sorted((step if step == "a" else "?", reason) for step, _, reason in ignored(run)) == [
        ("?", "unknown_step"),
        ("a", "other_run"),
        ("a", "unknown_attempt"),
    ]
    run.cancel()
    for number in range(2, 300):
        run.send(of(run, "a", number))
        run.send(of(run, f"s{number}", 1))
    assert len(ignored(run)) == 3 + 2


def test_a_completed_run_remembers_no_attempt_beyond_the_limit() -> None:
    run = Run(chain_of("a", **TWICE))
    run.complete("a")
    for attempt in range(1, 100):
        run.send(of(run, "a", attempt))
    # It keeps no steps: attempts that its policy allows can have existed, and the others are one.
    assert [attempt for _, attempt, _ in ignored(run)] == [1, 2, 3, 4]


def test_a_cancel_that_comes_again_is_recorded_once() -> None:
    run = Run(workflow({"name": "a"}))
    run.cancel()
    before = len(run.told)
    for actor in ("ann", "bob", "ann", "bob"):
        run.send(m.CancelExecution(execution=run.state.id, actor=actor))
    assert run.told[before:] == ["CancelIgnored"] * 2


def test_the_state_stays_small_whatever_is_ignored() -> None:
    steps = [{"name": f"s{number}"} for number in range(MOST)]
    run = Run(workflow(*steps))
    empty = len(encode_execution(run.state))
    for number in range(MOST):
        run.send(of(run, f"s{number}", 7))
        run.send(of(run, f"s{number}", 1, later=1))
    assert len(ignored(run)) == len(run.state.ignored) == MOST
    state = run.state._replace(outbox=())
    assert len(encode_execution(state)) - empty < 16 * MOST
    assert decode_execution(encode_execution(state)) == state


def test_what_is_recorded_does_not_depend_on_the_order() -> None:
    states = []
    for order in (("a", "b"), ("b", "a")):
        run = Run(workflow({"name": "a"}, {"name": "b"}))
        for step in order:
            run.send(of(run, step, 9))
        states.append(run.state._replace(head=b""))
    assert states[0] == states[1]


def test_a_replay_is_ignored_by_every_owner_alike() -> None:
    """The memory is state: it survives the process, and a replay below `src` sends what it sent."""
    world = World()
    execution = world.start(CHAIN, "1")
    owner = world.owner()
    drain(owner)
    task = str(TaskId(execution, 0, CHAIN.steps[0].name, 1))
    for _ in range(3):
        world.event(m.StepCompleted(task_id=task, output=1), execution)
    drain(owner)
    owner.crash()
    for _ in range(3):
        world.event(m.StepCompleted(task_id=task, output=1), execution)
    drain(world.owner())
    told = [value["type"] for value in world.values(T.history)]
    assert told.count("CompletionIgnored") == 1
