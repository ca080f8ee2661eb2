"""What is wrong with a definition, and what a handler raises to steer its retries."""

from __future__ import annotations

from datetime import timedelta

from pydantic import ValidationError

from flowpilot.authoring.durations import milliseconds
from flowpilot.core.clip import clipped
from flowpilot.core.errors import FlowPilotError

# What the user wrote, for each field of a definition that may be out of range.
_WRITTEN = {
    "start_to_close_ms": "timeout",
    "schedule_to_start_ms": "schedule_to_start",
    "heartbeat_ms": "heartbeat",
    "timeout_ms": "timeout",
    "dedupe_window_ms": "dedupe_window",
    "retry_window_ms": "retry_window",
}


# Bytes of a name and of a problem, and names of a path.
_LONGEST_NAME, _LONGEST_PROBLEM, _LONGEST_PATH = 200, 1_000, 20
_LONGEST_WAIT_MS = 30 * 86_400_000


class DefinitionError(FlowPilotError):
    """A workflow is not defined as it should be: one sentence with the workflow, the step and the remedy.

    `workflow`, `step` (None: it concerns the whole) and `problem` are its parts.
    """

    def __init__(self, workflow: str, problem: str, *, step: str | None = None) -> None:
        where = f"workflow {workflow!r}" + (f", step {step!r}" if step is not None else "")
        super().__init__(f"{where}: {problem}")
        self.workflow, self.step, self.problem = workflow, step, problem


class InputInvalid(FlowPilotError):
    """What an execution was to be started with is not the workflow's input; the message says where."""


class NonRetryable(FlowPilotError):
    """Raised by a handler: this attempt failed, and no further attempt would do better. The step fails at once."""


class RetryAfter(FlowPilotError):
    """Raised by a handler: this attempt failed; the next one, if there is one, begins after `delay`.

    `delay` is a duration such as `"30s"` or a timedelta, at most 30 days.
    """

    def __init__(self, delay: str | timedelta, message: str = "") -> None:
        self.delay_ms = milliseconds(delay)
        if self.delay_ms > _LONGEST_WAIT_MS:
            raise ValueError(f"RetryAfter takes at most 30 days, not {delay}")
        super().__init__(message or f"try again after {delay}")


def first_problem(error: ValidationError) -> str:
    """The first problem in one phrase: where, and what pydantic says, without the value. It is cut to a size: a
    record's names stand in it, and what the user's validators say."""
    first = error.errors(include_url=False, include_input=False)[0]
    parts = [clipped(str(part), _LONGEST_NAME) for part in first["loc"]]
    where = ".".join(parts[:_LONGEST_PATH] + ["…"] * (len(parts) > _LONGEST_PATH))
    message = clipped(first["msg"].removeprefix("Value error, "), _LONGEST_PROBLEM)
    if first["type"] == "union_tag_invalid":
        told = first["ctx"]
        message = clipped(f"{told['discriminator']} is none of {told['expected_tags']}", _LONGEST_PROBLEM)
    return f"{_WRITTEN.get(where, where)}: {message}" if where else message
