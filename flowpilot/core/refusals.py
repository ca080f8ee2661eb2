"""Why an execution is not retried."""

from __future__ import annotations

from typing import NamedTuple

from flowpilot.core import family
from flowpilot.core.state import Execution
from flowpilot.core.status import TERMINAL_EXECUTION, ExecutionStatus
from flowpilot_schemas.codec import encode
from flowpilot_schemas.ids import MAX_RETRY, retry_id, retry_number
from flowpilot_schemas.messages import RetryExecution

_FROM_START = "from the start (--from-start; over HTTP, and in Python, from_start)"
# The root's state is written with each of them.
MOST_RETRIES = 1_000


class Refusal(NamedTuple):
    """Why there is no retry: a stable word, a sentence that says what to do, and the retry that runs meanwhile."""

    reason: str
    detail: str
    running: str | None = None


def is_known(state: Execution | None, message: RetryExecution) -> bool:
    """Whether the execution to be retried is still held: the root itself, or as one of its retries."""
    if state is None:
        return False
    number = retry_number(message.execution)
    return not state.forgotten if number == 0 else not state.forgotten or family.find(state, number) is not None


def can_begin_anew(message: RetryExecution) -> bool:
    """Whether the message alone has all that a retry from the start needs."""
    return (
        message.from_start
        and message.input is not None
        and None not in (message.workflow, message.version, message.definition)
    )


def above(rules: int, permitted: int) -> str:
    """For a start, or a request for one, that asks for a rule set which is not permitted where it lies."""
    return (
        f"it asks for rule set {rules}, and {permitted} is the highest that is permitted here: leave `rules` out, "
        "or run `flowpilot setup` when all engines are of a release that has it"
    )


def gone(message: RetryExecution) -> Refusal:
    """For an execution that is no longer held, or never was."""
    if message.from_start:
        what = "neither the engine nor the audit record has its input: start it again with that input"
        return Refusal("input_gone", f"execution {message.execution} is not held any more, and {what}")
    return Refusal(
        "results_gone",
        f"the results of execution {message.execution} are gone: its retry_window has passed, or it never was; "
        f"retry it {_FROM_START}",
    )


def why_not(state: Execution, message: RetryExecution, permitted: int) -> Refusal | None:
    """Why the root `state` grants no retry; None if it does. `permitted`: the highest rule set there."""
    if message.rules is not None and message.rules > permitted:
        return Refusal("rules_not_permitted", above(message.rules, permitted))
    execution, number = message.execution, retry_number(message.execution)
    retry = family.find(state, number)
    status: str | None = str(state.status) if number == 0 else retry.status if retry else None
    if number == 0 and state.refused:
        status = "refused"
    anew = can_begin_anew(message)
    if number and retry is None and not anew:
        return Refusal("unknown_execution", f"no execution {execution} is known; `execution show` has the retries")
    running = family.open_retry(state.retries)
    if running is not None:
        name = retry_id(state.id, running.number)
        what = "runs" if name == execution else f"is being retried already: {name} runs"
        return Refusal("in_progress", f"execution {execution} {what}; wait for its end, or cancel it first", name)
    if state.status is ExecutionStatus.INCIDENT and not state.forgotten:
        return Refusal("incident", f"execution {state.id} stands still after a defect; cancel it first")
    if state.status not in TERMINAL_EXECUTION:
        return Refusal("in_progress", f"execution {state.id} runs; wait for its end, or cancel it first")
    if len(state.retries) >= MOST_RETRIES or next_number(state, message) > MAX_RETRY:
        most = MOST_RETRIES if len(state.retries) >= MOST_RETRIES else MAX_RETRY
        return Refusal("too_many_retries", f"execution {state.id} has had {most} retries; start anew instead")
    if number == 0 and state.released and not state.forgotten:
        what = f"the input of execution {execution} does not fit its type, and its key is free"
        detail = f"{what}; start it again with another input"
        return Refusal("input_invalid", detail)
    if message.from_start:
        if family.input_of(state, number) is not None:
            return None
        return _too_large(message) if anew else gone(message)
    if message.definition is not None:
        return Refusal("other_version", f"another version can only be retried {_FROM_START}")
    if status == "refused":
        return Refusal("never_began", f"execution {execution} never began, its start was refused; start it again")
    if status == "completed":
        return Refusal("completed", f"execution {execution} has completed; to run it again, retry it {_FROM_START}")
    return None


def _too_large(message: RetryExecution) -> Refusal | None:
    """The input that is given would be kept in the root's state until it is sent."""
    size, limit = len(encode(message.input.value)) if message.input else 0, message.limits.input
    if size <= limit:
        return None
    return Refusal("input_too_large", f"the input has {size} bytes; the limit (FLOWPILOT_TRIGGER_LIMIT) is {limit}")


def next_number(state: Execution, message: RetryExecution) -> int:
    """The n of the next `R.n`: beyond all that the root, the asker and the request know of."""
    return max(state.last_retry, message.known, retry_number(message.execution)) + 1
