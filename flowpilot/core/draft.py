"""A state being changed: copied once for a decision, moved by events only, frozen at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flowpilot.core import events as e
from flowpilot.core import ignored
from flowpilot.core.family import window_after_end
from flowpilot.core.state import REFUSAL_KEPT_MS, Execution, StepState
from flowpilot.core.status import (
    TERMINAL_STEP,
    ExecutionStatus,
    StepStatus,
    check_execution,
    check_step,
)
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.messages import INPUT_INVALID

# The state of a wide workflow stays small when all of its steps fail: characters of a message, and messages.
_ERROR_KEPT = 300
ERRORS_KEPT = 20


class Draft:
    """Applies events to a copy of `before`; `state()` is the result, `events` what was emitted."""

    def __init__(self, definition: WorkflowDefinition, before: Execution, at: int) -> None:
        self.definition = definition
        self.before = before
        self.at = at
        self.events: list[e.CoreEvent] = []
        self.steps: list[StepState] = list(before.steps)
        self.open = before.open
        self.status = before.status
        self.input_size = before.input_size
        self.deadline = before.deadline
        self.forget_at = before.forget_at
        self.refused, self.released = before.refused, before.released
        self.retries = before.retries
        self.ignored = before.ignored
        self._errors_kept: int | None = None

    def name(self, order: int) -> str:
        """The name of the step at `order`."""
        return self.definition.steps[order].name

    def open_steps(self) -> Iterable[int]:
        """The orders of the steps that are not terminal now."""
        return [order for order, step in enumerate(self.steps) if step.status not in TERMINAL_STEP]

    def emit(self, event: e.CoreEvent) -> None:
        """Record `event` and move the state by it."""
        self.events.append(event)
        move = _MOVES.get(type(event))
        if move is not None:
            move(self, event)

    def state(self) -> Execution:
        """The state as it is now. A completed execution keeps no steps: only its id has to be known."""
        before = self.before
        if self.released and not before.released:
            before = before.with_refused_origin()
        return before._replace(
            steps=() if self.status is ExecutionStatus.COMPLETED else tuple(self.steps),
            open=self.open,
            status=self.status,
            input_size=self.input_size,
            deadline=self.deadline,
            forget_at=self.forget_at,
            refused=self.refused,
            released=self.released,
            retries=self.retries,
            ignored=self.ignored,
        )

    def _move(self, name: str, after: StepStatus, **changes: Any) -> int:
        order = self.definition.index[name]
        step = self.steps[order]
        check_step(step.status, after)
        cleared: dict[str, Any] = {
            "deadline": None,
            "heartbeat_deadline": None,
            "resend_at": None,
            "dispatch": 1,
            "partition": None,
        }
        if after in TERMINAL_STEP:
            self.open -= 1
            cleared["heartbeat"] = None
        self.steps[order] = step._replace(status=after, **(cleared | changes))
        return order

    def _started(self, event: e.ExecutionStarted) -> None:
        self.status = check_execution(self.status, ExecutionStatus.RUNNING)
        self.steps = [StepState(waiting=len(step.depends_on)) for step in self.definition.steps]
        self.open = len(self.steps)
        for order, size, _ in event.taken or ():
            self.open -= 1
            self.steps[order] = self.steps[order]._replace(status=StepStatus.COMPLETED, size=size)
            self._unblock(order)
        self.input_size = event.input_size
        if self.definition.timeout_ms is not None:
            self.deadline = self.at + self.definition.timeout_ms

    def _step_ready(self, event: e.StepReady) -> None:
        step = self.definition.steps[self.definition.index[event.step]]
        self._move(
            event.step, StepStatus.READY, attempt=event.attempt, deadline=self.at + step.schedule_to_start_ms
        )

    def _redispatch_scheduled(self, event: e.RedispatchScheduled) -> None:
        order = self.definition.index[event.step]
        self.steps[order] = self.steps[order]._replace(resend_at=event.resend_at, partition=event.partition)

    def _redispatched(self, event: e.StepRedispatched) -> None:
        order = self.definition.index[event.step]
        self.steps[order] = self.steps[order]._replace(
            resend_at=None, dispatch=event.dispatch, partition=event.partition
        )

    def _step_started(self, event: e.StepStarted) -> None:
        step = self.definition.steps[self.definition.index[event.step]]
        self._move(
            event.step,
            StepStatus.RUNNING,
            deadline=self.at + step.start_to_close_ms,
            heartbeat_deadline=self.at + step.heartbeat_ms,
        )

    def _heartbeat(self, event: e.HeartbeatTaken) -> None:
        order = self.definition.index[event.step]
        step = self.steps[order]
        self.steps[order] = step._replace(
            heartbeat_deadline=self.at + self.definition.steps[order].heartbeat_ms,
            heartbeat=step.heartbeat if event.details is None else event.details,
        )

    def _step_completed(self, event: e.StepCompleted) -> None:
        order = self._move(event.step, StepStatus.COMPLETED, size=event.size)
        self._unblock(order)

    def _unblock(self, order: int) -> None:
        for dependent in self.definition.dependents[order]:
            step = self.steps[dependent]
            self.steps[dependent] = step._replace(waiting=step.waiting - 1)

    def _step_failed(self, event: e.StepFailed) -> None:
        error = None
        if self._errors_kept is None:
            self._errors_kept = sum([step.error is not None for step in self.steps])
        if self._errors_kept < ERRORS_KEPT:
            self._errors_kept += 1
            error = {"kind": event.error["kind"], "message": event.error["message"][:_ERROR_KEPT]}
        self._move(event.step, StepStatus.FAILED, error=error)

    def _step_timed_out(self, event: e.StepTimedOut) -> None:
        if event.outcome == "record":
            order = self.definition.index[event.step]
            self.steps[order] = self.steps[order]._replace(deadline=None)

    def _retry(self, event: e.StepRetryScheduled) -> None:
        self._move(event.step, StepStatus.RETRYING, deadline=event.retry_at)

    def _skipped(self, event: e.StepSkipped) -> None:
        self._move(event.step, StepStatus.SKIPPED)

    def _step_cancelled(self, event: e.StepCancelled) -> None:
        self._move(event.step, StepStatus.CANCELLED)

    def _ignored(self, event: e.CompletionIgnored | e.CancelIgnored) -> None:
        found = ignored.entry(self.definition, self.before, event)
        self.ignored = ignored.remembered(self.before, found)

    def _over(self, status: ExecutionStatus, window_ms: int) -> None:
        self.status = check_execution(self.status, status)
        self.deadline = None
        # A retry is kept as long as its root, and a root as long as its retries.
        if self.before.retry:
            self.forget_at = None
        else:
            self.retries, self.forget_at = window_after_end(self.before, self.at + window_ms)

    def _completed(self, _: e.ExecutionCompleted) -> None:
        self._over(ExecutionStatus.COMPLETED, self.definition.dedupe_window_ms)

    def _failed(self, event: e.ExecutionFailed) -> None:
        self._over(ExecutionStatus.FAILED, self.definition.retry_window_ms)
        # An R.n has one start alone: nobody else can begin it.
        self.released = event.reason == INPUT_INVALID and self.before.retry is None

    def _cancelled(self, _: e.ExecutionCancelled) -> None:
        self._over(ExecutionStatus.CANCELLED, self.definition.retry_window_ms)

    def _refused(self, _: e.StartRefused) -> None:
        self._over(ExecutionStatus.FAILED, REFUSAL_KEPT_MS)
        self.refused = True

    def _incident(self, _: e.ExecutionIncident) -> None:
        self.status = check_execution(self.status, ExecutionStatus.INCIDENT)


# Events that are only told (deduplication) move nothing and are not here.
_MOVES: dict[type[e.CoreEvent], Callable[[Draft, Any], None]] = {
    e.ExecutionStarted: Draft._started,
    e.StepReady: Draft._step_ready,
    e.RedispatchScheduled: Draft._redispatch_scheduled,
    e.StepRedispatched: Draft._redispatched,
    e.StepStarted: Draft._step_started,
    e.HeartbeatTaken: Draft._heartbeat,
    e.StepCompleted: Draft._step_completed,
    e.StepFailed: Draft._step_failed,
    e.StepTimedOut: Draft._step_timed_out,
    e.StepRetryScheduled: Draft._retry,
    e.StepSkipped: Draft._skipped,
    e.StepCancelled: Draft._step_cancelled,
    e.ExecutionCompleted: Draft._completed,
    e.ExecutionFailed: Draft._failed,
    e.ExecutionCancelled: Draft._cancelled,
    e.StartRefused: Draft._refused,
    e.ExecutionIncident: Draft._incident,
    e.CompletionIgnored: Draft._ignored,
    e.CancelIgnored: Draft._ignored,
}
