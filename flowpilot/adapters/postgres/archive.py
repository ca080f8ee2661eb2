"""The stored audit, run by run, for checking it against itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import groupby, islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, exists, select, tuple_
from sqlalchemy.orm import aliased

from flowpilot.adapters.postgres.models import AuditEvent, TaskExecution, WorkflowExecution
from flowpilot.ports.audit import HistoryEvent, Row, RunKey, StoredRun
from flowpilot_schemas.history import iso

RUNS_AT_ONCE = 500
EVENTS_AT_ONCE = 5_000

_Rows = dict[RunKey, tuple[Row, str | None, dict[str, Row]]]


class PostgresAuditArchive:
    """See `flowpilot.ports.audit.AuditArchive`. One snapshot, read as a stream; blocks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def runs(self, execution: str | None = None) -> Iterator[StoredRun]:
        """See the port."""
        with self._engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            by_run = groupby(_events(connection, execution), lambda event: RunKey(event.execution, event.run))
            found = ((key, list(events)) for key, events in by_run)
            while runs := list(islice(found, RUNS_AT_ONCE)):
                keys = tuple_(WorkflowExecution.execution_id, WorkflowExecution.run)
                rows = _rows(connection, keys.in_([key for key, _ in runs]))
                for key, events in runs:
                    row, parent, tasks = rows.get(key, (None, None, {}))
                    yield StoredRun(key, events, row, parent, tasks)
            for key, (row, parent, tasks) in _without_events(connection, execution).items():
                yield StoredRun(key, [], row, parent, tasks)


def _events(connection: Connection, execution: str | None) -> Iterator[HistoryEvent]:
    table = AuditEvent.__table__
    found = select(table).order_by(AuditEvent.execution_id, AuditEvent.run, AuditEvent.seq)
    if execution is not None:
        found = found.where(AuditEvent.execution_id == execution)
    for row in connection.execution_options(yield_per=EVENTS_AT_ONCE).execute(found):
        yield HistoryEvent(
            execution=row.execution_id,
            run=row.run,
            seq=row.seq,
            type=row.type,
            at=iso(round(row.at.timestamp() * 1000)),
            step=row.step,
            attempt=row.attempt,
            fields={},
            body=bytes(row.body),
            prev=bytes(row.prev_hash),
            hash=bytes(row.hash),
            topic=row.topic,
            partition=row.partition,
            offset=row.offset,
        )


def _without_events(connection: Connection, execution: str | None) -> _Rows:
    events = exists().where(
        AuditEvent.execution_id == WorkflowExecution.execution_id, AuditEvent.run == WorkflowExecution.run
    )
    condition = WorkflowExecution.run.is_not(None) & ~events
    if execution is not None:
        condition &= WorkflowExecution.execution_id == execution
    return _rows(connection, condition)


def _rows(connection: Connection, condition: ColumnElement[bool]) -> _Rows:
    parent = aliased(WorkflowExecution)
    found = (
        select(WorkflowExecution.__table__, parent.execution_id.label("parent"))
        .outerjoin(parent, parent.id == WorkflowExecution.parent_execution_id)
        .where(condition)
    )
    rows: _Rows = {}
    by_id: dict[int, RunKey] = {}
    for item in connection.execute(found):
        row = _plain(item._mapping)
        key = by_id[row["id"]] = RunKey(row["execution_id"], row["run"])
        rows[key] = (row, row.pop("parent"), {})
    tasks = select(TaskExecution.__table__).where(TaskExecution.workflow_execution_id.in_(by_id))
    for item in connection.execute(tasks):
        row = _plain(item._mapping)
        rows[by_id[row["workflow_execution_id"]]][2][row["step_name"]] = row
    return rows


def _plain(mapping: Any) -> Row:
    return {
        str(name): value.isoformat() if isinstance(value, datetime) else value for name, value in mapping.items()
    }
