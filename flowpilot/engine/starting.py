"""A start whose id is free: the run begins, or the start is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowpilot.core import decide, lineage, refusals
from flowpilot.core.decision import Decision
from flowpilot.core.payloads import PayloadGone
from flowpilot.core.state import Execution
from flowpilot.engine.keys import input_key
from flowpilot.engine.overlay import Overlay
from flowpilot.ports.log import Fetched
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import encode
from flowpilot_schemas.definition import WorkflowDefinition

Known = Callable[[str], WorkflowDefinition | None]


def holds(state: Execution, message: m.StartExecution) -> bool:
    """Whether `state` holds the id against `message`.

    An execution that was forgotten, that never began, or whose input a worker refused, gives way to a new run. Two
    starts begin none: a copy of a retry's only start, and a trigger record whose input was refused, read again.
    """
    if state.forgotten:
        return False
    if message.retry is not None:
        return True
    return not (state.refused or state.released) or state.has_refused(_origin_of(message))


def _origin_of(message: m.StartExecution) -> dict[str, Any] | None:
    return message.origin.model_dump() if message.origin is not None else None


def begin(record: Fetched, message: m.StartExecution, overlay: Overlay, known: Known) -> Decision:
    """The run that `message` begins, its input and definition in `overlay`; or why it does not begin.

    `known` has the definitions that the partition has no copy of.
    """
    given, place = encode(message.input), (message.retry.input_of if message.retry else None)
    reason, detail, definition = "", "", None
    permitted = overlay.rule_sets().permitted_at(record.offset)
    rules = permitted if message.rules is None else message.rules
    message = message.model_copy(update={"rules": rules})
    if rules > permitted:
        reason, detail = "rules_not_permitted", refusals.above(rules, permitted)
    elif lineage.is_late(message, record.timestamp):
        reason, detail = "too_late", "it was asked for more than a day before it began; ask for another retry"
    elif place is not None:
        try:
            given = overlay.input(*place)
        except PayloadGone:
            reason, detail = "results_gone", f"the input of execution {place[0]} is gone"
    if not reason:
        reason, detail, definition = _why_refused(message, given, overlay, known)
    if definition is None or reason:
        return decide.refuse_start(message, reason, detail, record.timestamp, record.offset)
    if place is None:
        overlay.put_payload(input_key(message.execution, record.offset), given, record.offset)
    taken = _taken(overlay, definition, message.retry) if message.retry else ()
    started = decide.decide_start(definition, message, len(given), record.timestamp, record.offset, taken)
    if overlay.definition(definition.hash) is None:
        overlay.put_definition(definition, record.offset)
    return started


def _why_refused(
    message: m.StartExecution, given: bytes, overlay: Overlay, known: Known
) -> tuple[str, str, WorkflowDefinition | None]:
    definition = overlay.definition(message.definition) or known(message.definition)
    if definition is None:
        return "unknown_definition", f"no definition {message.definition} is registered", None
    if (definition.name, definition.version) != (message.workflow, message.version):
        theirs = f"{definition.name} version {definition.version}"
        return "other_definition", f"the definition {message.definition} is that of {theirs}", definition
    if len(given) > message.limits.input:
        limit = f"the limit (FLOWPILOT_TRIGGER_LIMIT) is {message.limits.input}"
        return "input_too_large", f"the input has {len(given)} bytes; {limit}", definition
    return "", "", definition


def _taken(overlay: Overlay, definition: WorkflowDefinition, retry: m.RetryOf) -> list[decide.Taken]:
    """The steps whose outputs are there already: written once, by those that the retry shares results with,
    all of which have ended; what they hold cannot change any more, nor go before the retry is forgotten."""
    taken: list[decide.Taken] = []
    for order, step in enumerate(definition.steps):
        for number, (execution, run) in enumerate(retry.shares):
            try:
                size = len(overlay.output(execution, run, step.name))
            except PayloadGone:
                continue
            taken.append(decide.Taken(order, size, number))
            break
    return taken
