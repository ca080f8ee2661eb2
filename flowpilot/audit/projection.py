"""From history events to the current rows: pure, and the same function that checks the rows afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from flowpilot.core.status import ExecutionStatus, StepStatus
from flowpilot.ports.audit import (
    UNKNOWN,
    Changes,
    Divergence,
    Head,
    HistoryEvent,
    Repeat,
    Row,
    RunKey,
    TaskKey,
)
from flowpilot_schemas.history import GENESIS

REFUSED = "refused"
"""The status of an execution that never began; every other status is one of `ExecutionStatus`."""

_WORKER_FIELDS = ("worker_id", "broker_task_id")


def project(events: Sequence[HistoryEvent], heads: Mapping[RunKey, Head]) -> Changes:
    """What `events` change, in their order. `heads` are the newest events that are stored, by run.

    Only events newer than the head count: what came before is in the rows. A step of `seq` that is no successor
    (`gap`) or whose previous hash is not the hash before it (`broken_chain`) is a divergence; it counts all the
    same, for the audit shows what the log holds.
    """
    changes = Changes()
    newest = dict(heads)
    for event in events:
        run = RunKey(event.execution, event.run)
        head = newest.get(run)
        seq = event.seq
        if head is None:
            if seq != 1:
                changes.divergences.append(_diverges(event, "gap", f"the first event is seq {seq}"))
                _execution(changes, run, event)["status"] = UNKNOWN
            elif event.prev != GENESIS:
                changes.divergences.append(_diverges(event, "broken_chain", "seq 1 does not begin a chain"))
        elif seq <= head.seq:
            continue
        elif seq != head.seq + 1:
            changes.divergences.append(_diverges(event, "gap", f"seq {seq} follows {head.seq}"))
        elif event.prev != head.hash:
            changes.divergences.append(_diverges(event, "broken_chain", f"fp-prev is not seq {head.seq}'s hash"))
        newest[run] = Head(seq, event.hash)
        fold = _FOLDS.get(event.type)
        if fold is not None:
            fold(changes, run, event)
    return changes


def _diverges(event: HistoryEvent, reason: str, detail: str) -> Divergence:
    return Divergence(
        reason, detail, event.topic, event.partition, event.offset, event.execution, event.run, event.seq
    )


def _execution(changes: Changes, run: RunKey, event: HistoryEvent) -> Row:
    row = changes.executions.get(run)
    if row is None:
        row = changes.executions[run] = {}
    row["seq"] = event.seq
    return row


def _task(changes: Changes, run: RunKey, event: HistoryEvent, *, born: bool = False) -> Row:
    key = TaskKey(run.execution, run.run, event.step or "")
    row = changes.tasks.get(key)
    if row is None:
        row = changes.tasks[key] = {}
        changes.attempts[key] = event.attempt or 0
        if born:
            changes.born.add(key)
    row["seq"] = event.seq
    return row


def _copy(row: Row, fields: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        value = fields.get(name)
        if value is not None:
            row[name] = value


def _started(changes: Changes, run: RunKey, event: HistoryEvent) -> None:
    row = _identified(changes, run, event)
    row["status"] = ExecutionStatus.RUNNING.value
    row["started_at"] = event.at
    taken = event.fields.get("taken")
    for execution, steps in taken.items() if isinstance(taken, dict) else ():
        for step in steps if isinstance(steps, list) else ():
            if not isinstance(step, str):
                continue
            task = _task(changes, run, event._replace(step=step, attempt=0), born=True)
            task["status"] = StepStatus.COMPLETED.value
            task["taken_from"] = execution


def _refused(changes: Changes, run: RunKey, event: HistoryEvent) -> None:
    row = _identified(changes, run, event)
    row["status"] = REFUSED
    row["finished_at"] = event.at
    row["reason"] = f"{event.fields.get('reason')}: {event.fields.get('detail')}"


def _identified(changes: Changes, run: RunKey, event: HistoryEvent) -> Row:
    row = _execution(changes, run, event)
    fields = event.fields
    row["workflow_name"] = fields.get("workflow")
    row["workflow_version"] = fields.get("version")
    row["definition"] = fields.get("definition")
    _copy(row, fields, ("key", "created_by", "retry_reason", "traceparent"))
    parent = fields.get("parent")
    if parent is not None:
        changes.parents[run] = parent
    origin = fields.get("origin")
    if isinstance(origin, dict):
        for name in ("topic", "topic_id", "partition", "offset"):
            row[f"origin_{name}"] = origin.get(name)
    return row


def _repeated(changes: Changes, run: RunKey, event: HistoryEvent) -> None:
    """A start that met an execution. Those of clients and of the API come from no record."""
    origin = event.fields.get("origin")
    if isinstance(origin, dict):
        fate = "duplicate" if event.type == "StartDeduplicated" else "key_conflict"
        place = (origin.get("topic"), origin.get("topic_id"), origin.get("partition"), origin.get("offset"))
        changes.repeats.append(Repeat(fate, *place, *run, event.seq))  # type: ignore[arg-type]


def _completed(changes: Changes, run: RunKey, event: HistoryEvent) -> None:
    row = _execution(changes, run, event)
    row["status"] = ExecutionStatus.COMPLETED.value
    row["finished_at"] = event.at
    _copy(row, event.fields, ("output",))


def _failed(changes: Changes, run: RunKey, event: HistoryEvent) -> None:
    row = _execution(changes, run, event)
    row["status"] = ExecutionStatus.FAILED.value
    row["finished_at"] = event.at
    _copy(row, event.fields, ("errors", "reason"))


def _cancelled(changes: Changes, run: RunKey, event: HistoryEvent) -> None:
    row = _execution(changes, run, event)
    row["status"] = ExecutionStatus.CANCELLED.value
    row["finished_at"] = event.at
    _copy(row, event.fields, ("reason",))


def _incident(changes: Changes, run: RunKey, event: HistoryEvent) -> None:
    row = _execution(changes, run, event)
    row["status"] = ExecutionStatus.INCIDENT.value
    row["reason"] = event.fields.get("detail")


def _step_ready(changes: Changes, run: RunKey, event: HistoryEvent) -> None:
    first = event.attempt == 1
    row = _task(changes, run, event, born=first)
    row["status"] = StepStatus.READY.value
    row["ready_at"] = event.at
    if not first:
        row["attempt"] = event.attempt
        # What the last one left behind is in the history. Its error stays until this one ends.
        row["started_at"] = row["retry_at"] = None
        row["worker_id"] = row["broker_task_id"] = None


def _step_started(changes: Changes, run: RunKey, event: HistoryEvent) -> None:
    row = _task(changes, run, event)
    row["status"] = StepStatus.RUNNING.value
    row["started_at"] = _moment(event.fields.get("started_at")) or event.at
    _copy(row, event.fields, _WORKER_FIELDS)


def _step_completed(changes: Changes, run: RunKey, event: HistoryEvent) -> None:
    row = _ended(changes, run, event, StepStatus.COMPLETED)
    _copy(row, event.fields, ("output",))
    if event.attempt != 1:
        row["error"] = None


def _step_failed(changes: Changes, run: RunKey, event: HistoryEvent) -> None:
    # Also without a StepReady: what the step would have been given was too large.
    row = _ended(changes, run, event, StepStatus.FAILED, born=True)
    row["error"] = event.fields.get("error")


def _step_skipped(changes: Changes, run: RunKey, event: HistoryEvent) -> None:
    row = _task(changes, run, event, born=True)
    row["status"] = StepStatus.SKIPPED.value
    row["finished_at"] = event.at


def _step_cancelled(changes: Changes, run: RunKey, event: HistoryEvent) -> None:
    row = _task(changes, run, event, born=True)
    row["status"] = StepStatus.CANCELLED.value
    row["finished_at"] = event.at


def _ended(changes: Changes, run: RunKey, event: HistoryEvent, status: StepStatus, *, born: bool = False) -> Row:
    row = _task(changes, run, event, born=born)
    row["status"] = status.value
    row["finished_at"] = event.at
    _copy(row, event.fields, _WORKER_FIELDS)
    started = _moment(event.fields.get("started_at"))
    if started is not None:
        row["started_at"] = started
    return row


def _retry_scheduled(changes: Changes, run: RunKey, event: HistoryEvent) -> None:
    row = _task(changes, run, event)
    row["status"] = StepStatus.RETRYING.value
    row["retry_at"] = _moment(event.fields.get("retry_at"))
    row["error"] = event.fields.get("error")
    _copy(row, event.fields, _WORKER_FIELDS)


def _moment(text: Any) -> str | None:
    """A worker's time as ISO 8601 in UTC; None if it is none: workers in any language may send anything."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return None


# What is not here changes no row: it is recorded, and that is all.
_FOLDS: dict[str, Callable[[Changes, RunKey, HistoryEvent], None]] = {
    "ExecutionStarted": _started,
    "StartRefused": _refused,
    "StartDeduplicated": _repeated,
    "KeyConflict": _repeated,
    "ExecutionCompleted": _completed,
    "ExecutionFailed": _failed,
    "ExecutionCancelled": _cancelled,
    "ExecutionIncident": _incident,
    "StepReady": _step_ready,
    "StepStarted": _step_started,
    "StepCompleted": _step_completed,
    "StepFailed": _step_failed,
    "StepRetryScheduled": _retry_scheduled,
    "StepSkipped": _step_skipped,
    "StepCancelled": _step_cancelled,
}
