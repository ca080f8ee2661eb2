"""Executions as the command line shows them: plain values out of the audit record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import orjson

from flowpilot.adapters.postgres.archive import PostgresAuditArchive
from flowpilot.adapters.postgres.models import TaskExecution, WorkflowExecution
from flowpilot.adapters.postgres.queries import AuditQueries
from flowpilot.app.database import asking, iso
from flowpilot.audit.projection import REFUSED, UNKNOWN
from flowpilot.audit.verify import verify
from flowpilot.core.status import ExecutionStatus
from flowpilot.settings import Settings

STATUSES = (
    *(status.value for status in ExecutionStatus if status is not ExecutionStatus.PENDING),
    REFUSED,
    UNKNOWN,
)

Fields = dict[str, Any]


def list_executions(
    settings: Settings, *, status: str | None, workflow: str | None, key: str | None, limit: int
) -> list[Fields]:
    """The newest first. Raises `DatabaseUnreachable`, `DatabaseRefused`."""
    with _queries(settings) as queries:
        found = queries.list_executions(status=status, workflow=workflow, key=key, limit=limit)
        return [{**_execution(row), "steps": _progress(row.tasks), "retries": len(row.retries)} for row in found]


def show_execution(settings: Settings, execution: str, *, run: int | None = None) -> Fields | None:
    """One run with its steps, retries and history; None if the audit does not know it."""
    with _queries(settings) as queries:
        detail = queries.show_execution(execution, run)
        if detail is None:
            return None
        row = detail.execution
        return {
            **_execution(row),
            "parent": row.parent.execution_id if row.parent is not None else None,
            "retry_reason": row.retry_reason,
            "retries": [retry.execution_id for retry in row.retries],
            "runs": detail.runs,
            "output": row.output,
            "errors": row.errors,
            "reason": row.reason,
            "graph": graph_of(row.workflow.body if row.workflow is not None else None),
            "tasks": [_task(task) for task in row.tasks],
            "history": [orjson.loads(event.body) for event in detail.history],
        }


def differences(settings: Settings, execution: str | None) -> list[Fields]:
    """Where the audit contradicts itself: hash chains, sequence, rows; and what the writer set aside as wrong."""
    with _queries(settings) as queries, asking(settings) as engine:
        found = [
            {"execution": item.execution, "run": item.run, "seq": item.seq, "what": item.what}
            for item in verify(PostgresAuditArchive(engine), execution)
        ]
        for item in queries.divergences():
            if execution in (None, item.execution_id):
                what = f"{item.reason}: {item.detail}"
                found.append({"execution": item.execution_id, "run": item.run, "seq": item.seq, "what": what})
        return found


@contextmanager
def _queries(settings: Settings) -> Iterator[AuditQueries]:
    with asking(settings) as engine:
        yield AuditQueries(engine)


def _execution(row: WorkflowExecution) -> Fields:
    return {
        "execution": row.execution_id,
        "run": row.run,
        "workflow": row.workflow_name,
        "version": row.workflow_version,
        "status": row.status,
        "key": row.key,
        "started_at": moment(row.started_at),
        "finished_at": moment(row.finished_at),
        "created_by": row.created_by,
        "origin": _origin(row),
    }


def _origin(row: WorkflowExecution) -> str | None:
    if row.origin_topic is None:
        return None
    return f"{row.origin_topic}/{row.origin_partition}/{row.origin_offset}"


def _progress(tasks: list[TaskExecution]) -> str:
    done = sum(task.status == "completed" for task in tasks)
    return f"{done}/{len(tasks)}"


def _task(task: TaskExecution) -> Fields:
    return {
        "step": task.step_name,
        "status": task.status,
        "attempt": task.attempt,
        "taken_from": task.taken_from,
        "ready_at": moment(task.ready_at),
        "started_at": moment(task.started_at),
        "finished_at": moment(task.finished_at),
        "retry_at": moment(task.retry_at),
        "worker_id": task.worker_id,
        "broker_task_id": task.broker_task_id,
        "output": task.output,
        "error": task.error,
    }


def moment(at: datetime | None) -> str | None:
    """ISO 8601 in UTC, if there is a time."""
    return None if at is None else iso(at)


def graph_of(definition: Fields | None) -> list[Fields]:
    """A definition's steps in a topological order; empty if it is not known, as that of a deleted workflow."""
    return [
        {
            "step": step["name"],
            "depends_on": step["depends_on"],
            "queue": step["queue"],
            "max_attempts": step["retry"]["max_attempts"],
        }
        for step in (definition or {}).get("steps", [])
    ]
