"""What the core decides: events in the past tense. An execution's state is the fold of its events.

They go to the history topic under their class's name, but for those in `UNRECORDED`, which only move state, and
those in `UNTOLD`, which are sent on otherwise.
Their fields stand in `flowpilot_schemas.history.FIELDS`, but for outputs and inputs: those lie under keys of
their own and are added when a history record is rendered, so that the outbox stays small.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Json = Any


class ExecutionStarted(NamedTuple):
    workflow: str
    version: str
    definition: str
    key: str | None
    origin: Json
    created_by: str | None
    input_size: int
    retry: Json = None  # of `RetryOf`, what the history tells
    taken: Json = None  # [order, size, place] of each step that was completed before; the places follow
    places: Json = None


class StartRefused(NamedTuple):
    workflow: str
    version: str
    definition: str
    reason: str
    detail: str
    key: str | None
    origin: Json
    created_by: str | None
    retry: Json = None


class StartDeduplicated(NamedTuple):
    origin: Json
    created_by: str | None


class KeyConflict(NamedTuple):
    origin: Json
    created_by: str | None
    input_hash: str


class StepReady(NamedTuple):
    step: str
    attempt: int
    queue: str
    last_heartbeat: Json = None


class StepNotServed(NamedTuple):
    """A worker does not run the step: the first such report of an attempt, which is sent on."""

    step: str
    attempt: int
    detail: str
    worker_id: str | None
    broker_task_id: str | None


class RedispatchScheduled(NamedTuple):
    """The attempt is sent again at `resend_at` (ms); to that partition, or by its key."""

    step: str
    resend_at: int
    partition: int | None


class StepRedispatched(NamedTuple):
    """The step message of an attempt is sent once more. `not_after` (ms) is that of the first dispatch."""

    step: str
    attempt: int
    queue: str
    dispatch: int
    partition: int | None
    not_after: int
    last_heartbeat: Json = None


class StepStarted(NamedTuple):
    step: str
    attempt: int
    worker_id: str | None
    broker_task_id: str | None
    started_at: str | None


class HeartbeatTaken(NamedTuple):
    step: str
    details: Json


class StepCompleted(NamedTuple):
    step: str
    attempt: int
    size: int
    worker_id: str | None
    broker_task_id: str | None
    started_at: str | None


class StepFailed(NamedTuple):
    step: str
    attempt: int
    error: Json
    worker_id: str | None
    broker_task_id: str | None
    started_at: str | None


class StepTimedOut(NamedTuple):
    step: str
    attempt: int
    timeout: str
    outcome: str


class StepRetryScheduled(NamedTuple):
    step: str
    attempt: int
    next_attempt: int
    retry_at: int
    error: Json
    worker_id: str | None
    broker_task_id: str | None


class StepSkipped(NamedTuple):
    step: str
    because_of: str


class StepCancelled(NamedTuple):
    step: str
    attempt: int


class CompletionIgnored(NamedTuple):
    step: str
    attempt: int
    answer: str
    reason: str
    worker_id: str | None


class DispatchFailed(NamedTuple):
    step: str
    attempt: int
    detail: str


class CancelIgnored(NamedTuple):
    actor: str
    reason: str


class RetryRefused(NamedTuple):
    of: str
    actor: str
    reason: str
    request: str
    refusal: str
    detail: str
    running: str | None
    reply: Json


class RetryBegun(NamedTuple):
    """On the root: it has one more retry (`Retry`, as a list), and `start` is sent. At `check_at` it is checked."""

    retry: Json
    start: Json
    check_at: int


class RetryKnown(NamedTuple):
    """On the root: the request was answered with this retry before."""

    of: str
    request: str
    retry: str
    reply: Json


class RetryOver(NamedTuple):
    """On the root: one of its retries has ended."""

    number: int
    run: int
    status: str
    until: int


class RetryChecked(NamedTuple):
    """On the root: the retry that it waits for is sent `check`, and is to be checked again at `check_at`."""

    check: Json
    check_at: int | None


class RetryDisowned(NamedTuple):
    """On the root: a run that it knows nothing of called itself its retry, and is forgotten."""

    retry: str
    run: int


class RetryEndTold(NamedTuple):
    """On a retry that has ended: its root is told so once more."""

    status: str


class FamilyForgotten(NamedTuple):
    """On the root: it is forgotten, and these retries ([execution, run]) with it."""

    retries: Json


class ExecutionCompleted(NamedTuple):
    pass


class ExecutionFailed(NamedTuple):
    errors: Json
    reason: str | None  # None: no step is open, and some failed
    detail: str | None = None


class ExecutionCancelled(NamedTuple):
    actor: str
    reason: str


class ExecutionIncident(NamedTuple):
    detail: str


CoreEvent = (
    ExecutionStarted
    | StartRefused
    | StartDeduplicated
    | KeyConflict
    | StepReady
    | StepNotServed
    | RedispatchScheduled
    | StepRedispatched
    | StepStarted
    | HeartbeatTaken
    | StepCompleted
    | StepFailed
    | StepTimedOut
    | StepRetryScheduled
    | StepSkipped
    | StepCancelled
    | CompletionIgnored
    | DispatchFailed
    | CancelIgnored
    | RetryRefused
    | RetryBegun
    | RetryKnown
    | RetryOver
    | RetryChecked
    | RetryDisowned
    | RetryEndTold
    | FamilyForgotten
    | ExecutionCompleted
    | ExecutionFailed
    | ExecutionCancelled
    | ExecutionIncident
)

CLASSES: dict[str, type[CoreEvent]] = {cls.__name__: cls for cls in CoreEvent.__args__}
UNRECORDED = (HeartbeatTaken, RedispatchScheduled, RetryOver)
UNTOLD = (
    StepRedispatched,
    RetryBegun,
    RetryKnown,
    RetryChecked,
    RetryDisowned,
    RetryEndTold,
    FamilyForgotten,
)


def pack(event: CoreEvent) -> list[Json]:
    """The event as a JSON array: its name, then its fields."""
    return [type(event).__name__, *event]


def unpack(packed: list[Json]) -> CoreEvent:
    """The inverse of `pack`."""
    return CLASSES[packed[0]](*packed[1:])
