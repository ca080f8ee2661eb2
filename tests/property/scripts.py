"""Random definitions and random events for them, aimed at the state so that they reach deep into it."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st
from pydantic import JsonValue

from flowpilot_schemas import messages as m
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.limits import Limits
from tests.property.run import Run, workflow

ANSWERS = ("completed", "failed", "fatal", "retry_after", "not_served", "timed_out", "dispatch_failed")
SIGNS = ("started", "heartbeat")
FENCES = ("stale", "future", "other_run", "unknown_step", "duplicate")


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Command(NamedTuple):
    """What happens next: `what`, to the `which`-th candidate, with the variant `how`, `after` ms later."""

    what: str
    which: int
    how: int
    after: int


_WAITS = st.sampled_from((0, 0, 0, 1, 500, 5_000, 60_000, 700_000))
_OFTEN = (*("completed",) * 4, *("failed",) * 2, *("timer_due",) * 3, *SIGNS, "any_step", *ANSWERS, *FENCES)
_SELDOM = ("timer_early", "timer_late", "timer_other_run", "start_again", "cancel", "cancel_other_run")
_WHAT = st.sampled_from(_OFTEN * 3 + _SELDOM)
COMMANDS = st.builds(Command, _WHAT, st.integers(0, 5), st.integers(0, 9), _WAITS)
# A list is short unless it must not be: half of the scripts go deep, the others shrink well.
SCRIPTS = st.lists(COMMANDS, max_size=10) | st.lists(COMMANDS, min_size=20, max_size=40)

_POLICIES = st.fixed_dictionaries(
    {
        "max_attempts": st.integers(1, 3),
        "initial_ms": st.sampled_from((0, 1, 1_000)),
        "backoff": st.sampled_from((1.0, 2.0, 100.0)),
        "max_interval_ms": st.sampled_from((0, 1_500, 60_000)),
        "non_retryable": st.sampled_from(((), ("Boom",))),
    }
)


@st.composite
def definitions(draw: st.DrawFn, *, on_schedule_to_start: tuple[str, ...] = ("fail", "retry", "record")) -> Run:
    """A run, just started, of a random DAG of 1–6 steps."""
    return Run(
        draw(dags(on_schedule_to_start)),
        value=draw(_VALUES),
        limits=draw(_LIMITS),
        reply=draw(_REPLIES),
        traceparent=draw(_TRACES),
    )


_VALUES = st.sampled_from((None, 0, "x", {"patient": [1.5, None]}))
_LIMITS = st.sampled_from((*(Limits(),) * 4, Limits(result=12, step_inputs=16)))
_TRACES = st.sampled_from((None, TRACE))
_REPLIES = st.sampled_from((None, m.ReplyTo(topic="flowpilot.replies", partition=1, key="c")))


@st.composite
def dags(
    draw: st.DrawFn, on_schedule_to_start: tuple[str, ...] = ("fail", "retry", "record")
) -> WorkflowDefinition:
    """A definition with 1–6 steps, whose edges, policies and time-outs are anything that is allowed."""
    names = "abcdef"[: draw(st.integers(1, 6))]
    marked = draw(st.sampled_from((None, None, *names)))
    steps = []
    for order, name in enumerate(names):
        depends_on = sorted(draw(st.sets(st.sampled_from(names[:order]), max_size=3))) if order else []
        takes = [parent for parent in depends_on if draw(st.booleans())]
        steps.append(
            {
                "name": name,
                "queue": draw(st.sampled_from(("q", "notify"))),
                "depends_on": depends_on,
                "takes": takes,
                "takes_input": draw(st.booleans()),
                "args": draw(st.sampled_from((None, {"n": 1}))),
                "output": name == marked,
                "retry": draw(_POLICIES),
                "schedule_to_start_ms": draw(st.sampled_from((1, 5_000, 86_400_000))),
                "on_schedule_to_start": draw(st.sampled_from(on_schedule_to_start)),
                "start_to_close_ms": draw(st.sampled_from((1, 2_000, 600_000))),
                "heartbeat_ms": draw(st.sampled_from((1_000, 30_000))),
            }
        )
    timeout = draw(st.sampled_from((None, None, 1, 10_000, 3_600_000)))
    return workflow(*steps, timeout_ms=timeout, dedupe_window_ms=draw(st.sampled_from((0, 3_600_000))))


def play(run: Run, script: list[Command]) -> Run:
    """`run` after every command of `script`; one that fits nothing now is passed over."""
    for command in script:
        follow(run, command)
    return run


def follow(run: Run, command: Command) -> None:
    """Turn one command into a message and send it."""
    what, after = command.what, command.after
    names = [step.name for step in run.definition.steps]
    aims = run.in_flight or names
    step = aims[command.which % len(aims)]
    match what:
        case "any_step":
            step = names[command.which % len(names)]
            run.send(answer(run, step, (*ANSWERS, *SIGNS)[command.how % 9]), after=after)
        case "stale" | "future":
            attempt = current(run, step) + (-1 if what == "stale" else 1)
            run.send(answer(run, step, (*ANSWERS, *SIGNS)[command.how % 9], attempt=max(1, attempt)), after=after)
        case "other_run":
            run.send(answer(run, step, "completed", run_number=run.state.run + 1), after=after)
        case "unknown_step":
            run.send(answer(run, "nobody", (*ANSWERS, *SIGNS)[command.how % 9], attempt=1), after=after)
        case "duplicate":
            sent = [turn.message for turn in run.turns[1:] if not isinstance(turn.message, m.StartExecution | None)]
            if sent:
                run.send(sent[-1 - command.which % len(sent)], after=after)
        case "timer_early" | "timer_due" | "timer_late":
            due = run.state.due
            offset = {"timer_early": -1, "timer_due": 0, "timer_late": after}[what]
            wait = 0 if due is None else max(0, due + offset - run.now)
            run.send(m.TimerFired(execution=run.state.id, run=run.state.run), after=wait)
        case "timer_other_run":
            run.send(m.TimerFired(execution=run.state.id, run=run.state.run + 1), after=after)
        case "start_again":
            run.again(run_value(run) if command.how % 2 else "another")
        case "cancel":
            run.cancel(run=run.state.run if command.how % 2 else None)
        case "cancel_other_run":
            run.cancel(run=run.state.run + 1)
        case _:
            run.send(answer(run, step, what, how=command.how), after=after)


def run_value(run: Run) -> object:
    """The input that the run was started with."""
    return run.start.input


def current(run: Run, step: str) -> int:
    """The current attempt of a step, at least 1."""
    order = run.definition.index[step]
    return max(1, run.state.steps[order].attempt) if run.state.steps else 1


def answer(
    run: Run,
    step: str,
    what: str,
    *,
    attempt: int | None = None,
    run_number: int | None = None,
    how: int = 0,
) -> m.StepCompleted | m.StepFailed | m.StepStarted | m.StepHeartbeat:
    """An answer to an attempt of `step`, the current one unless given."""
    task = run.task(step, current(run, step) if attempt is None else attempt, run_number)
    worker = (None, "w-1")[how % 2]
    match what:
        case "completed":
            outputs: list[JsonValue] = [None, 1, {"y": "z"}, "a long result that is beyond a small limit"]
            return m.StepCompleted(task_id=task, output=outputs[how % 4], worker_id=worker, started_at=None)
        case "started":
            return m.StepStarted(task_id=task, worker_id=worker, broker_task_id="flowpilot.steps.q/0/1")
        case "heartbeat":
            details: JsonValue = {"done": how} if how % 2 else None
            return m.StepHeartbeat(task_id=task, details=details, worker_id=worker)
    errors = {
        "failed": m.StepError(kind="Boom", message="x" * how),
        "fatal": m.StepError(kind="Fatal", retryable=False),
        "retry_after": m.StepError(kind="Later", retry_after_ms=how * 1_000),
    }
    error = errors.get(what) or m.StepError(kind=what)
    if what != m.NOT_SERVED:
        return m.StepFailed(task_id=task, error=error, worker_id=worker)
    order = run.definition.index.get(step)
    queue = "q" if order is None else run.definition.steps[order].queue
    dispatch = run.state.steps[order].dispatch if order is not None and run.state.steps else 1
    return m.StepFailed(
        task_id=task,
        error=error,
        worker_id=worker,
        broker_task_id=f"flowpilot.steps.{queue}/{how % 4}/1" if how < 8 else None,
        dispatch=(dispatch, dispatch, dispatch, None, dispatch - 1, dispatch + 1)[how % 6] or None,
        partitions=(4, 4, 2, None)[how % 4],
    )
