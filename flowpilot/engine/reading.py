"""Records of the events topic as what they say."""

from __future__ import annotations

from typing import TypeGuard

from flowpilot.core import decide
from flowpilot.engine.keys import state_key
from flowpilot.engine.table import PartitionTable
from flowpilot.ports.log import Fetched, refuse_lost
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import BadRecord, decode_object, parse
from flowpilot_schemas.ids import TaskId, is_execution_id, root_id

_NAMES_ITS_EXECUTION = (
    *(m.StartExecution, m.CancelExecution, m.TimerFired),
    *(m.RetryExecution, m.RetryEnded, m.RetryCheck, m.RetryForget),
)
Message = m.StartExecution | m.RetryExecution | m.RetryEnded | m.RetryCheck | m.RetryForget | decide.Message


def read(record: Fetched) -> m.Event:
    """The event in a record. Raises `BadRecord`."""
    refuse_lost(record)
    value = decode_object(record.value)
    kind = value.get("type")
    model = m.EVENT_TYPES.get(kind) if isinstance(kind, str) else None
    if model is None:
        parse(m.Untyped, value)
        raise BadRecord("unknown_type", f"no event has the type {str(kind)[:100]!r}")
    message = parse(model, value)
    if isinstance(message, _NAMES_ITS_EXECUTION):
        _require(is_execution_id(message.execution), "execution is not an execution id")
        if isinstance(message, m.StartExecution):
            is_retry = message.execution != root_id(message.execution)
            _require(is_retry == (message.retry is not None), "an execution R.n begins by execution.retry alone")
            places = message.retry.shares if message.retry else []
            _require(
                all(root_id(place) == root_id(message.execution) for place, _ in places),
                "an execution shares results with others of its root alone",
            )
        elif isinstance(message, m.RetryCheck):
            _require(message.execution != root_id(message.execution), "execution is no retry")
        elif isinstance(message, m.RetryEnded):
            is_retry = is_execution_id(message.retry) and message.retry != message.execution
            _require(is_retry and root_id(message.retry) == message.execution, "retry is no retry of execution")
    elif not isinstance(message, m.Forget | m.RulesPermitted):
        _require(TaskId.parse(message.task_id) is not None, "task_id is not a task id")
    return message


def _require(holds: bool, detail: str) -> None:
    if not holds:
        raise BadRecord("wrong_shape", detail)


def read_or_none(record: Fetched) -> m.Event | None:
    """The event in a record, None if it has none."""
    try:
        return read(record)
    except BadRecord:
        return None


def execution_of(message: m.Event | None) -> str | None:
    """The execution whose state the message is folded into; None for none, or one that concerns the partition."""
    if message is None or isinstance(message, m.Forget | m.RulesPermitted):
        return None
    if isinstance(message, m.RetryExecution):
        return root_id(message.execution)
    if isinstance(message, _NAMES_ITS_EXECUTION):
        return message.execution
    return message.task_id.partition("/")[0]


def root_of(record: Fetched) -> str | None:
    """The root of the executions that the record may concern, as its key alone tells; None if it names none."""
    try:
        key = (record.key or b"").decode()
    except UnicodeDecodeError:
        return None
    return root_id(key) if is_execution_id(key) else None


def is_undeliverable(message: Message) -> TypeGuard[m.StepFailed]:
    """Whether it says that a step message could not be delivered: that is a dead letter, whatever else it does."""
    return isinstance(message, m.StepFailed) and message.error.kind == "dispatch_failed"


def is_folded(table: PartitionTable, record: Fetched) -> bool:
    """Whether the record is in the state of the execution that it concerns."""
    execution = execution_of(read_or_none(record))
    entry = table.entry(state_key(execution)) if execution is not None else None
    return entry is not None and record.offset <= entry.src
