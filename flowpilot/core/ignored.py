"""Which ignored reports and cancels an execution has recorded: the history gets one event each, replays none.

A record that comes again, from a restarted worker or from somebody who sends copies, is ignored each time. What is
worth a history event is the first: of each attempt and reason, and of each actor whose cancel came too late. The
state therefore remembers what was recorded. It stays small whatever comes: attempts that cannot have existed are
remembered as one a step, and after `MOST` entries a run records no further ignored messages (the engine's metric
counts all of them).
"""

from __future__ import annotations

from zlib import crc32

from flowpilot.core import events as e
from flowpilot.core.state import Execution
from flowpilot_schemas.definition import WorkflowDefinition

MOST = 256
"""Entries of a run: 3 to 8 KiB in its state."""

# The codes are in states on Kafka: a new reason goes to the end.
_REASONS = (
    *("other_run", "execution_over", "incident", "pending"),
    *("unknown_step", "stale_attempt", "unknown_attempt", "not_in_flight"),
)
_CANCEL = 100
_ANY = 0  # instead of an attempt that cannot have existed, and of a step that the definition does not have
Entry = tuple[int, int, int]
"""A reason's code; the step's place in the definition, from 1; the attempt. Of a cancel: two digests."""


def entry(definition: WorkflowDefinition, state: Execution, event: e.CompletionIgnored | e.CancelIgnored) -> Entry:
    """What `state` remembers of `event`."""
    if isinstance(event, e.CancelIgnored):
        return _CANCEL, crc32(event.reason.encode()), crc32(event.actor.encode())
    reason = _REASONS.index(event.reason)
    order = definition.index.get(event.step)
    if order is None:
        return reason, _ANY, _ANY
    existed = event.reason != "other_run" and event.attempt <= _attempts(definition, state, order)
    return reason, order + 1, event.attempt if existed else _ANY


def _attempts(definition: WorkflowDefinition, state: Execution, order: int) -> int:
    """How many attempts of a step there have been; of a run that keeps no steps, how many there can have been."""
    return state.steps[order].attempt if state.steps else definition.steps[order].retry.max_attempts


def is_recorded(state: Execution, found: Entry) -> bool:
    """Whether `found` is in the history already, or must not come there because there are too many."""
    return len(state.ignored) >= MOST or found in state.ignored


def remembered(state: Execution, found: Entry) -> tuple[Entry, ...]:
    """The entries with `found`, in an order that does not depend on which came first."""
    return tuple(sorted({*state.ignored, found}))
