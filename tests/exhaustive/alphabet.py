"""What may come next: every record that one execution can meet, from where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache

from flowpilot.core.state import Execution
from flowpilot.core.status import TERMINAL_EXECUTION
from flowpilot_schemas import messages as m
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.ids import TaskId, retry_id
from tests.exhaustive.dags import Subject
from tests.exhaustive.world import EXECUTION, Event, Situation

ANSWERS = ("completed", "failed", "fatal", "started", "heartbeat")
NOT_SERVED = ("not_served 1", "not_served 2")
"""Of the first dispatch of an attempt and of the second."""
ORIGINS = (5, 6)
"""The offsets of the trigger records that start it."""
SELDOM = (*NOT_SERVED, "timed_out", "dispatch_failed", "input_invalid")
"""Kinds of errors that have moves of their own; they come where there are at most two steps, as defects do."""

_BAD = {
    "no value": None,
    "not JSON": b"\xff{",
    "a later version": b'{"v":2,"type":"timer.fired","execution":"%b","run":1}' % EXECUTION.encode(),
    "no task id": b'{"v":1,"type":"step.completed","task_id":"%b/1/a/0"}' % EXECUTION.encode(),
}


def events(subject: Subject, here: Situation) -> Iterator[Event]:
    """Every record that may come now, or at the next moments that matter."""
    state, now = here.state, here.now
    definition = subject.definition
    yield Event("start", start(definition, 1), now)
    yield Event("start with another input", start(definition, 2), now)
    if len(definition.steps) == 1:
        for offset in ORIGINS:
            yield Event(f"start of the trigger record {offset}", start(definition, 1, offset), now)
    yield from (Event(f"bad record: {name}", None, now, raw) for name, raw in _BAD.items())
    run = state.run if state is not None else 1
    yield Event("cancel", _cancel(None), now)
    yield Event("cancel of another run", _cancel(run + 1), now)
    yield from _answers(definition, state, run, now)
    yield from _timers(state, run, now)
    if len(definition.steps) <= 2:
        yield Event("a defect of ours", timer(run), now, is_defect=True)
    yield Event("retry", _retry(from_start=False), now)
    yield Event("retry from the start", _retry(from_start=True), now)
    if state is not None:
        yield from _of_the_end(state, now)


def answer(run: int, step: str, attempt: int, kind: str) -> m.Event:
    """A worker's answer, the same object every time."""
    return _answer(run, step, attempt, kind)


def cancel() -> m.CancelExecution:
    """Of whatever run there is."""
    return _cancel(None)


def timer(run: int) -> m.TimerFired:
    """A timer of a run, the same object every time."""
    return _timer(run)


def _answers(definition: WorkflowDefinition, state: Execution | None, run: int, now: int) -> Iterator[Event]:
    kinds = ANSWERS if len(definition.steps) > 2 else (*ANSWERS, *SELDOM)
    for order, step in enumerate(definition.steps):
        current = state.steps[order].attempt if state is not None and state.steps else 1
        for attempt in range(max(1, current - 1), current + 2):
            told = "current" if attempt == current else "stale" if attempt < current else "future"
            for kind in kinds:
                yield Event(f"{kind} {step.name}/{attempt} ({told})", _answer(run, step.name, attempt, kind), now)
        other = _answer(run + 1, step.name, max(1, current), "completed")
        yield Event(f"completed {step.name}/{max(1, current)} of another run", other, now)
    yield Event("completed of no step", _answer(run, "z", 1, "completed"), now)


def _timers(state: Execution | None, run: int, now: int) -> Iterator[Event]:
    """Of every deadline, one that comes when it is reached; of the next one also one that comes early, and the
    mere passing of time until then, so that whatever else comes may come late."""
    deadlines = deadlines_of(state) if state is not None else []
    future = [deadline for deadline in deadlines if deadline > now]
    fired = timer(run)
    for at in sorted({max(now, deadline) for deadline in deadlines}):
        yield Event(f"timer {at - now:+} ms", fired, at)
    yield Event("timer of another run", timer(run + 1), now)
    if future and len(future) == len(deadlines):
        yield Event(f"early timer {future[0] - 1 - now:+} ms", fired, future[0] - 1, is_early=True)
        yield Event(f"{future[0] - now} ms pass", timer(run + 1), future[0])
    if not deadlines:
        yield Event("timer", fired, now)


def deadlines_of(state: Execution) -> list[int]:
    """Every deadline in the state, the earliest first."""
    found = {state.deadline} if state.due is not None else set()
    if state.due is not None:
        for step in state.steps:
            found |= {step.deadline, step.heartbeat_deadline, step.resend_at}
    return sorted([time for time in found if time is not None])


def _of_the_end(state: Execution, now: int) -> Iterator[Event]:
    """What comes to an execution that is over."""
    for retry in state.retries:
        if retry.is_open:
            name, until = retry_id(EXECUTION, retry.number), max(retry.until, now)
            for status in ("completed", "failed"):
                yield Event(f"retry {retry.number} {status}", _ended(name, retry.request, status, until), now)
    if state.forget_at is not None:
        yield Event("forget, early", m.Forget(before=state.forget_at - 1), state.forget_at - 1, is_early=True)
        yield Event("forget", m.Forget(before=state.forget_at), max(now, state.forget_at))
    elif state.status in TERMINAL_EXECUTION or not state.forgotten:
        yield Event("forget", m.Forget(before=now), now)


def start(definition: WorkflowDefinition, number: int, origin: int | None = None) -> m.StartExecution:
    """The start of the execution with the input `number`, of the trigger record at the offset `origin`."""
    return _start(definition.version, definition.hash, number, origin)


@lru_cache(maxsize=1_000)
def _start(version: str, definition: str, number: int, origin: int | None) -> m.StartExecution:
    of = m.Origin(topic="t", topic_id="i", partition=0, offset=origin) if origin is not None else None
    return m.StartExecution(
        execution=EXECUTION,
        workflow="explored",
        version=version,
        definition=definition,
        key="k",
        input=number,
        origin=of,
    )


@cache
def _cancel(run: int | None) -> m.CancelExecution:
    return m.CancelExecution(execution=EXECUTION, run=run, actor="me", reason="enough")


@cache
def _timer(run: int) -> m.TimerFired:
    return m.TimerFired(execution=EXECUTION, run=run)


@cache
def _retry(*, from_start: bool) -> m.RetryExecution:
    request = "anew" if from_start else "again"
    return m.RetryExecution(execution=EXECUTION, request=request, actor="me", from_start=from_start)


@lru_cache(maxsize=1_000)
def _ended(retry: str, request: str, status: str, until: int) -> m.RetryEnded:
    return m.RetryEnded.model_validate(
        {"execution": EXECUTION, "retry": retry, "run": 99, "request": request, "status": status, "until": until}
    )


@cache
def _answer(run: int, step: str, attempt: int, kind: str) -> m.Event:
    task = str(TaskId(EXECUTION, run, step, attempt))
    match kind:
        case "completed":
            return m.StepCompleted(task_id=task, output=[step, attempt], worker_id="w")
        case "started":
            return m.StepStarted(task_id=task)
        case "heartbeat":
            return m.StepHeartbeat(task_id=task)
        case "failed":
            error = m.StepError(kind="Boom")
        case "fatal":
            error = m.StepError(kind="Fatal", retryable=False)
        case "not_served 1" | "not_served 2":
            return m.StepFailed(
                task_id=task,
                error=m.StepError(kind=m.NOT_SERVED),
                broker_task_id=f"flowpilot.steps.q/{int(kind[-1]) - 1}/7",
                dispatch=int(kind[-1]),
                partitions=2,
            )
        case _:
            error = m.StepError(kind=kind)
    return m.StepFailed(task_id=task, error=error)
