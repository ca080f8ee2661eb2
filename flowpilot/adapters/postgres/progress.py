"""One run followed as it goes: what changed since the last look, without outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, Row, select
from sqlalchemy.orm import Session, aliased

from flowpilot.adapters.postgres.models import TaskExecution, Workflow, WorkflowExecution

_PARENT = aliased(WorkflowExecution)
_RUN = (
    WorkflowExecution.id,
    WorkflowExecution.execution_id,
    WorkflowExecution.run,
    WorkflowExecution.workflow_id,
    WorkflowExecution.workflow_name,
    WorkflowExecution.workflow_version,
    WorkflowExecution.status,
    WorkflowExecution.started_at,
    WorkflowExecution.finished_at,
    WorkflowExecution.errors,
    WorkflowExecution.reason,
    _PARENT.execution_id.label("parent"),
)
_TASK = (
    TaskExecution.step_name,
    TaskExecution.status,
    TaskExecution.attempt,
    TaskExecution.seq,
    TaskExecution.taken_from,
    TaskExecution.ready_at,
    TaskExecution.started_at,
    TaskExecution.finished_at,
    TaskExecution.retry_at,
    TaskExecution.worker_id,
    TaskExecution.error,
)


AnyRow = Row[*tuple[Any, ...]]


class Progress:
    """The run of `execution` that is the newest when it is first found. All methods block, and raise SQLAlchemy's
    errors; after one the next look goes on where the last good one was."""

    def __init__(self, engine: Engine, execution: str) -> None:
        self._engine = engine
        self._execution = execution
        self._row: int | None = None
        self._seq = -1
        self.definition: dict[str, Any] | None = None

    def look(self) -> tuple[AnyRow, Sequence[AnyRow]] | None:
        """The run's row, and those of its tasks that changed since the last look, by seq; None: not known yet."""
        with Session(self._engine) as session:
            found = select(*_RUN).outerjoin(_PARENT, WorkflowExecution.parent_execution_id == _PARENT.id)
            if self._row is not None:
                found = found.where(WorkflowExecution.id == self._row)
            else:
                found = found.where(
                    WorkflowExecution.execution_id == self._execution, WorkflowExecution.run.is_not(None)
                )
            run = session.execute(found.order_by(WorkflowExecution.run.desc()).limit(1)).first()
            if run is None:
                return None
            if self.definition is None and run.workflow_id is not None:
                self.definition = session.scalar(select(Workflow.body).where(Workflow.id == run.workflow_id))
            # After the run's row: of one that has ended, these are all.
            changed = session.execute(
                select(*_TASK)
                .where(TaskExecution.workflow_execution_id == run.id, TaskExecution.seq > self._seq)
                .order_by(TaskExecution.seq, TaskExecution.step_name)
            ).all()
        self._row = run.id
        self._seq = max((task.seq for task in changed), default=self._seq)
        return run, changed
