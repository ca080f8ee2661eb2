"""What travels on `flowpilot.events` and `flowpilot.triggers`, and what workers receive and answer.

On the wire every type is dotted lower case. Unknown fields are ignored, so that a later release may add some;
a `v` beyond 1 is refused (see `codec.parse`). What FlowPilot says to itself stands in `flowpilot_schemas.own`, and
what all of it is made of in `flowpilot_schemas.wire`; both can be had from here.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StringConstraints

from flowpilot_schemas.ids import MAX_RETRY
from flowpilot_schemas.limits import MAX_PARTITIONS, Limits
from flowpilot_schemas.own import Forget as Forget
from flowpilot_schemas.own import RetryCheck as RetryCheck
from flowpilot_schemas.own import RetryEnded as RetryEnded
from flowpilot_schemas.own import RetryForget as RetryForget
from flowpilot_schemas.own import RetryOf as RetryOf
from flowpilot_schemas.own import RulesPermitted as RulesPermitted
from flowpilot_schemas.own import TimerFired as TimerFired
from flowpilot_schemas.tracing import Traceparent
from flowpilot_schemas.wire import Key, Message, Name, Offset, RequestId, Text
from flowpilot_schemas.wire import Origin as Origin
from flowpilot_schemas.wire import RecordHeader as RecordHeader
from flowpilot_schemas.wire import ReplyTo as ReplyTo
from flowpilot_schemas.wire import Untyped as Untyped

RULES = 1
"""The newest rule set that this release has (field `rules` of StartExecution; see `RulesPermitted`)."""


class Trigger(Message):
    """A record on `flowpilot.triggers`: start `workflow` (its current version unless named)."""

    workflow: Name
    version: Text | None = None
    key: Key | None = None
    input: JsonValue = None
    created_by: Text | None = None


class StartExecution(Message):
    """Start an execution, or find the one that the id names already. `input` was validated by the producer.

    `rules` is the rule set to fold it by, which must be permitted where the record lies (see `RulesPermitted`);
    without it, the highest that is. Only the engine starts an `R.n`: `retry` says what of (see `RetryExecution`).
    `traceparent` (W3C Trace Context) goes with every step message; what is none is ignored.
    """

    type: Literal["execution.start"] = "execution.start"
    execution: Text
    workflow: Name
    version: Text
    definition: Text
    rules: Annotated[int, Field(ge=1)] | None = None
    limits: Limits = Limits()
    key: Key | None = None
    input: JsonValue = None
    origin: Origin | None = None
    created_by: Text | None = None
    reply: ReplyTo | None = None
    retry: RetryOf | None = None
    traceparent: Traceparent = None


class GivenInput(BaseModel):
    """An input that may be null."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    value: JsonValue = None


class RetryExecution(Message):
    """Ask for a new execution `R.n` that retries `execution`, which is R or one of its retries.

    The same `request` twice makes one retry. With `from_start` nothing is shared, and `version` with its
    `definition` may be another than the retried one's. `workflow`, `version`, `definition` and `input` are needed
    where the engine no longer holds the execution, and its `traceparent` is heeded there; `known` is the highest n
    that the asker knows of.
    """

    type: Literal["execution.retry"] = "execution.retry"
    execution: Text
    request: RequestId
    actor: Text
    reason: Text = ""
    from_start: bool = False
    workflow: Name | None = None
    version: Text | None = None
    definition: Text | None = None
    input: GivenInput | None = None
    known: Annotated[int, Field(ge=0, le=MAX_RETRY)] = 0
    rules: Annotated[int, Field(ge=1)] | None = None
    limits: Limits = Limits()
    reply: ReplyTo | None = None
    traceparent: Traceparent = None


class CancelExecution(Message):
    """Cancel an execution. Without `run`, the run that the engine holds."""

    type: Literal["execution.cancel"] = "execution.cancel"
    execution: Text
    run: Offset | None = None
    actor: Text
    reason: Text = ""


class StepError(BaseModel):
    """Why an attempt failed. `kind` is the exception's class name or a reserved word (`RESERVED_KINDS`)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    message: str = ""
    retryable: bool = True
    retry_after_ms: Annotated[int, Field(ge=0, le=30 * 86_400_000)] | None = None


NOT_SERVED = "not_served"
"""The kind with which a worker reports a step that it does not run: it is sent to another partition."""
INPUT_INVALID = "input_invalid"
"""The execution's own input does not fit the type of a step's parameter: the execution fails as a whole."""

RESERVED_KINDS = frozenset(
    {
        "timed_out",
        NOT_SERVED,
        "result_too_large",
        "result_not_serialisable",
        INPUT_INVALID,
        "arguments_invalid",
        "input_too_large",
        "worker_lost",
        "dispatch_failed",
    }
)


def _up_to(most: int) -> BeforeValidator:
    return BeforeValidator(lambda value: value if type(value) is int and 1 <= value <= most else None)


Dispatch = Annotated[int | None, _up_to(2**31)]
Partitions = Annotated[int | None, _up_to(MAX_PARTITIONS)]


class _Answer(Message):
    task_id: Text
    worker_id: Text | None = None
    broker_task_id: Text | None = None  # topic/partition/offset of the step message


class StepCompleted(_Answer):
    """The attempt succeeded."""

    type: Literal["step.completed"] = "step.completed"
    output: JsonValue = None
    started_at: Text | None = None


class StepFailed(_Answer):
    """The attempt failed; whether there is another is the engine's decision.

    With the kind `not_served` nothing was tried: `dispatch` is the step message's, and `partitions` how many the
    queue's topic has. A value out of range is as good as none.
    """

    type: Literal["step.failed"] = "step.failed"
    error: StepError
    started_at: Text | None = None
    dispatch: Dispatch = None
    partitions: Partitions = None


class StepStarted(_Answer):
    """The worker runs the attempt and heartbeats for it: the engine's timers watch it from now on."""

    type: Literal["step.started"] = "step.started"
    started_at: Text | None = None


class StepHeartbeat(_Answer):
    """The attempt is alive. `details` are given to the next attempt as `last_heartbeat`."""

    type: Literal["step.heartbeat"] = "step.heartbeat"
    details: JsonValue = None


Event = (
    StartExecution
    | RetryExecution
    | RetryEnded
    | RetryCheck
    | RetryForget
    | CancelExecution
    | StepCompleted
    | StepFailed
    | StepStarted
    | StepHeartbeat
    | TimerFired
    | Forget
    | RulesPermitted
)

EVENT_TYPES: dict[str, type[Event]] = {
    "execution.start": StartExecution,
    "execution.retry": RetryExecution,
    "execution.cancel": CancelExecution,
    "step.completed": StepCompleted,
    "step.failed": StepFailed,
    "step.started": StepStarted,
    "step.heartbeat": StepHeartbeat,
    "timer.fired": TimerFired,
    "partition.forget": Forget,
    "rules.permitted": RulesPermitted,
    "retry.ended": RetryEnded,
    "retry.check": RetryCheck,
    "retry.forget": RetryForget,
}


class StepReady(Message):
    """The step message. `parents` holds the outputs of the parents that the step takes, `dispatch` counts how often
    the attempt was sent: again where a worker reported that it does not serve it.

    Its record has a header `traceparent` (W3C Trace Context) if what started the execution had one.
    """

    type: Literal["step.ready"] = "step.ready"
    task_id: Text
    workflow: Name
    version: Text
    definition: Text
    step: Name
    attempt: Annotated[int, Field(ge=1)]
    dispatch: Annotated[int, Field(ge=1)] = 1
    idempotency_key: Text
    input: JsonValue = None
    parents: dict[str, JsonValue] = Field(default={})
    args: dict[str, JsonValue] | None = None
    last_heartbeat: JsonValue = None
    start_to_close_ms: Annotated[int, Field(ge=1)]
    heartbeat_ms: Annotated[int, Field(ge=1)]
    result_limit: Annotated[int, Field(ge=1)]
    not_after: Text
    reply: ReplyTo


class Cancelled(Message):
    """On `flowpilot.control`: nothing of this run is wanted any more."""

    type: Literal["execution.cancelled"] = "execution.cancelled"
    execution: Text
    run: Offset


class Superseded(Message):
    """On `flowpilot.control`: this attempt's answer will not be taken any more."""

    type: Literal["attempt.superseded"] = "attempt.superseded"
    task_id: Text


class ExecutionEnded(Message):
    """On `flowpilot.replies`, to the client that waits: how the run ended.

    `output_omitted`: the outputs of the last steps together are beyond the limit `step_inputs`.
    """

    type: Literal["execution.ended"] = "execution.ended"
    execution: Text
    run: Offset
    status: Literal["completed", "failed", "cancelled", "refused"]
    output: JsonValue = None
    output_omitted: bool = False
    errors: dict[str, JsonValue] = Field(default={})
    reason: str | None = None


class RetryAnswered(Message):
    """On `flowpilot.replies`, to the client that asked for a retry: the execution `retry`, or why there is none.

    `refused` is a stable word, `detail` the sentence that goes with it, `running` the retry that stands against it.
    """

    type: Literal["retry.answered"] = "retry.answered"
    execution: Text
    request: RequestId
    retry: Text | None = None
    refused: Name | None = None
    detail: str | None = None
    running: Text | None = None


class DeadLetter(Message):
    """A record nobody could process. Its bytes are base64; above the size limit only the first 64 KiB.

    `topic_id` (of trigger records) tells topics of one name apart. `headers` are the record's, in its order; those
    beyond 16 KiB are only counted, the largest first.

    Of an `input_invalid` from the source `worker`, `value` is the execution's input as JSON, and `size` and
    `sha256` are the input's: the record's own bytes, key and headers are not kept. Where no trigger record started
    the execution, the place is that of its start on the events topic.
    """

    HEAD: ClassVar[int] = 64 * 1024
    HEADERS: ClassVar[int] = 16 * 1024

    type: Literal["dead.letter"] = "dead.letter"
    reason: Name
    detail: str
    topic: Text
    partition: int
    offset: Offset
    timestamp: int
    key: str | None = None
    value: str | None = None
    headers: list[RecordHeader] | None = None
    headers_left_out: int | None = None
    size: int
    sha256: Text
    truncated: bool = False
    source: Name
    workflow: Name | None = None
    topic_id: Text | None = None
