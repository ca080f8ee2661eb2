"""One execution in a partition of its own: where it stands, and what the production fold makes of one more record.

Everything here is a value. `Situation.key` is the same for situations that cannot be told apart from here on: times
are differences to now, steps that the DAG's symmetries exchange are exchanged, and what only numbers and tells
(offsets, seq, hashes, the outbox, the words of an error) is left out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from flowpilot.core.decision import Decision
from flowpilot.core.payloads import PayloadGone
from flowpilot.core.state import Execution, StepState
from flowpilot.engine import fold as folds
from flowpilot.engine.fold import Fold, Frame
from flowpilot.engine.outputs import Output
from flowpilot.engine.overlay import Overlay
from flowpilot.engine.reading import read
from flowpilot.ports.log import Fetched
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.ids import keyed_execution_id
from flowpilot_schemas.topics import Topics
from tests.exhaustive.dags import Subject

TOPICS = Topics()
EXECUTION = keyed_execution_id("explored", "k")
T0 = 1_700_000_000_000
_NOTHING = -(10**9)


class Event(NamedTuple):
    """One record to come: what it is called in a trace, its message (None: the bytes are none), and when."""

    label: str
    message: m.Event | None
    at: int
    raw: bytes | None = None
    is_early: bool = False  # of another broker's clock, say: time itself does not pass by it
    is_defect: bool = False  # the fold of it meets a defect of ours


class Situation(NamedTuple):
    """Where the execution stands at `now`, and how it came to that. `stored`: inputs and outputs by their keys."""

    state: Execution | None
    now: int
    offset: int
    stored: dict[bytes, bytes]
    before: Situation | None = None
    event: Event | None = None
    record: Fetched | None = None
    outputs: tuple[Output, ...] = ()

    def trace(self) -> list[Event]:
        """The events that led here, the first one first."""
        found = []
        at: Situation | None = self
        while at is not None and at.event is not None:
            found.append(at.event)
            at = at.before
        return found[::-1]


class Folded(NamedTuple):
    """What one record did. `decision` is None where the fold asked the core for none, or it decided nothing."""

    record: Fetched
    state: Execution | None
    changed: bool
    stored: dict[bytes, bytes]
    outputs: tuple[Output, ...]
    decision: Decision | None


class _Watched(Fold):
    """The production fold; it remembers what was decided."""

    decision: Decision | None = None

    def _commit(self, record: Fetched, before: Any, decision: Decision, *, begins: bool = False) -> None:
        self.decision = decision
        super()._commit(record, before, decision, begins=begins)


class _Held(Overlay):
    """The production overlay over a partition that holds this execution alone, without a table of bytes."""

    def __init__(self, definition: WorkflowDefinition, state: Execution | None, stored: dict[bytes, bytes]) -> None:
        super().__init__(_NO_TABLE, {definition.hash: definition})
        self._held = stored
        self._read[EXECUTION] = state

    def _payload(self, key: bytes) -> bytes:
        found = self._payloads.get(key)
        if found is not None:
            return found[0]
        if key not in self._held:
            raise PayloadGone(key.decode())
        return self._held[key]

    def definition(self, definition_hash: str) -> WorkflowDefinition | None:
        """All definitions are the partition's own from the beginning."""
        return self._decoded.get(definition_hash)

    def payloads(self) -> dict[bytes, bytes]:
        """What is stored now."""
        if not self._payloads:
            return self._held
        return {**self._held, **{key: value for key, (value, _) in self._payloads.items()}}


class _NoTable:
    """Other executions are not there."""

    def get(self, key: bytes) -> bytes | None:
        return None


_NO_TABLE: Any = _NoTable()


def beginning() -> Situation:
    """Nothing is known of the execution."""
    return Situation(None, T0, 0, {})


def fold(subject: Subject, here: Situation, record: Fetched, *, is_defect: bool = False) -> Folded:
    """The production fold of one more record, or of the defect that it meets. Raises what it raises."""
    overlay = _Held(subject.definition, here.state, here.stored)
    state = here.state
    frame = Frame(
        partition=0,
        partitions=1,
        topics=TOPICS,
        overlay=overlay,
        recovered_watermark=-1,
        sent_through=-1,
        known=lambda _: None,
        forgettable=lambda bound: [EXECUTION] if state is not None else [],
        owing=lambda offset: [EXECUTION] if state is not None else [],
    )
    folding = _Watched(frame)
    vars(folds)["read"] = _read
    try:
        if is_defect:
            folding.fault(record, "a defect")
        else:
            folding.record(record)
    finally:
        vars(folds)["read"] = read
    after = overlay.changed.get(EXECUTION)
    return Folded(
        record,
        state if after is None else after,
        after is not None,
        overlay.payloads(),
        tuple(folding.outputs.records),
        folding.decision,
    )


@lru_cache(maxsize=100_000)
def _read_once(value: bytes) -> m.Event:
    return read(Fetched(TOPICS.events, 0, 0, 0, None, value))


def _read(record: Fetched) -> m.Event:
    """The production reading, of the same bytes but once: a message never changes."""
    return _read_once(record.value) if record.value is not None else read(record)


def record_of(event: Event, offset: int) -> Fetched:
    """The event as it lies on the events topic."""
    value = _encoded(event.message) if event.message is not None else event.raw
    return Fetched(TOPICS.events, 0, offset, event.at, EXECUTION.encode(), value)


_ENCODED: dict[int, tuple[m.Event, bytes]] = {}


def _encoded(message: m.Event) -> bytes:
    """Messages are made once each (`alphabet`), so their identity will do."""
    found = _ENCODED.get(id(message))
    if found is None or found[0] is not message:
        found = (message, encode_message(message))
        _ENCODED[id(message)] = found
    return found[1]


def key_of(subject: Subject, state: Execution | None, now: int) -> tuple[Any, ...]:
    """What tells situations apart; which ignored messages are recorded decides only what is told once more."""
    if state is None:
        return ("nothing",)
    steps = [_step_key(step, now) for step in state.steps]
    if len(subject.symmetries) > 1 and len(steps) > 1:
        steps = min([[steps[place] for place in order] for order in subject.symmetries])
    retries = tuple([(retry.from_start, retry.status or "", retry.until - now) for retry in state.retries])
    return (
        state.status,
        tuple(steps),
        _from(state.deadline, now),
        _from(state.forget_at, now),
        state.forgotten,
        state.released,
        (state.origin or {}).get("offset"),
        tuple([offset for _, _, offset in state.refused_origins]),
        retries,
    )


def _step_key(step: StepState, now: int) -> tuple[Any, ...]:
    return (
        step.status,
        step.attempt,
        _from(step.deadline, now),
        _from(step.heartbeat_deadline, now),
        _from(step.resend_at, now),
        step.dispatch,
        _NOTHING if step.partition is None else step.partition,
        step.heartbeat is not None,
    )


def _from(time: int | None, now: int) -> int:
    return _NOTHING if time is None else time - now
