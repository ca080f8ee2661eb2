"""What happens next: `decide_start` and `decide` answer a message with events, `evolve` folds an event.

Pure and total: no clock, no chance, no I/O. `at` is the broker's time of the message, in ms. The events of a
decision, folded one after another by `evolve`, give the decision's state (a law that the tests hold).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flowpilot.core import attempts, dispatch, ignored, lineage
from flowpilot.core import events as e
from flowpilot.core.attempts import Answer
from flowpilot.core.clip import clipped, clipped_or_none
from flowpilot.core.decision import Decision
from flowpilot.core.draft import Draft
from flowpilot.core.inputs import MAX_DEPTH, is_deeper
from flowpilot.core.rule_sets import FIRST
from flowpilot.core.state import REFUSAL_KEPT_MS, Execution
from flowpilot.core.status import (
    IN_FLIGHT,
    TERMINAL_EXECUTION,
    ExecutionStatus,
    StepStatus,
    check_execution,
)
from flowpilot_schemas.codec import content_hash, encode
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.ids import TaskId
from flowpilot_schemas.limits import KIB, MAX_HEARTBEAT_DETAILS
from flowpilot_schemas.messages import (
    INPUT_INVALID,
    CancelExecution,
    StartExecution,
    StepCompleted,
    StepError,
    StepFailed,
    StepHeartbeat,
    StepStarted,
    TimerFired,
)

Message = Answer | CancelExecution | TimerFired

_DETAIL_KEPT = 300  # characters
_KEPT_OF_RETRY = {"execution", "request", "shares", "input_of"}
_ALL_HEARTBEATS = 4 * KIB * KIB  # bytes of details in the state of an execution


class Taken(NamedTuple):
    """A step that a retry takes over: its order, its output's size, and which of the shared places holds that."""

    order: int
    size: int
    place: int


def evolve(definition: WorkflowDefinition, state: Execution, event: e.CoreEvent, at: int) -> Execution:
    """The state after `event`. Raises `IllegalTransition` where the tables have no such move."""
    if isinstance(event, lineage.OF_FAMILIES):
        return lineage.evolve(state, event)
    draft = Draft(definition, state, at)
    draft.emit(event)
    return draft.state()


def opened(message: StartExecution, offset: int) -> Execution:
    """The state before the first event of the run that `message` at `offset` begins."""
    return Execution(
        id=message.execution,
        run=offset,
        src=offset,
        status=ExecutionStatus.PENDING,
        workflow=message.workflow,
        version=message.version,
        definition=message.definition,
        limits=message.limits,
        rules=message.rules or FIRST,
        key=message.key,
        origin=message.origin.model_dump() if message.origin else None,
        reply=message.reply.model_dump() if message.reply else None,
        input_hash=content_hash(message.input),
        retry=message.retry.model_dump(mode="json", include=_KEPT_OF_RETRY) if message.retry else None,
        traceparent=message.traceparent,
    )


def decide_start(
    definition: WorkflowDefinition,
    message: StartExecution,
    input_size: int,
    at: int,
    offset: int,
    taken: Sequence[Taken] = (),
) -> Decision:
    """Begin a run: nothing holds the execution's id. `taken`: the steps that a retry need not do again."""
    state = opened(message, offset)
    draft = Draft(definition, state, at)
    draft.emit(
        e.ExecutionStarted(
            message.workflow,
            message.version,
            message.definition,
            message.key,
            state.origin,
            message.created_by,
            input_size,
            *_of_retry(message),
            *([list(step) for step in taken], [place for place, _ in message.retry.shares])
            if message.retry and taken
            else (None, None),
        )
    )
    for order, step in enumerate(draft.steps):
        if step.waiting == 0 and step.status is StepStatus.PENDING:
            attempts.make_ready(draft, order)
    return _end(draft)


def refuse_start(message: StartExecution, reason: str, detail: str, at: int, offset: int) -> Decision:
    """A run that cannot begin: the id is held by a refused execution until a good start comes."""
    event = e.StartRefused(
        *(message.workflow, message.version, message.definition, reason, detail, message.key),
        message.origin.model_dump() if message.origin else None,
        message.created_by,
        *_of_retry(message),
    )
    state = opened(message, offset)._replace(
        status=ExecutionStatus.FAILED, refused=True, forget_at=None if message.retry else at + REFUSAL_KEPT_MS
    )
    return Decision(state, [event])


def decide_again(state: Execution, message: StartExecution) -> Decision:
    """A start of an id that is held. The very record that started it, or whose input was refused, read twice, says
    nothing new."""
    if message.retry is not None:  # the engine sends it again when it replays what it decided
        return Decision(state, [])
    origin = message.origin.model_dump() if message.origin else None
    if origin is not None and (origin == state.origin or state.has_refused(origin)):
        return Decision(state, [])
    asked = content_hash(message.input)
    if asked == state.input_hash:
        return Decision(state, [e.StartDeduplicated(origin, message.created_by)])
    return Decision(state, [e.KeyConflict(origin, message.created_by, asked)])


def _of_retry(message: StartExecution) -> tuple[dict[str, object]] | tuple[None]:
    told = {"execution", "run", "request", "reason", "from_start"}
    return (message.retry.model_dump(include=told, exclude_none=True),) if message.retry else (None,)


def decide(definition: WorkflowDefinition, state: Execution, message: Message, at: int) -> Decision:
    """What `message` changes in an execution that exists."""
    match message:
        case CancelExecution():
            return _cancel(definition, state, message, at)
        case TimerFired():
            return _timer(definition, state, message, at)
        case _:
            return _answer(definition, state, message, at)


def fault(state: Execution, detail: str) -> Decision:
    """A defect of ours met this execution: it stands still until somebody cancels it."""
    if state.status is not ExecutionStatus.RUNNING:
        return Decision(state, [])
    after = state._replace(status=check_execution(state.status, ExecutionStatus.INCIDENT))
    # An exception's text may quote anything, lone surrogates included.
    sentence = detail[:_DETAIL_KEPT].encode(errors="replace").decode()
    return Decision(after, [e.ExecutionIncident(sentence)])


def _answer(definition: WorkflowDefinition, state: Execution, message: Answer, at: int) -> Decision:
    task = TaskId.parse(message.task_id)
    if task is None:  # the engine found the execution by this id: it has been parsed before
        return Decision(state, [])
    reason = _why_ignored(definition, state, task)
    if reason is not None:
        if isinstance(message, StepHeartbeat) or dispatch.is_not_served(message):
            return Decision(state, [], ignored=reason)
        worker = clipped_or_none(message.worker_id, attempts.WORKER_LIMIT)
        event = e.CompletionIgnored(task.step, task.attempt, message.type, reason, worker)
        return _ignore(definition, state, event, at)._replace(ignored=reason)
    order = definition.index[task.step]
    draft = Draft(definition, state, at)
    output = None
    match message:
        case StepStarted():
            attempts.start(draft, order, message)
        case StepHeartbeat():
            attempts.start(draft, order, message)
            draft.emit(e.HeartbeatTaken(task.step, _kept_details(definition, message)))
        case StepCompleted():
            encoded = encode(message.output)
            if len(encoded) > state.limits.result:
                limit = state.limits.result
                detail = f"the result has {len(encoded)} bytes; the limit (FLOWPILOT_RESULT_LIMIT) is {limit}"
                error = StepError(kind="result_too_large", message=detail, retryable=False)
                attempts.fail_attempt(draft, order, error, message)
            elif encoded.count(b"[") + encoded.count(b"{") > MAX_DEPTH and is_deeper(message.output, MAX_DEPTH):
                detail = f"the result is nested deeper than {MAX_DEPTH} levels"
                error = StepError(kind="result_not_serialisable", message=detail, retryable=False)
                attempts.fail_attempt(draft, order, error, message)
            else:
                output = (task.step, encoded)
                attempts.complete(draft, order, message, len(encoded))
        case StepFailed():
            attempts.fail(draft, order, message)
            if message.error.kind == INPUT_INVALID:
                return _input_refused(draft, message.error.message)
    decision = _end(draft)
    return decision._replace(output=output)


def _input_refused(draft: Draft, detail: str) -> Decision:
    """The execution's own input does not fit: no step can do anything with it, and whoever sends a better one shall
    have the key."""
    _cancel_open_steps(draft)
    draft.emit(e.ExecutionFailed(_errors(draft), INPUT_INVALID, clipped(detail, attempts.MESSAGE_LIMIT)))
    return Decision(draft.state(), draft.events)


def _ignore(
    definition: WorkflowDefinition, state: Execution, event: e.CompletionIgnored | e.CancelIgnored, at: int
) -> Decision:
    """`event`, unless the history has it: what is sent again and again is recorded once."""
    if ignored.is_recorded(state, ignored.entry(definition, state, event)):
        return Decision(state, [])
    draft = Draft(definition, state, at)
    draft.emit(event)
    return Decision(draft.state(), draft.events)


def _why_ignored(definition: WorkflowDefinition, state: Execution, task: TaskId) -> str | None:
    if task.run != state.run:
        return "other_run"
    if state.status is not ExecutionStatus.RUNNING:
        return "execution_over" if state.status in TERMINAL_EXECUTION else str(state.status)
    order = definition.index.get(task.step)
    if order is None:
        return "unknown_step"
    step = state.steps[order]
    if task.attempt != step.attempt:
        return "stale_attempt" if task.attempt < step.attempt else "unknown_attempt"
    return None if step.status in IN_FLIGHT else "not_in_flight"


def _kept_details(definition: WorkflowDefinition, message: StepHeartbeat) -> object:
    """The details, unless they are larger than this step's share: then only the sign of life counts."""
    if message.details is None:
        return None
    share = min(MAX_HEARTBEAT_DETAILS, _ALL_HEARTBEATS // len(definition.steps))
    return message.details if len(encode(message.details)) <= share else None


def _cancel(definition: WorkflowDefinition, state: Execution, message: CancelExecution, at: int) -> Decision:
    over = state.status in TERMINAL_EXECUTION
    if over or message.run not in (None, state.run):
        reason = "the execution is over" if over else "another run holds the id"
        return _ignore(definition, state, e.CancelIgnored(message.actor, reason), at)
    draft = Draft(definition, state, at)
    _cancel_open_steps(draft)
    draft.emit(e.ExecutionCancelled(message.actor, message.reason))
    return Decision(draft.state(), draft.events)


def _cancel_open_steps(draft: Draft) -> None:
    for order in draft.open_steps():
        draft.emit(e.StepCancelled(draft.name(order), draft.steps[order].attempt))


def _timer(definition: WorkflowDefinition, state: Execution, message: TimerFired, at: int) -> Decision:
    """Apply every deadline that the broker's time has reached; a timer that comes early changes nothing."""
    due = state.due
    if message.run != state.run or due is None or due > at:
        return Decision(state, [])
    draft = Draft(definition, state, at)
    if state.deadline is not None and state.deadline <= at:
        _cancel_open_steps(draft)
        draft.emit(e.ExecutionFailed(_errors(draft), "timed_out"))
        return Decision(draft.state(), draft.events)
    for order, step in enumerate(state.steps):
        if step.due is not None and step.due <= at:
            _step_due(draft, order)
    return _end(draft)


def _step_due(draft: Draft, order: int) -> None:
    step, definition = draft.steps[order], draft.definition.steps[order]
    if step.status is StepStatus.RETRYING:
        attempts.make_ready(draft, order)
    elif step.status is StepStatus.READY:
        if step.deadline is not None and step.deadline <= draft.at:
            _nobody_began(draft, order)
        after = draft.steps[order]
        if after.status is StepStatus.READY and after.resend_at is not None and after.resend_at <= draft.at:
            dispatch.send_on(draft, order)
    elif step.due == step.heartbeat_deadline:
        lost = StepError(kind="timed_out", message=f"no heartbeat for {definition.heartbeat_ms} ms")
        attempts.time_out(draft, order, "heartbeat", lost, None)
    else:
        late = StepError(kind="timed_out", message=f"not closed within {definition.start_to_close_ms} ms")
        attempts.time_out(draft, order, "start_to_close", late, None)


def _nobody_began(draft: Draft, order: int) -> None:
    """`schedule_to_start` has passed since the attempt was first sent."""
    step, definition = draft.steps[order], draft.definition.steps[order]
    if definition.on_schedule_to_start == "record":
        draft.emit(e.StepTimedOut(definition.name, step.attempt, "schedule_to_start", "record"))
        return
    queue, within = f"queue {definition.queue!r}", f"within {definition.schedule_to_start_ms} ms"
    if step.dispatch == 1 and step.resend_at is None:
        message = f"no worker of {queue} answered {within}"
    else:
        message = f"no worker of {queue} that serves this version of the step began it {within}"
    error = StepError(kind="timed_out", message=message, retryable=definition.on_schedule_to_start == "retry")
    attempts.time_out(draft, order, "schedule_to_start", error, None)


def _end(draft: Draft) -> Decision:
    if draft.open == 0 and draft.status is ExecutionStatus.RUNNING:
        errors = _errors(draft)
        draft.emit(e.ExecutionFailed(errors, None) if errors else e.ExecutionCompleted())
    return Decision(draft.state(), draft.events)


def _errors(draft: Draft) -> dict[str, object]:
    failed = [order for order, step in enumerate(draft.steps) if step.status is StepStatus.FAILED]
    errors: dict[str, object] = {
        draft.name(order): error for order in failed if (error := draft.steps[order].error) is not None
    }
    if len(failed) > len(errors):
        errors["…"] = {"kind": "more", "message": f"{len(failed) - len(errors)} more steps failed"}
    return errors
