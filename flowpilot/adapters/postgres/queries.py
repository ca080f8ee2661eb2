"""What users ask of the audit record. The number of queries never depends on the number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, TypeVar

from sqlalchemy import Engine, Select, func, select
from sqlalchemy.orm import Session, aliased, defer, joinedload, selectinload

from flowpilot.adapters.postgres.fates import fates_of
from flowpilot.adapters.postgres.models import AuditDivergence, AuditEvent, TaskExecution, WorkflowExecution
from flowpilot.adapters.postgres.narrowed import MOST, narrowed
from flowpilot.core.outcomes import Fate
from flowpilot.core.status import ExecutionStatus, StepStatus

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which executions; None: any. Started at `since` or later, and before `until`; `parent`: retries of that
    execution."""

    status: str | None = None
    workflow: str | None = None
    key: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    parent: str | None = None


class Listed(NamedTuple):
    """A run in a list: its row without output and errors, and how many steps and retries it has."""

    execution: WorkflowExecution
    steps: int
    completed: int
    retries: int


@dataclass(frozen=True, slots=True)
class ExecutionDetail:
    """One run: its row with tasks, retries, parent and workflow loaded, and its history by seq.

    `runs` are all runs of this execution id, the newest first.
    """

    execution: WorkflowExecution
    runs: list[int]
    history: list[AuditEvent]


class History(NamedTuple):
    """Some history events of a run, by seq."""

    run: int
    events: list[AuditEvent]


_ANY = Filter()


class AuditQueries:
    """Read-only questions. The objects returned are detached: what is not loaded raises if it is touched.

    All methods block, and raise SQLAlchemy's OperationalError if the server cannot be reached.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def list_executions(self, wanted: Filter = _ANY, *, limit: int = 50, before: int | None = None) -> list[Listed]:
        """The newest first; at most `limit` (up to 1,000).

        `before`: the `id` of the last one of the page before. What begins meanwhile moves no page.
        """
        found = _wanted(select(WorkflowExecution), wanted)
        if before is not None:
            found = found.where(WorkflowExecution.id < before)
        found = found.order_by(WorkflowExecution.id.desc()).limit(max(1, min(limit, MOST)))
        with self._session() as session:
            rows = session.scalars(found.options(*_WITHOUT_RESULTS)).all()
            ids = [row.id for row in rows]
            done = func.count().filter(TaskExecution.status == StepStatus.COMPLETED.value)
            tasks = (
                select(TaskExecution.workflow_execution_id, func.count(), done)
                .where(TaskExecution.workflow_execution_id.in_(ids))
                .group_by(TaskExecution.workflow_execution_id)
            )
            retries = (
                select(WorkflowExecution.parent_execution_id, func.count())
                .where(WorkflowExecution.parent_execution_id.in_(ids))
                .group_by(WorkflowExecution.parent_execution_id)
            )
            steps = {row: (total, completed) for row, total, completed in session.execute(tasks)}
            again = dict(session.execute(retries).all())
        return [Listed(row, *steps.get(row.id, (0, 0)), again.get(row.id, 0)) for row in rows]

    def running_definitions(self) -> dict[str, int]:
        """The definitions (their hashes) of executions that have not ended, and how many each has."""
        found = (
            select(WorkflowExecution.definition, func.count())
            .where(WorkflowExecution.status == ExecutionStatus.RUNNING.value)
            .where(WorkflowExecution.definition.is_not(None))
            .group_by(WorkflowExecution.definition)
        )
        with self._session() as session:
            return {str(definition): count for definition, count in session.execute(found)}

    def show_execution(
        self, execution: str, run: int | None = None, *, history: bool = True
    ) -> ExecutionDetail | None:
        """One run of an execution, the newest unless `run` is given; None if there is none.

        `history`: whether its events are loaded.
        """
        of_execution = WorkflowExecution.execution_id == execution
        found = _run_of(select(WorkflowExecution), execution, run)
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
            events = session.scalars(_history_of(execution, row.run)).all() if history else []
            return ExecutionDetail(row, [number for number in runs if number is not None], list(events))

    def history(self, execution: str, run: int | None, *, after: int, limit: int) -> History | None:
        """At most `limit` (up to 1,000) events of one run, the newest unless `run` is given, from seq `after` + 1
        on; None if there is no such run."""
        with self._session() as session:
            row = session.scalars(_run_of(select(WorkflowExecution.run), execution, run)).one_or_none()
            if row is None:
                return None
            events = _history_of(execution, row).where(AuditEvent.seq > after).limit(max(1, min(limit, MOST)))
            return History(row, list(session.scalars(events)))

    def status_counts(self, *, workflow: str | None = None) -> dict[str, int]:
        """How many runs stand where."""
        found = select(WorkflowExecution.status, func.count()).group_by(WorkflowExecution.status)
        if workflow is not None:
            found = found.where(WorkflowExecution.workflow_name == workflow)
        with self._session() as session:
            return dict(session.execute(found).all())

    def divergences(self, limit: int | None = None) -> Sequence[AuditDivergence]:
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


_WITHOUT_RESULTS = (defer(WorkflowExecution.output), defer(WorkflowExecution.errors))


def _wanted(found: Select[WorkflowExecution], wanted: Filter) -> Select[WorkflowExecution]:
    row = WorkflowExecution
    found = narrowed(
        found, (row.status, wanted.status), (row.workflow_name, wanted.workflow), (row.key, wanted.key)
    )
    if wanted.since is not None:
        found = found.where(row.started_at >= wanted.since)
    if wanted.until is not None:
        found = found.where(row.started_at < wanted.until)
    if wanted.parent is not None:
        parent = aliased(row)
        runs = select(parent.id).where(parent.execution_id == wanted.parent)
        found = found.where(row.parent_execution_id.in_(runs))
    return found


def _run_of(found: Select[Found], execution: str, run: int | None) -> Select[Found]:
    row = WorkflowExecution
    found = found.where(row.execution_id == execution)
    if run is not None:
        found = found.where(row.run == run)
    return found.order_by(row.run.desc().nulls_last()).limit(1)


def _history_of(execution: str, run: int | None) -> Select[AuditEvent]:
    return (
        select(AuditEvent)
        .where(AuditEvent.execution_id == execution, AuditEvent.run == run)
        .order_by(AuditEvent.seq)
    )
