"""What an owner does between batches. None of it decides anything: timers and forgetting go through the log,
and a tombstone only removes what every later fold would pass over."""

from __future__ import annotations

from collections.abc import Iterator

from flowpilot.core.lineage import is_marker
from flowpilot.core.state import decode_execution
from flowpilot.engine.claim import EventsTopic
from flowpilot.engine.keys import state_key
from flowpilot.engine.owned import OwnedPartition
from flowpilot.engine.table import Entry
from flowpilot.ports.log import Record
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.ids import root_id

# A timer that fired is armed again until the state no longer has the deadline: soon at first, since this machine's
# clock may be a few milliseconds ahead of the broker's, and then with the delay that it has already.
_REARM_MS = (50, 1_000)
_TIMERS_AT_ONCE = 500
_FORGET_EVERY_MS = 1_000
_FORGOTTEN_AT_ONCE = 2_000
_TOMBSTONES_AT_ONCE = 2_000


def due_events(owned: OwnedPartition, events: EventsTopic, now: int) -> Iterator[Record]:
    """The events that ask the fold to look at deadlines and windows that have passed by this machine's clock."""
    for execution in owned.deadlines.reached(now, _TIMERS_AT_ONCE):
        stored = owned.table.get(state_key(execution))
        if stored is None:
            owned.deadlines.set(execution, None)
            continue
        state = decode_execution(stored)
        soonest, latest = _REARM_MS
        late = soonest if state.due is None else now - state.due
        owned.deadlines.set(execution, now + max(soonest, min(late, latest)))
        fired = m.TimerFired(execution=execution, run=state.run)
        key = root_id(execution).encode()
        yield Record(events.topics.events, key, encode_message(fired), owned.partition)
    if now - owned.forget_asked_at < _FORGET_EVERY_MS:
        return
    over = owned.forgets.reached(now, _FORGOTTEN_AT_ONCE)
    if over:
        owned.forget_asked_at = now
        before = owned.forgets.due(over[-1])
        yield Record(events.topics.events, None, encode_message(m.Forget(before=before)), owned.partition)


def next_due(owned: OwnedPartition) -> int | None:
    """The time (ms) at which `due_events` has something to say next."""
    deadline, forget = owned.deadlines.earliest(), owned.forgets.earliest()
    if forget is not None:
        forget = max(forget, owned.forget_asked_at + _FORGET_EVERY_MS)
    return min([due for due in (deadline, forget) if due is not None], default=None)


def tombstones(owned: OwnedPartition) -> dict[bytes, Entry]:
    """The keys that may go: payloads of runs that are over, then markers, once all that needs them was sent."""
    entries: dict[bytes, Entry] = {}
    while owned.ended and owned.ended[0].after <= owned.sent_through and len(entries) < _TOMBSTONES_AT_ONCE:
        ended = owned.ended.popleft()
        for key in ended.keys:
            if owned.table.entry(key) is not None:
                entries[key] = Entry(None, ended.after, owned.epoch)
    if owned.ended and owned.ended[0].after <= owned.sent_through:
        return entries
    while owned.markers and owned.markers[0][1] <= owned.sent_through:
        execution, _ = owned.markers.popleft()
        key = state_key(execution)
        stored = owned.table.get(key)
        state = decode_execution(stored) if stored is not None else None
        if state is not None and is_marker(state) and state.src <= owned.sent_through:
            entries[key] = Entry(None, state.src, owned.epoch)
    return entries
