"""An execution's state: immutable, compact, and the same bytes for the same value.

Outputs and inputs are not in it: they lie under keys of their own, written once. Times are the broker's, in ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from flowpilot.core.rule_sets import FIRST
from flowpilot.core.status import ExecutionStatus, StepStatus
from flowpilot_schemas.history import GENESIS
from flowpilot_schemas.limits import Limits
from flowpilot_schemas.topics import HOUR

REFUSAL_KEPT_MS = HOUR
# An older one that is read again begins a run that is refused again, with the same dead letter.
_REFUSED_ORIGINS_KEPT = 20

_CODES = list(StepStatus)
_CODE_OF = {status: code for code, status in enumerate(_CODES)}


class StepState(NamedTuple):
    """One task execution. `waiting` counts dependencies not yet completed, `size` is the output's bytes."""

    status: StepStatus = StepStatus.PENDING
    attempt: int = 0
    waiting: int = 0
    size: int = 0
    # ready: schedule_to_start; running: start_to_close; retrying: when it is sent again.
    deadline: int | None = None
    heartbeat_deadline: int | None = None
    # ready: when the step message is sent again, since a worker did not serve it.
    resend_at: int | None = None
    heartbeat: Any = None
    error: Any = None
    # Of the attempt: how often its message was sent, and to which partition the last one, or the next, goes.
    dispatch: int = 1
    partition: int | None = None

    @property
    def due(self) -> int | None:
        """The earliest of its deadlines."""
        if self.resend_at is not None:
            return self.resend_at if self.deadline is None else min(self.resend_at, self.deadline)
        if self.heartbeat_deadline is None or self.deadline is None:
            return self.heartbeat_deadline if self.deadline is None else self.deadline
        return min(self.deadline, self.heartbeat_deadline)


class OutboxEntry(NamedTuple):
    """A decision whose outputs may have to be sent again: rendered from here to the same bytes."""

    cause: int
    at: int
    first_seq: int
    previous: bytes
    events: list[list[Any]]
    # The run it belongs to, where a later run has taken the key before it was sent.
    of: Execution | None = None


class Retry(NamedTuple):
    """One retry `R.n` as its root R knows it. `until` (ms): at least so long the whole family is kept."""

    number: int
    of: int  # the number of the execution that it retries: 0 is the root
    request: str
    from_start: bool
    own_input: bool
    version: str
    definition: str
    until: int
    run: int | None = None
    status: str | None = None  # None: it has not ended

    @property
    def is_open(self) -> bool:
        """Whether it has not ended, as far as the root knows."""
        return self.status is None


class Execution(NamedTuple):
    """One run of an execution. `src` is the offset of the last event folded into it.

    A retry has in `retry` where it finds what it shares; its root has all retries in `retries`, the highest
    number given so far in `last_retry`, and the window of all of them in its own `forget_at`.
    """

    id: str
    run: int
    src: int
    status: ExecutionStatus
    workflow: str
    version: str
    definition: str
    limits: Limits = Limits()
    key: str | None = None
    origin: Any = None
    reply: Any = None
    input_hash: str | None = None
    input_size: int = 0
    steps: tuple[StepState, ...] = ()
    open: int = 0
    deadline: int | None = None
    forget_at: int | None = None
    refused: bool = False
    # Failed because its input does not fit a handler's type: the next start of the id begins a new run.
    released: bool = False
    # Trigger records whose input was refused so, [topic id, partition, offset] each: read again, they begin no run.
    refused_origins: Any = ()
    forgotten: bool = False
    seq: int = 0
    head: bytes = GENESIS
    retry: Any = None
    retries: tuple[Retry, ...] = ()
    last_retry: int = 0
    traceparent: str | None = None
    # The rule set by which this run is folded, from its start to its end.
    rules: int = FIRST
    # Ignored messages that the history has (`flowpilot.core.ignored`), sorted.
    ignored: tuple[tuple[int, int, int], ...] = ()
    outbox: tuple[OutboxEntry, ...] = ()

    @property
    def due(self) -> int | None:
        """The earliest deadline that a timer has to watch, None if there is none."""
        if self.status is not ExecutionStatus.RUNNING:
            return None
        times = [due for step in self.steps if (due := step.due) is not None]
        if self.deadline is not None:
            times.append(self.deadline)
        return min(times, default=None)

    def has_refused(self, origin: Mapping[str, Any] | None) -> bool:
        """Whether the input of the trigger record at `origin` was refused under this id."""
        return origin is not None and _place(origin) in map(tuple, self.refused_origins)

    def with_refused_origin(self) -> Execution:
        """Its own trigger record, if it has one, among those whose input was refused."""
        if self.origin is None:
            return self
        refused = [*self.refused_origins, list(_place(self.origin))]
        return self._replace(refused_origins=refused[-_REFUSED_ORIGINS_KEPT:])


def _place(origin: Mapping[str, Any]) -> tuple[Any, ...]:
    return (origin["topic_id"], origin["partition"], origin["offset"])


_STEP_DEFAULTS = list(StepState())


def encode_execution(state: Execution) -> bytes:
    """The value under the execution's key."""
    return orjson.dumps(_pack(state))


def _pack(state: Execution) -> dict[str, Any]:
    value: dict[str, Any] = {
        "id": state.id,
        "run": state.run,
        "src": state.src,
        "status": state.status,
        "wf": [state.workflow, state.version, state.definition],
        "seq": state.seq,
        "head": state.head.hex(),
    }
    if state.steps:
        value["steps"] = [_pack_step(step) for step in state.steps]
        value["open"] = state.open
    if state.limits is not _DEFAULT_LIMITS and state.limits != _DEFAULT_LIMITS:
        value["limits"] = state.limits.model_dump()
    for name, default in _OPTIONAL.items():
        field = getattr(state, name)
        if field != default:
            value[name] = field
    if state.ignored:
        value["ignored"] = [list(entry) for entry in state.ignored]
    if state.retries:
        value["retries"] = [list(retry) for retry in state.retries]
    if state.outbox:
        value["outbox"] = [
            [
                *(entry.cause, entry.at, entry.first_seq, entry.previous.hex(), entry.events),
                *([_pack(entry.of)] if entry.of else ()),
            ]
            for entry in state.outbox
        ]
    return value


# The fields that are left out where they have their default.
_OPTIONAL: dict[str, Any] = {
    "key": None,
    "origin": None,
    "reply": None,
    "input_hash": None,
    "input_size": 0,
    "deadline": None,
    "forget_at": None,
    "refused": False,
    "released": False,
    "refused_origins": (),
    "forgotten": False,
    "retry": None,
    "last_retry": 0,
    "traceparent": None,
    "rules": FIRST,
}
_DEFAULT_LIMITS = Limits()


def _pack_step(step: StepState) -> list[Any]:
    packed: list[Any] = [_CODE_OF[step.status], *step[1:]]
    while len(packed) > 1 and packed[-1] == _STEP_DEFAULTS[len(packed) - 1]:
        packed.pop()
    return packed


def decode_execution(data: bytes) -> Execution:
    """The inverse of `encode_execution`."""
    return _unpack(orjson.loads(data))


def _unpack(value: dict[str, Any]) -> Execution:
    workflow, version, definition = value["wf"]
    return Execution(
        id=value["id"],
        run=value["run"],
        src=value["src"],
        status=ExecutionStatus(value["status"]),
        workflow=workflow,
        version=version,
        definition=definition,
        limits=Limits(**value["limits"]) if "limits" in value else _DEFAULT_LIMITS,
        steps=tuple([StepState(_CODES[packed[0]], *packed[1:]) for packed in value.get("steps", ())]),
        open=value.get("open", 0),
        seq=value["seq"],
        head=bytes.fromhex(value["head"]),
        retries=tuple([Retry(*retry) for retry in value.get("retries", ())]),
        ignored=tuple([(reason, order, attempt) for reason, order, attempt in value.get("ignored", ())]),
        outbox=tuple(
            [
                OutboxEntry(cause, at, seq, bytes.fromhex(head), events, *map(_unpack, of))
                for cause, at, seq, head, events, *of in value.get("outbox", ())
            ]
        ),
        **{name: value[name] for name in _OPTIONAL if name in value},
    )
