"""The life of an attempt within a decision: ready, started, completed, failed, tried again, given up."""

from __future__ import annotations

from flowpilot.core import dispatch
from flowpilot.core import events as e
from flowpilot.core.clip import clipped, clipped_or_none
from flowpilot.core.draft import Draft
from flowpilot.core.retry import delay_ms, may_retry
from flowpilot.core.status import StepStatus
from flowpilot_schemas.codec import canonical
from flowpilot_schemas.ids import TaskId
from flowpilot_schemas.messages import (
    INPUT_INVALID,
    StepCompleted,
    StepError,
    StepFailed,
    StepHeartbeat,
    StepStarted,
)

Answer = StepCompleted | StepFailed | StepStarted | StepHeartbeat

# As bytes of JSON. Unsent decisions stand in the state, up to a batch of them.
MESSAGE_LIMIT = 2_000
WORKER_LIMIT = 300


def _who(message: Answer | None) -> tuple[str | None, str | None, str | None]:
    """The worker, the step message's place and the handler's start, as far as the answer tells them."""
    if message is None:
        return None, None, None
    return (
        clipped_or_none(message.worker_id, WORKER_LIMIT),
        clipped_or_none(message.broker_task_id, WORKER_LIMIT),
        None if isinstance(message, StepHeartbeat) else clipped_or_none(message.started_at, WORKER_LIMIT),
    )


def start(draft: Draft, order: int, message: StepStarted | StepHeartbeat) -> None:
    """The attempt runs; told again, it is alive."""
    step, name = draft.steps[order], draft.name(order)
    if step.status is StepStatus.READY:
        draft.emit(e.StepStarted(name, step.attempt, *_who(message)))
    elif isinstance(message, StepStarted):
        draft.emit(e.HeartbeatTaken(name, None))


def complete(draft: Draft, order: int, message: StepCompleted, size: int) -> None:
    """The step is done; what waited for it alone is sent. `size`: bytes of its encoded output."""
    attempt = draft.steps[order].attempt
    draft.emit(e.StepCompleted(draft.name(order), attempt, size, *_who(message)))
    for dependent in draft.definition.dependents[order]:
        step = draft.steps[dependent]
        if step.waiting == 0 and step.status is StepStatus.PENDING:
            make_ready(draft, dependent)


def make_ready(draft: Draft, order: int) -> None:
    """Send the next attempt, unless what it would be given is too large for any."""
    definition = draft.definition.steps[order]
    step = draft.steps[order]
    given = sum(draft.steps[draft.definition.index[parent]].size for parent in definition.takes)
    given += draft.input_size if definition.takes_input else 0
    given += len(canonical(definition.args)) if definition.args else 0
    limit = draft.before.limits.step_inputs
    if given > limit:
        detail = f"the step's inputs have {given} bytes; the limit (FLOWPILOT_STEP_INPUTS_LIMIT) is {limit}"
        error = StepError(kind="input_too_large", message=detail, retryable=False)
        _fail_for_good(draft, order, error, None)
        return
    draft.emit(e.StepReady(definition.name, step.attempt + 1, definition.queue, step.heartbeat))


def fail(draft: Draft, order: int, message: StepFailed) -> None:
    """The worker says that the attempt failed: what follows depends on the kind of the error."""
    error = message.error
    if dispatch.is_not_served(message):
        dispatch.not_served(draft, order, message)
    elif error.kind == "dispatch_failed":
        detail = clipped(error.message, MESSAGE_LIMIT)
        draft.emit(e.DispatchFailed(draft.name(order), draft.steps[order].attempt, detail))
        _fail_for_good(draft, order, error, message)
    elif error.kind == INPUT_INVALID:  # no attempt would do better, whatever the report allows
        _fail_for_good(draft, order, error, message)
    elif error.kind == "timed_out":
        time_out(draft, order, "start_to_close", error, message)
    else:
        fail_attempt(draft, order, error, message)


def time_out(draft: Draft, order: int, timeout: str, error: StepError, message: StepFailed | None) -> None:
    """The attempt has passed one of its deadlines."""
    retries = may_retry(draft.definition.steps[order].retry, error, draft.steps[order].attempt)
    outcome = "retry" if retries else "fail"
    draft.emit(e.StepTimedOut(draft.name(order), draft.steps[order].attempt, timeout, outcome))
    fail_attempt(draft, order, error, message)


def fail_attempt(draft: Draft, order: int, error: StepError, message: Answer | None) -> None:
    """The attempt failed: schedule another as the retry policy allows, or the step has failed."""
    attempt = draft.steps[order].attempt
    policy = draft.definition.steps[order].retry
    if may_retry(policy, error, attempt):
        task = TaskId(draft.before.id, draft.before.run, draft.name(order), attempt)
        retry_at = draft.at + delay_ms(policy, error, attempt, str(task))
        _schedule(draft, order, retry_at, error, message)
    else:
        _fail_for_good(draft, order, error, message)


def _schedule(draft: Draft, order: int, retry_at: int, error: StepError, message: Answer | None) -> None:
    attempt = draft.steps[order].attempt
    draft.emit(
        e.StepRetryScheduled(
            draft.name(order),
            attempt,
            attempt + 1,
            retry_at,
            _shown(error),
            *_who(message)[:2],
        )
    )


def _fail_for_good(draft: Draft, order: int, error: StepError, message: Answer | None) -> None:
    name = draft.name(order)
    draft.emit(e.StepFailed(name, draft.steps[order].attempt, _shown(error), *_who(message)))
    # Everything that waits for it, directly or not, never runs; independent branches go on.
    below = list(draft.definition.dependents[order])
    while below:
        dependent = below.pop()
        if draft.steps[dependent].status is StepStatus.PENDING:
            draft.emit(e.StepSkipped(draft.name(dependent), name))
            below.extend(draft.definition.dependents[dependent])


def _shown(error: StepError) -> dict[str, str]:
    return {"kind": error.kind, "message": clipped(error.message, MESSAGE_LIMIT)}
