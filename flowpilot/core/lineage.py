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
from flowpilot.core.notices import LATEST_START_MS
from flowpilot.core.state import Execution, Retry
from flowpilot.core.status import TERMINAL_EXECUTION, ExecutionStatus
from flowpilot_schemas.codec import encode
from flowpilot_schemas.ids import MAX_RETRY, retry_id, retry_number, root_id
from flowpilot_schemas.messages import (
    RetryCheck,
    RetryEnded,
    RetryExecution,
    RetryForget,
    RetryOf,
    StartExecution,
)
from flowpilot_schemas.topics import DAY

# The root's state is written with each of them.
MOST_RETRIES = 1_000
# What a root waits for comes, unless three processes ended over it: so it asks now and then.
CHECK_EVERY_MS = DAY
OF_FAMILIES = (
    *(e.RetryRefused, e.RetryBegun, e.RetryKnown, e.RetryOver),
    *(e.RetryChecked, e.RetryDisowned, e.RetryEndTold, e.FamilyForgotten),
)

# As bytes of JSON.
_TEXT_LIMIT = 1_000


class Refusal(NamedTuple):
    """Why there is no retry: a stable word, a sentence that says what to do, and the retry that runs meanwhile."""

    reason: str
    detail: str
    running: str | None = None


def window_after_end(root: Execution, until: int) -> tuple[tuple[Retry, ...], int]:
    """The retries of a root whose run has ended and is kept until then, and the root's new `forget_at`: when the
    family may be forgotten or, while a retry runs, that one is checked."""
    running = _running(root.retries)
    if running is None or root.forget_at is None:
        return root.retries, _window(root.retries, until)
    longer = running._replace(until=max(running.until, until))
    return tuple([longer if retry is running else retry for retry in root.retries]), root.forget_at


def _window(retries: Sequence[Retry], until: int = 0) -> int:
    return max([until, *(retry.until for retry in retries)])


def _running(retries: Sequence[Retry]) -> Retry | None:
    return next((retry for retry in retries if retry.is_open), None)


def is_late(message: StartExecution, at: int) -> bool:
    """Whether the start of a retry comes so late that its family may have been forgotten meanwhile."""
    asked_at = message.retry.asked_at if message.retry else None
    return asked_at is not None and at - asked_at > LATEST_START_MS


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
    return state.forgotten and state.input_hash is None


def is_marker(state: Execution) -> bool:
    """Whether nothing is left of it to be known: a root that was forgotten may still have retries."""
    return state.forgotten and not state.retries


def inherited(before: Execution | None, decision: Decision) -> Decision:
    """A new run of a root that has retries: they are still those of its id."""
    if before is None or not before.retries:
        return decision
    state, until = decision.state, decision.state.forget_at
    retries, kept = before.retries, before.forget_at if _running(before.retries) else None
    if until is not None:
        retries, kept = window_after_end(before, until)
    return decision._replace(state=state._replace(retries=retries, last_retry=before.last_retry, forget_at=kept))


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
        refused = e.RetryRefused(message.execution, *asked, *refusal, reply)
        running = _running(state.retries)
        return [refused, _checked(state, running, state.forget_at)] if running is not None else [refused]
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
    """A retry says that it is over; said again, it changes nothing. One of an earlier family can go."""
    if is_foreign(state, message):
        return [e.RetryDisowned(message.retry, message.run)]
    retry = _find(state, retry_number(message.retry))
    return (
        [e.RetryOver(retry.number, message.run, message.status, message.until)] if retry and retry.is_open else []
    )


def is_foreign(state: Execution, message: RetryEnded) -> bool:
    """Whether what has ended is no retry that the root has, or another run of one."""
    retry = _find(state, retry_number(message.retry))
    return retry is None or retry.request != message.request or retry.run not in (None, message.run)


def decide_forget(state: Execution, at: int) -> e.CoreEvent:
    """The time has come to forget a root and its retries, or to look after the one that runs."""
    running = _running(state.retries)
    if running is not None:
        return _checked(state, running, at + CHECK_EVERY_MS)
    return e.FamilyForgotten([[retry_id(state.id, retry.number), retry.run] for retry in state.retries])


def decide_check(state: Execution, message: RetryCheck) -> list[e.CoreEvent]:
    """What a retry that is held answers to its root."""
    if state.status not in TERMINAL_EXECUTION or state.retry["request"] != message.retry.request:
        return []
    return [e.RetryEndTold("refused" if state.refused else str(state.status))]


def lost_start(message: RetryCheck) -> StartExecution:
    """In the place of the start that never came."""
    return StartExecution(
        execution=message.execution,
        workflow=message.workflow,
        version=message.version,
        definition=message.definition,
        created_by=message.retry.actor,
        retry=message.retry,
    )


def evolve(state: Execution, event: e.CoreEvent) -> Execution:
    """The root after `event`, one of `OF_ROOTS`."""
    match event:
        case e.RetryBegun():
            retry = Retry(*event.retry)
            return state._replace(
                retries=(*state.retries, retry), last_retry=retry.number, forget_at=event.check_at
            )
        case e.RetryOver():
            retries = tuple([_ended(retry, event) for retry in state.retries])
            over = state.forgotten or state.status in TERMINAL_EXECUTION
            return state._replace(retries=retries, forget_at=_window(retries) if over else None)
        case e.RetryChecked():
            return state._replace(forget_at=event.check_at)
        case e.FamilyForgotten():
            return forget(state)
        case _:
            return state


def forget(state: Execution) -> Execution:
    """The marker that stays until the outbox is surely sent. Every fold passes over it as if it were gone.

    It keeps what the outbox is rendered from: where the client waits too.
    """
    return state._replace(
        forgotten=True,
        steps=(),
        open=0,
        deadline=None,
        forget_at=None,
        key=None,
        origin=None,
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
    running = _running(state.retries)
    if running is not None:
        name = retry_id(state.id, running.number)
        what = "runs" if name == execution else f"is being retried already: {name} runs"
        return Refusal("in_progress", f"execution {execution} {what}; wait for its end, or cancel it first", name)
    if state.status is ExecutionStatus.INCIDENT and not state.forgotten:
        return Refusal("incident", f"execution {state.id} stands still after a defect; cancel it first")
    if state.status not in TERMINAL_EXECUTION:
        return Refusal("in_progress", f"execution {state.id} runs; wait for its end, or cancel it first")
    if len(state.retries) >= MOST_RETRIES or _next_number(state, message) > MAX_RETRY:
        most = MOST_RETRIES if len(state.retries) >= MOST_RETRIES else MAX_RETRY
        return Refusal("too_many_retries", f"execution {state.id} has had {most} retries; start anew instead")
    if message.from_start:
        if _input_of(state, number) is not None:
            return None
        return _too_large(message) if anew else gone(message)
    if message.definition is not None:
        return Refusal("other_version", "another version can only be retried from the start: add --from-start")
    if status == "refused":
        return Refusal("never_began", f"execution {execution} never began, its start was refused; start it again")
    if status == "completed":
        return Refusal(
            "completed", f"execution {execution} has completed; to run it again, retry it with --from-start"
        )
    return None


def _too_large(message: RetryExecution) -> Refusal | None:
    """The input that is given would be kept in the root's state until it is sent."""
    size, limit = len(encode(message.input.value)) if message.input else 0, message.limits.input
    if size <= limit:
        return None
    return Refusal("input_too_large", f"the input has {size} bytes; the limit (FLOWPILOT_TRIGGER_LIMIT) is {limit}")


def _next_number(state: Execution, message: RetryExecution) -> int:
    return max(state.last_retry, message.known, retry_number(message.execution)) + 1


def _checked(state: Execution, running: Retry, check_at: int | None) -> e.RetryChecked:
    check = RetryCheck(
        execution=retry_id(state.id, running.number),
        workflow=state.workflow,
        version=running.version,
        definition=running.definition,
        retry=RetryOf(
            execution=retry_id(state.id, running.of),
            run=_run_of(state, running.of),
            request=running.request,
            actor="flowpilot",
            from_start=running.from_start,
        ),
    )
    return e.RetryChecked(check.model_dump(mode="json", exclude_none=True), check_at)


def _begin(state: Execution, message: RetryExecution, at: int) -> e.RetryBegun:
    of = retry_number(message.execution)
    number = _next_number(state, message)
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
            asked_at=at,
        ),
    )
    entry = Retry(
        number, of, message.request, message.from_start, input_of is None, version, definition,
        until=max(at, state.forget_at or 0),
    )  # fmt: skip
    return e.RetryBegun(list(entry), start.model_dump(mode="json", exclude_none=True), at + CHECK_EVERY_MS)


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
