"""Retries: what the root R of a family decides about them, from its own state alone.

R knows of each `R.n` whether it has ended, in which run, and what it shares with whom. One retry of a family runs
at a time, so that no step is done by two of them. The family is forgotten as a whole: its results lie under the
keys of those that made them, and none goes while another may refer to it.
"""

from __future__ import annotations

from flowpilot.core import events as e
from flowpilot.core import family
from flowpilot.core.clip import clipped
from flowpilot.core.decision import Decision
from flowpilot.core.family import window_after_end
from flowpilot.core.notices import LATEST_START_MS
from flowpilot.core.refusals import next_number, why_not
from flowpilot.core.state import Execution, Retry
from flowpilot.core.status import TERMINAL_EXECUTION, ExecutionStatus
from flowpilot_schemas.ids import retry_id, retry_number, root_id
from flowpilot_schemas.messages import (
    RetryCheck,
    RetryEnded,
    RetryExecution,
    RetryForget,
    RetryOf,
    StartExecution,
)
from flowpilot_schemas.topics import DAY

# What a root waits for comes, unless three processes ended over it: so it asks now and then.
CHECK_EVERY_MS = DAY
OF_FAMILIES = (
    *(e.RetryRefused, e.RetryBegun, e.RetryKnown, e.RetryOver),
    *(e.RetryChecked, e.RetryDisowned, e.RetryEndTold, e.FamilyForgotten),
)

# As bytes of JSON.
_TEXT_LIMIT = 1_000


def is_late(message: StartExecution, at: int) -> bool:
    """Whether the start of a retry comes so late that its family may have been forgotten meanwhile."""
    asked_at = message.retry.asked_at if message.retry else None
    return asked_at is not None and at - asked_at > LATEST_START_MS


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
        traceparent=message.traceparent,
    )


def is_stand_in(state: Execution) -> bool:
    """Whether the execution itself is not known, but retries of it."""
    return state.forgotten and state.input_hash is None


def is_marker(state: Execution) -> bool:
    """Whether nothing is left of it to be known: a root that was forgotten may still have retries."""
    return state.forgotten and not state.retries


def inherited(before: Execution | None, decision: Decision) -> Decision:
    """A new run of a root that has retries: they are still those of its id. So are the records whose input was
    refused."""
    if before is not None and before.refused_origins:
        decision = decision._replace(state=decision.state._replace(refused_origins=before.refused_origins))
    if before is None or not before.retries:
        return decision
    state, until = decision.state, decision.state.forget_at
    retries, kept = before.retries, before.forget_at if family.open_retry(before.retries) else None
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


def decide_retry(state: Execution, message: RetryExecution, at: int, permitted: int) -> list[e.CoreEvent]:
    """What the root `state` answers to a request. The caller made sure that it is known or can begin anew.

    `permitted` is the highest rule set that may be asked for there.
    """
    reply = message.reply.model_dump(mode="json", exclude_none=True) if message.reply else None
    for retry in state.retries:
        if retry.request == message.request:
            return [e.RetryKnown(message.execution, message.request, retry_id(state.id, retry.number), reply)]
    refusal = why_not(state, message, permitted)
    if refusal is not None:
        asked = (clipped(message.actor, _TEXT_LIMIT), clipped(message.reason, _TEXT_LIMIT), message.request)
        refused = e.RetryRefused(message.execution, *asked, *refusal, reply)
        running = family.open_retry(state.retries)
        return [refused, _checked(state, running, state.forget_at)] if running is not None else [refused]
    return [_begin(state, message, at)]


def again(state: Execution, event: e.CoreEvent) -> e.CoreEvent:
    """`event` of an outbox, as it is sent once more. What a retry's end was folded from, began: a start that came
    after the retry is forgotten would begin another."""
    if not isinstance(event, e.RetryBegun):
        return event
    begun, start = Retry(*event.retry), event.start
    known = family.find(state, begun.number)
    if known is not None and known.is_open and known.request == begun.request:
        return event
    return e.RetryKnown(start["retry"]["execution"], begun.request, start["execution"], start.get("reply"))


def decide_ended(state: Execution, message: RetryEnded) -> list[e.CoreEvent]:
    """A retry says that it is over; said again, it changes nothing. One of an earlier family can go."""
    if is_foreign(state, message):
        return [e.RetryDisowned(message.retry, message.run)]
    retry = family.find(state, retry_number(message.retry))
    return (
        [e.RetryOver(retry.number, message.run, message.status, message.until)] if retry and retry.is_open else []
    )


def is_foreign(state: Execution, message: RetryEnded) -> bool:
    """Whether what has ended is no retry that the root has, or another run of one."""
    retry = family.find(state, retry_number(message.retry))
    return retry is None or retry.request != message.request or retry.run not in (None, message.run)


def decide_forget(state: Execution, at: int) -> e.CoreEvent:
    """The time has come to forget a root and its retries, or to look after the one that runs."""
    running = family.open_retry(state.retries)
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
            return state._replace(retries=retries, forget_at=family.window(retries) if over else None)
        case e.RetryChecked():
            return state._replace(forget_at=event.check_at)
        case e.FamilyForgotten():
            return forget(state)
        case _:
            return state


def forget(state: Execution) -> Execution:
    """The marker that stays until the outbox is surely sent. Every fold passes over it as if it were gone.

    It keeps what the outbox is rendered from: where the client waits too, and what record a dead letter is of.
    """
    return state._replace(
        forgotten=True,
        steps=(),
        open=0,
        deadline=None,
        forget_at=None,
        ignored=(),
        key=None,
        origin=state.origin if state.released else None,
        refused_origins=(),
        retries=(),
        last_retry=0,
    )


def _checked(state: Execution, running: Retry, check_at: int | None) -> e.RetryChecked:
    check = RetryCheck(
        execution=retry_id(state.id, running.number),
        workflow=state.workflow,
        version=running.version,
        definition=running.definition,
        retry=RetryOf(
            execution=retry_id(state.id, running.of),
            run=family.run_of(state, running.of),
            request=running.request,
            actor="flowpilot",
            from_start=running.from_start,
        ),
    )
    return e.RetryChecked(check.model_dump(mode="json", exclude_none=True), check_at)


def _begin(state: Execution, message: RetryExecution, at: int) -> e.RetryBegun:
    of = retry_number(message.execution)
    number = next_number(state, message)
    retried = family.find(state, of)
    if message.definition is not None and message.version is not None:
        version, definition = message.version, message.definition
    elif retried is not None:
        version, definition = retried.version, retried.definition
    else:
        version, definition = state.version, state.definition
    input_of = family.input_of(state, of)
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
            run=family.run_of(state, of),
            request=message.request,
            actor=actor,
            reason=reason,
            from_start=message.from_start,
            shares=[] if message.from_start else family.places(state, of),
            input_of=input_of,
            asked_at=at,
        ),
        traceparent=state.traceparent,
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
