"""The machine in brief: what an execution must look like, by what the history says of it. It shares no logic
with the core; where the two differ, one of them is wrong."""

from __future__ import annotations

from typing import Any, NamedTuple

from flowpilot.core.state import Execution, StepState
from flowpilot.core.status import ExecutionStatus, StepStatus
from flowpilot_schemas import messages as m
from flowpilot_schemas.definition import WorkflowDefinition
from tests.exhaustive.dags import HEARTBEAT_MS, RETRY_MS, SCHEDULE_TO_START_MS, START_TO_CLOSE_MS, TIMEOUT_MS

# Of the two partitions that reports name, each is tried once; then the delay doubles.
_RESEND_MS = {1: 100, 2: 200}


class Step(NamedTuple):
    """A step as the history tells it; `late`, `silent` and `again` are its deadlines."""

    status: StepStatus = StepStatus.PENDING
    attempt: int = 0
    late: int | None = None
    silent: int | None = None
    again: int | None = None
    dispatch: int = 1


_ENDS = {
    "StepCompleted": StepStatus.COMPLETED,
    "StepFailed": StepStatus.FAILED,
    "StepSkipped": StepStatus.SKIPPED,
    "StepCancelled": StepStatus.CANCELLED,
}
_OVER = {
    "ExecutionCompleted": ExecutionStatus.COMPLETED,
    "ExecutionFailed": ExecutionStatus.FAILED,
    "ExecutionCancelled": ExecutionStatus.CANCELLED,
}


class Model:
    """Applies history records. `sent` are the steps that must have been sent, `controls` counts control records."""

    def __init__(self, definition: WorkflowDefinition, at: int) -> None:
        self._index = definition.index
        self._at = at
        self.status: ExecutionStatus | None = None
        self.deadline: int | None = None
        self.steps = [Step()] * len(definition.steps)
        self.sent: list[tuple[str, int]] = []
        self.controls = 0

    @classmethod
    def of(cls, definition: WorkflowDefinition, state: Execution | None, at: int) -> Model:
        """The model where the execution is in `state`."""
        model = cls(definition, at)
        if state is not None:
            model.status, model.deadline = state.status, state.deadline
            if state.status is ExecutionStatus.COMPLETED:
                model.steps = [Step(StepStatus.COMPLETED)] * len(definition.steps)
            elif state.steps:
                model.steps = [_as_known(step) for step in state.steps]
        return model

    def step(self, name: str) -> Step:
        """A step by its name."""
        return self.steps[self._index[name]]

    def apply(self, told: dict[str, Any]) -> None:
        """One history record."""
        kind, at = told["type"], self._at
        if "step" in told:
            order = self._index.get(told["step"])
            if order is not None:
                self.steps[order] = self._moved(self.steps[order], told)
            if kind == "StepReady":
                self.sent.append((told["step"], told["attempt"]))
        elif kind == "ExecutionStarted":
            self.status, self.deadline = ExecutionStatus.RUNNING, at + TIMEOUT_MS
        elif kind in _OVER:
            self.status, self.deadline = _OVER[kind], None
        elif kind == "ExecutionIncident":  # its deadlines stay, and nobody watches them
            self.status = ExecutionStatus.INCIDENT
        self.controls += (
            kind == "ExecutionCancelled"
            or (kind == "ExecutionFailed" and told.get("reason") is not None)
            or (kind == "StepTimedOut" and told["timeout"] != "schedule_to_start")
        )

    def _moved(self, step: Step, told: dict[str, Any]) -> Step:
        kind, at = told["type"], self._at
        if kind in _ENDS:
            return Step(_ENDS[kind], step.attempt)
        match kind:
            case "StepReady":
                return Step(StepStatus.READY, told["attempt"], at + SCHEDULE_TO_START_MS)
            case "StepStarted":
                return Step(StepStatus.RUNNING, told["attempt"], at + START_TO_CLOSE_MS, at + HEARTBEAT_MS)
            case "StepRetryScheduled":
                return Step(StepStatus.RETRYING, step.attempt, at + RETRY_MS)
            case "StepTimedOut" if told["outcome"] == "record":
                return step._replace(late=None)
        return step

    def heard(self, message: m.Event | None, before: Execution | None, after: Execution | None) -> None:
        """What is not told: a sign of life moves one deadline, of a step that runs; a report that a step is not
        served sets the time of its next dispatch, unless that has one or the report is of another dispatch; and a
        timer sends what is due again."""
        if before is None or after is None or self.status is not ExecutionStatus.RUNNING:
            return
        if isinstance(message, m.TimerFired) and message.run == before.run:
            self._send_again()
        if not isinstance(message, m.StepStarted | m.StepHeartbeat | m.StepFailed):
            return
        _, run, name, attempt = message.task_id.split("/")
        order = self._index.get(name)
        if order is None or int(run) != before.run:
            return
        step = self.steps[order]
        if isinstance(message, m.StepFailed):
            is_ready = step.status is StepStatus.READY and step.attempt == int(attempt) and step.again is None
            if message.error.kind == m.NOT_SERVED and is_ready and message.dispatch == step.dispatch:
                self.steps[order] = step._replace(again=self._at + _RESEND_MS[step.dispatch])
        elif step.status is StepStatus.RUNNING and step.attempt == int(attempt):
            self.steps[order] = step._replace(silent=self._at + HEARTBEAT_MS)

    def _send_again(self) -> None:
        for name, order in self._index.items():
            step = self.steps[order]
            if step.again is not None and step.again <= self._at:
                self.steps[order] = step._replace(again=None, dispatch=step.dispatch + 1)
                self.sent.append((name, step.attempt))

    def differs(self, state: Execution) -> str | None:
        """What is another in `state` than here."""
        if self.status is not state.status:
            return f"the execution is {self.status}, not {state.status}"
        if self.deadline != state.deadline:
            return f"its deadline is {self.deadline}, not {state.deadline}"
        if state.status is ExecutionStatus.COMPLETED:
            if any(step.status is not StepStatus.COMPLETED for step in self.steps):
                return f"not all steps completed: {[str(step.status) for step in self.steps]}"
            return None if not state.steps else "a completed execution keeps no steps"
        for name, step, real in zip(self._index, self.steps, state.steps, strict=True):
            if step != _as_known(real):
                return f"{name} is {step}, not {real}"
        return None


def _as_known(step: StepState) -> Step:
    return Step(step.status, step.attempt, step.deadline, step.heartbeat_deadline, step.resend_at, step.dispatch)
