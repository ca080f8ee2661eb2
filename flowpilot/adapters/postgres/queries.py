"""What users ask of the audit record. The number of queries never depends on the number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, Select, func, select
from sqlalchemy.orm import Session, joinedload, selectinload

from flowpilot.adapters.postgres.fates import Fate, fates_of
from flowpilot.adapters.postgres.models import AuditDivergence, AuditEvent, TaskExecution, WorkflowExecution

MOST = 1_000


@dataclass(frozen=True, slots=True)
class ExecutionDetail:
    """One run: its row with tasks, retries, parent and workflow loaded, and its history by seq.

    `runs` are all runs of this execution id, the newest first.
    """

    execution: WorkflowExecution
    runs: list[int]
    history: list[AuditEvent]


class AuditQueries:
    """Read-only questions. The objects returned are detached: what is not loaded raises if it is touched.

    All methods block, and raise SQLAlchemy's OperationalError if the server cannot be reached.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def list_executions(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        key: str | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> list[WorkflowExecution]:
        """The newest first, with their tasks and retries; at most `limit` (up to 1,000).

        `before`: the `id` of the last one of the page before.
        """
        found = select(WorkflowExecution)
        if status is not None:
            found = found.where(WorkflowExecution.status == status)
        if workflow is not None:
            found = found.where(WorkflowExecution.workflow_name == workflow)
        if key is not None:
            found = found.where(WorkflowExecution.key == key)
        if before is not None:
            found = found.where(WorkflowExecution.id < before)
        found = found.order_by(WorkflowExecution.id.desc()).limit(max(1, min(limit, MOST)))
        with self._session() as session:
            return list(session.scalars(self._with_relations(found)))

    def show_execution(self, execution: str, run: int | None = None) -> ExecutionDetail | None:
        """One run of an execution, the newest unless `run` is given; None if there is none."""
        of_execution = WorkflowExecution.execution_id == execution
        found = select(WorkflowExecution).where(of_execution)
        if run is not None:
            found = found.where(WorkflowExecution.run == run)
        found = found.order_by(WorkflowExecution.run.desc().nulls_last()).limit(1)
        with self._session() as session:
            row = session.scalars(
                self._with_relations(found).options(
                    joinedload(WorkflowExecution.parent), joinedload(WorkflowExecution.workflow)
                )
            ).one_or_none()
            if row is None:
                return None
            runs = session.scalars(
                select(WorkflowExecution.run)
                .where(of_execution, WorkflowExecution.run.is_not(None))
                .order_by(WorkflowExecution.run.desc())
            )
            history = session.scalars(
                select(AuditEvent)
                .where(AuditEvent.execution_id == execution, AuditEvent.run == row.run)
                .order_by(AuditEvent.seq)
            )
            return ExecutionDetail(row, [number for number in runs if number is not None], list(history))

    def status_counts(self, *, workflow: str | None = None) -> dict[str, int]:
        """How many runs stand where."""
        found = select(WorkflowExecution.status, func.count()).group_by(WorkflowExecution.status)
        if workflow is not None:
            found = found.where(WorkflowExecution.workflow_name == workflow)
        with self._session() as session:
            return dict(session.execute(found).all())

    def task_status_counts(self) -> dict[str, int]:
        """How many task executions stand where."""
        found = select(TaskExecution.status, func.count()).group_by(TaskExecution.status)
        with self._session() as session:
            return dict(session.execute(found).all())

    def divergences(self, limit: int = 100) -> Sequence[AuditDivergence]:
        """What should not be, the oldest first; empty in a sound audit."""
        with self._session() as session:
            return session.scalars(select(AuditDivergence).order_by(AuditDivergence.id).limit(limit)).all()

    def fates(self, topic: str, partition: int, offset: int) -> list[Fate]:
        """What became of a trigger record, workflow by workflow; empty if nothing is known of it (yet)."""
        with self._session() as session:
            return fates_of(session, topic, partition, offset)

    def _session(self) -> Session:
        return Session(self._engine, expire_on_commit=False)

    @staticmethod
    def _with_relations(found: Select[WorkflowExecution]) -> Select[WorkflowExecution]:
        return found.options(selectinload(WorkflowExecution.tasks), selectinload(WorkflowExecution.retries))
