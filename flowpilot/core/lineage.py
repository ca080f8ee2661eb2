"""Retries: what the root R of a family decides about them, from its own state alone.

R knows of each `R.n` whether it has ended, in which run, and what it shares with whom. One retry of a family runs
at a time, so that no step is done by two of them. The family is forgotten as a whole: its results lie under the
keys of those that made them, and none goes while another may refer to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flowpilot.core import events as e
from flowpilot.core.clip import clipped
from flowpilot.core.decision import Decision
from flowpilot.core.state import Execution, Retry
from flowpilot.core.status import TERMINAL_EXECUTION, ExecutionStatus
from flowpilot_schemas.ids import retry_id, retry_number, root_id
from flowpilot_schemas.messages import RetryEnded, RetryExecution, RetryForget, RetryOf, StartExecution

# The root's state is written with each of them.
MOST_RETRIES = 1_000
OF_ROOTS = (e.RetryRefused, e.RetryBegun, e.RetryKnown, e.RetryOver, e.FamilyForgotten)

# As bytes of JSON.
_TEXT_LIMIT = 1_000


class Refusal(NamedTuple):
    """Why there is no retry: a stable word, a sentence that says what to do, and the retry that runs meanwhile."""

    reason: str
    detail: str
    running: str | None = None


def family_window(retries: Sequence[Retry], until: int) -> int | None:
    """When a family may be forgotten, if its root alone might be at `until`; None while a retry runs."""
    if any(retry.is_open for retry in retries):
        return None
    return max([until, *(retry.until for retry in retries)])


def is_known(state: Execution | None, message: RetryExecution) -> bool:
    """Whether the execution to be retried is still held: the root itself, or as one of its retries."""
    if state is None:
        return False
    number = retry_number(message.execution)
    return not state.forgotten if number == 0 else not state.forgotten or _find(state, number) is not None


def can_begin_anew(message: RetryExecution) -> bool:
    """Whether the message alone has all that a retry from the start needs."""
    return (
        message.from_start
        and message.input is not None
        and None not in (message.workflow, message.version, message.definition)
    )


def gone(message: RetryExecution) -> Refusal:
    """For an execution that is no longer held, or never was."""
    if message.from_start:
        what = "neither the engine nor the audit record has its input: start it again with that input"
        return Refusal("input_gone", f"execution {message.execution} is not held any more, and {what}")
    return Refusal(
        "results_gone",
        f"the results of execution {message.execution} are gone: its retry_window has passed, or it never was; "
        "retry it with --from-start (from_start=True)",
    )


def opened(message: RetryExecution, offset: int) -> Execution:
    """A stand-in for a root that was forgotten: it knows of retries alone."""
    return Execution(
        id=root_id(message.execution),
        run=offset,
        src=offset,
        status=ExecutionStatus.FAILED,
        workflow=message.workflow or "",
        version=message.version or "",
        definition=message.definition or "",
        forgotten=True,
    )


def is_stand_in(state: Execution) -> bool:
    """Whether the execution itself is not known, but retries of it."""
    return state.forgotten and state.seq == 0


def inherited(before: Execution | None, decision: Decision) -> Decision:
    """A new run of a root that has retries: they are still those of its id."""
    if before is None or not before.retries:
        return decision
    state = decision.state
    until = state.forget_at
    kept = family_window(before.retries, until) if until is not None else None
    return decision._replace(
        state=state._replace(retries=before.retries, last_retry=before.last_retry, forget_at=kept)
    )


def decision(state: Execution, events: list[e.CoreEvent]) -> Decision:
    """`events` and the state after them."""
    after = state
    for event in events:
        after = evolve(after, event)
    return Decision(after, events)


def goes_with(state: Execution, message: RetryForget) -> bool:
    """Whether this is the run of a retry that is forgotten with its root."""
    over = state.status in TERMINAL_EXECUTION and not state.forgotten
    return over and state.run == message.run and state.retry is not None


def decide_retry(state: Execution, message: RetryExecution, at: int) -> list[e.CoreEvent]:
    """What the root `state` answers to a request. The caller made sure that it is known or can begin anew."""
    reply = message.reply.model_dump(mode="json", exclude_none=True) if message.reply else None
    for retry in state.retries:
        if retry.request == message.request:
            return [e.RetryKnown(message.execution, message.request, retry_id(state.id, retry.number), reply)]
    refusal = _why_not(state, message)
    if refusal is not None:
        asked = (clipped(message.actor, _TEXT_LIMIT), clipped(message.reason, _TEXT_LIMIT), message.request)
        return [e.RetryRefused(message.execution, *asked, *refusal, reply)]
    return [_begin(state, message, at)]


def again(state: Execution, event: e.CoreEvent) -> e.CoreEvent:
    """`event` of an outbox, as it is sent once more. What a retry's end was folded from, began: a start that came
    after the retry is forgotten would begin another."""
    if not isinstance(event, e.RetryBegun):
        return event
    begun, start = Retry(*event.retry), event.start
    known = _find(state, begun.number)
    if known is not None and known.is_open and known.request == begun.request:
        return event
    return e.RetryKnown(start["retry"]["execution"], begun.request, start["execution"], start.get("reply"))


def decide_ended(state: Execution, message: RetryEnded) -> list[e.CoreEvent]:
    """A retry says that it is over; said again, or of an earlier family, it changes nothing."""
    retry = _find(state, retry_number(message.retry))
    if retry is None or not retry.is_open or retry.request != message.request:
        return []
    return [e.RetryOver(retry.number, message.run, message.status, message.until)]


def family_forgotten(state: Execution) -> e.FamilyForgotten:
    """The retries that are to be forgotten with their root."""
    return e.FamilyForgotten([[retry_id(state.id, retry.number), retry.run] for retry in state.retries])


def evolve(state: Execution, event: e.CoreEvent) -> Execution:
    """The root after `event`, one of `OF_ROOTS`."""
    match event:
        case e.RetryBegun():
            retry = Retry(*event.retry)
            return state._replace(retries=(*state.retries, retry), last_retry=retry.number, forget_at=None)
        case e.RetryOver():
            retries = tuple([_ended(retry, event) for retry in state.retries])
            over = state.forgotten or state.status in TERMINAL_EXECUTION
            return state._replace(retries=retries, forget_at=family_window(retries, 0) if over else None)
        case e.FamilyForgotten():
            return forget(state)
        case _:
            return state


def forget(state: Execution) -> Execution:
    """The marker that stays until the outbox is surely sent. Every fold passes over it as if it were gone."""
    return state._replace(
        forgotten=True,
        steps=(),
        open=0,
        deadline=None,
        forget_at=None,
        key=None,
        origin=None,
        reply=None,
        retries=(),
        last_retry=0,
    )


def _why_not(state: Execution, message: RetryExecution) -> Refusal | None:
    execution, number = message.execution, retry_number(message.execution)
    retry = _find(state, number)
    status: str | None = str(state.status) if number == 0 else retry.status if retry else None
    if number == 0 and state.refused:
        status = "refused"
    anew = can_begin_anew(message)
    if number and retry is None and not anew:
        return Refusal("unknown_execution", f"no execution {execution} is known; `execution show` has the retries")
    running = next((retry for retry in state.retries if retry.is_open), None)
    if running is not None:
        name = retry_id(state.id, running.number)
        what = "runs" if name == execution else f"is being retried already: {name} runs"
        return Refusal("in_progress", f"execution {execution} {what}; wait for its end, or cancel it first", name)
    if state.status is ExecutionStatus.INCIDENT and not state.forgotten:
        return Refusal("incident", f"execution {state.id} stands still after a defect; cancel it first")
    if state.status not in TERMINAL_EXECUTION:
        return Refusal("in_progress", f"execution {state.id} runs; wait for its end, or cancel it first")
    if len(state.retries) >= MOST_RETRIES:
        return Refusal("too_many_retries", f"execution {state.id} has {MOST_RETRIES} retries; start anew instead")
    if message.from_start:
        return None if anew or _input_of(state, number) is not None else gone(message)
    if message.definition is not None:
        return Refusal("other_version", "another version can only be retried from the start: add --from-start")
    if status == "refused":
        return Refusal("never_began", f"execution {execution} never began, its start was refused; start it again")
    if status == "completed":
        return Refusal(
            "completed", f"execution {execution} has completed; to run it again, retry it with --from-start"
        )
    return None


def _begin(state: Execution, message: RetryExecution, at: int) -> e.RetryBegun:
    of = retry_number(message.execution)
    number = max(state.last_retry, message.known, of) + 1
    retried = _find(state, of)
    if message.definition is not None and message.version is not None:
        version, definition = message.version, message.definition
    elif retried is not None:
        version, definition = retried.version, retried.definition
    else:
        version, definition = state.version, state.definition
    input_of = _input_of(state, of)
    actor, reason = clipped(message.actor, _TEXT_LIMIT), clipped(message.reason, _TEXT_LIMIT)
    start = StartExecution(
        execution=retry_id(state.id, number),
        workflow=state.workflow,
        version=version,
        definition=definition,
        rules=message.rules,
        limits=message.limits,
        key=state.key,
        input=message.input.value if input_of is None and message.input is not None else None,
        created_by=actor,
        reply=message.reply,
        retry=RetryOf(
            execution=message.execution,
            run=_run_of(state, of),
            request=message.request,
            actor=actor,
            reason=reason,
            from_start=message.from_start,
            shares=[] if message.from_start else _places(state, of),
            input_of=input_of,
        ),
    )
    entry = Retry(
        number, of, message.request, message.from_start, input_of is None, version, definition,
        until=max(at, state.forget_at or 0),
    )  # fmt: skip
    return e.RetryBegun(list(entry), start.model_dump(mode="json", exclude_none=True))


def _ended(retry: Retry, event: e.RetryOver) -> Retry:
    if retry.number != event.number:
        return retry
    return retry._replace(run=event.run, status=event.status, until=max(retry.until, event.until))


def _find(state: Execution, number: int) -> Retry | None:
    return next((retry for retry in state.retries if retry.number == number), None)


def _run_of(state: Execution, number: int) -> int | None:
    retry = _find(state, number)
    if retry is not None:
        return retry.run
    return state.run if number == 0 and not state.forgotten else None


def _places(state: Execution, number: int) -> list[tuple[str, int]]:
    """Where the outputs lie that the execution has: its own, and those of whom it retries, up to a fresh start."""
    places: list[tuple[str, int]] = []
    while True:
        run = _run_of(state, number)
        if run is None:
            return places
        places.append((retry_id(state.id, number), run))
        retry = _find(state, number)
        if retry is None or retry.from_start:
            return places
        number = retry.of


def _input_of(state: Execution, number: int) -> tuple[str, int] | None:
    """Where the input of the execution lies; None if nobody holds it (one that has completed keeps none)."""
    while (retry := _find(state, number)) is not None and not retry.own_input:
        number = retry.of
    run = _run_of(state, number)
    status = retry.status if retry is not None else "refused" if state.refused else str(state.status)
    if run is None or status in ("completed", "refused"):
        return None
    return retry_id(state.id, number), run
