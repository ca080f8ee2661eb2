"""What a client raises. Each carries its data and says what to do."""

from __future__ import annotations

from typing import Any

from flowpilot.core.errors import FlowPilotError
from flowpilot.ports.log import LogUnavailable


class UnknownWorkflow(FlowPilotError):
    """There is no workflow, or no version of it, of that name."""

    def __init__(self, workflow: str, version: str | None, known: list[str]) -> None:
        self.workflow, self.version, self.known = workflow, version, known
        if version is not None:
            message = f"there is no version {version!r} of workflow {workflow!r}; start a worker that has it"
        else:
            listed = ", ".join(known[:10]) or "none"
            message = (
                f"there is no workflow {workflow!r} (registered: {listed}); start its worker or run "
                "`flowpilot workflow apply MODULE:WORKFLOW`"
            )
        super().__init__(message)


class UnknownExecution(FlowPilotError):
    """The audit record, which has its workflow and input, does not know the execution or does not answer."""

    def __init__(self, execution: str) -> None:
        self.execution = execution
        super().__init__(
            f"the audit record does not know execution {execution}, so its workflow is not known: retry it without "
            "another version, or start PostgreSQL and the audit writer"
        )


class StartUnconfirmed(LogUnavailable):
    """Kafka did not acknowledge a start. `sent`: it may have been taken all the same, as execution `execution`."""

    def __init__(self, execution: str, sent: bool, reason: str) -> None:
        self.execution, self.sent = execution, sent
        outcome = (
            f"whether execution {execution} was started is not known: look for it later, or start it again with "
            "the same key"
            if sent
            else f"execution {execution} was not started: start it again"
        )
        super().__init__(f"{reason}; {outcome}")

    @property
    def code(self) -> str:
        """A stable word for it."""
        return "start_unconfirmed" if self.sent else "not_started"


class NotSent(FlowPilotError):
    """The log refused the record for good."""


class ExecutionEndedBadly(FlowPilotError):
    """The root of the ways in which an execution ends without an output."""

    def __init__(self, execution: str, message: str) -> None:
        self.execution = execution
        super().__init__(f"{message}; `flowpilot execution show {execution}` tells the steps")


class ExecutionFailed(ExecutionEndedBadly):
    """The execution failed. `errors`: by failed step, `{"kind", "message"}`; `reason`: `timed_out` where the whole
    execution was, else None."""

    def __init__(self, execution: str, errors: dict[str, Any], reason: str | None = None) -> None:
        self.errors, self.reason = errors, reason
        failures = "; ".join(f"step {step}: {_sentence(error)}" for step, error in errors.items())
        super().__init__(execution, f"execution {execution} failed: {failures or reason or 'no step is named'}")


class ExecutionCancelled(ExecutionEndedBadly):
    """The execution was cancelled; `reason` is the one that was given, if any."""

    def __init__(self, execution: str, reason: str | None) -> None:
        self.reason = reason
        super().__init__(execution, f"execution {execution} was cancelled" + (f": {reason}" if reason else ""))


class ExecutionRefused(ExecutionEndedBadly):
    """The execution never began; `reason` says why."""

    def __init__(self, execution: str, reason: str | None) -> None:
        self.reason = reason
        super().__init__(execution, f"execution {execution} was refused" + (f": {reason}" if reason else ""))


class ResultOmitted(FlowPilotError):
    """It completed, but the outputs of its last steps together are too large for one result."""

    def __init__(self, execution: str) -> None:
        self.execution = execution
        super().__init__(
            f"execution {execution} completed, but the outputs of its last steps are together beyond "
            "FLOWPILOT_STEP_INPUTS_LIMIT and were left out: mark one step with output=True, let a last step gather "
            f"what is wanted, or read each with `flowpilot execution show {execution} -o json`"
        )


class ExecutionExists(FlowPilotError):
    """`if_exists="fail"`: the key has an execution already. `conflict`: that was started with another input."""

    def __init__(self, execution: str, key: str | None, *, conflict: bool) -> None:
        self.execution, self.key, self.conflict = execution, key, conflict
        other = " with another input" if conflict else ""
        super().__init__(f"key {key!r} has an execution already{other}: {execution}")


class RetryRefused(FlowPilotError):
    """The engine makes no retry. `refusal`: results_gone, input_gone, input_too_large, in_progress, incident,
    completed, never_began, input_invalid, other_version, too_many_retries or unknown_execution."""

    def __init__(self, execution: str, refusal: str, detail: str) -> None:
        self.execution, self.refusal = execution, refusal
        super().__init__(f"no retry of execution {execution} ({refusal}): {detail}")


class RetryUnanswered(FlowPilotError, TimeoutError):
    """The engine did not answer in time; the request stays in the log and may be taken up later."""

    def __init__(self, execution: str, timeout: float) -> None:
        self.execution = execution
        super().__init__(
            f"no engine answered within {timeout:g} s; it may retry execution {execution} yet, see "
            f"`flowpilot execution show {execution}` before asking again"
        )


class ResultTimeout(FlowPilotError, TimeoutError):
    """The execution had not ended in time; it goes on."""

    def __init__(self, execution: str, timeout: float) -> None:
        self.execution = execution
        super().__init__(
            f"execution {execution} had not ended after {timeout:g} s; it goes on, "
            f"see `flowpilot execution show {execution}`"
        )


def _sentence(error: Any) -> str:
    if isinstance(error, dict):
        return f"{error.get('kind', 'error')}: {error.get('message', '')}".rstrip(": ")
    return str(error)
