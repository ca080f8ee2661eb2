"""Executions as the command line and the API show them: plain values out of the audit record."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from flowpilot.adapters.postgres.models import TaskExecution, WorkflowExecution
from flowpilot.adapters.postgres.queries import AuditQueries, Filter
from flowpilot.app.database import Asked, iso, querying
from flowpilot.audit.projection import REFUSED
from flowpilot.audit.records import without_nul
from flowpilot.core.status import ExecutionStatus
from flowpilot.ports.audit import UNKNOWN

STATUSES = (
    *(status.value for status in ExecutionStatus if status is not ExecutionStatus.PENDING),
    REFUSED,
    UNKNOWN,
)

Fields = dict[str, Any]


class Page(NamedTuple):
    """A page of a list; `last` is the place after which the next one begins, None if this is the last."""

    items: list[Fields]
    last: int | None


def list_executions(asked: Asked, wanted: Filter, *, limit: int, before: int | None = None) -> Page:
    """The newest first, those after the place `before`. Raises `DatabaseUnreachable`, `DatabaseRefused`."""
    wanted = replace(wanted, key=without_nul(wanted.key), workflow=without_nul(wanted.workflow))
    with querying(asked, AuditQueries) as queries:
        # One more than is shown tells whether there is another page.
        found = queries.list_executions(wanted, limit=limit + 1, before=before)
    shown = found[:limit]
    return Page(
        [
            {**_execution(row), "steps": f"{completed}/{steps}", "retries": retries}
            for row, steps, completed, retries in shown
        ],
        shown[-1].execution.id if len(found) > limit else None,
    )


def show_execution(asked: Asked, execution: str, *, run: int | None = None, history: bool = True) -> Fields | None:
    """One run with its steps, retries and (unless `history` is False) history; None if the audit does not know
    it. Raises as `list_executions`."""
    with querying(asked, AuditQueries) as queries:
        detail = queries.show_execution(execution, run, history=history)
        if detail is None:
            return None
        row = detail.execution
        shown = {
            **_execution(row),
            "traceparent": row.traceparent,
            "parent": row.parent.execution_id if row.parent is not None else None,
            "retry_reason": row.retry_reason,
            "retries": [retry.execution_id for retry in row.retries],
            "runs": detail.runs,
            "output": row.output,
            "errors": row.errors,
            "reason": row.reason,
            "definition": row.definition,
            "graph": graph_of(row.workflow.body if row.workflow is not None else None),
            "tasks": [_task(task) for task in row.tasks],
        }
        if history:
            shown["history"] = [orjson.loads(event.body) for event in detail.history]
        return shown


class HistoryPage(NamedTuple):
    """Events of one run as JSON, byte by byte as they were decided; `last` as in `Page`."""

    run: int
    events: list[bytes]
    last: int | None


def history_of(asked: Asked, execution: str, *, run: int | None, after: int, limit: int) -> HistoryPage | None:
    """A run's history events from seq `after` + 1 on; None if the audit does not know it. Raises as
    `list_executions`."""
    with querying(asked, AuditQueries) as queries:
        found = queries.history(execution, run, after=after, limit=limit + 1)
    if found is None:
        return None
    shown = found.events[:limit]
    last = shown[-1].seq if len(found.events) > limit else None
    return HistoryPage(found.run, [event.body for event in shown], last)


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


def _task(task: TaskExecution) -> Fields:
    return {
        **standing(task),
        "broker_task_id": task.broker_task_id,
        "output": task.output,
        "error": task.error,
    }


def standing(task: Any) -> Fields:
    """Where a task stands; `task` is a `TaskExecution`, or a row with those of its columns."""
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
