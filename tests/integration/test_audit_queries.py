"""What users ask of the audit: the answers, and that their number of queries does not grow with the rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

from flowpilot.adapters.postgres.models import WorkflowExecution
from flowpilot.adapters.postgres.queries import AuditQueries
from tests.audit_history import Chain, completed, events, retry_of
from tests.audit_world import AuditWorld, statements

pytestmark = pytest.mark.integration


@pytest.fixture
def world(database_url: str) -> Iterator[AuditWorld]:
    made = AuditWorld(database_url)
    yield made
    made.close()


class OneQueryARow(AuditQueries):
    """Deliberately wrong: loads the tasks and retries of each execution on its own."""

    def list_executions(self, **filters: object) -> list[WorkflowExecution]:
        with Session(self._engine, expire_on_commit=False) as session:
            found = session.scalars(self._with_relations(super_select())).all()
            for execution in found:
                session.refresh(execution, ["tasks"])
                session.refresh(execution, ["retries"])
            return list(found)

    @staticmethod
    def _with_relations(found: Select[WorkflowExecution]) -> Select[WorkflowExecution]:
        return found


def super_select() -> Select[WorkflowExecution]:
    from sqlalchemy import select

    return select(WorkflowExecution).order_by(WorkflowExecution.id.desc())


def _check_constant_number_of_queries(world: AuditWorld, queries: AuditQueries) -> None:
    counts = []
    for first, last in ((0, 2), (2, 40)):
        for run in range(first, last):
            history = completed(run)
            world.write(
                events(history, retry_of(history, 1, run=1_000 + run), retry_of(history, 2, run=2_000 + run))
            )
        with statements(world.engine) as sent:
            found = queries.list_executions(limit=1_000)
        counts.append(len(sent))
        assert len(found) == 3 * last
        assert sum(len(execution.tasks) for execution in found) == 4 * last
        assert sum(len(execution.retries) for execution in found) == 2 * last
    assert counts[0] == counts[1], counts


def test_a_list_takes_a_constant_number_of_queries(world: AuditWorld) -> None:
    _check_constant_number_of_queries(world, world.queries)


def test_the_check_of_the_number_of_queries_turns_red(world: AuditWorld) -> None:
    with pytest.raises(AssertionError, match=r"\[\d+, \d+\]"):
        _check_constant_number_of_queries(world, OneQueryARow(world.engine))


def test_what_is_not_loaded_raises_instead_of_querying(world: AuditWorld) -> None:
    world.write(events(completed()))
    [execution] = world.queries.list_executions()
    with pytest.raises(InvalidRequestError):
        _ = execution.workflow


def test_filters_and_pages(world: AuditWorld) -> None:
    started = Chain(run=50)
    started.started(workflow="other", key="mine")
    world.write(events(*(completed(run) for run in range(5)), started))
    assert [row.run for row in world.queries.list_executions(limit=2)] == [50, 4]
    [_, last] = world.queries.list_executions(limit=2)
    assert [row.run for row in world.queries.list_executions(limit=2, before=last.id)] == [3, 2]
    assert [row.run for row in world.queries.list_executions(status="running")] == [50]
    assert [row.run for row in world.queries.list_executions(workflow="onboarding", limit=1)] == [4]
    assert [row.run for row in world.queries.list_executions(key="k-3")] == [3]
    assert world.queries.list_executions(status="failed") == []
    assert world.queries.status_counts() == {"completed": 5, "running": 1}
    assert world.queries.status_counts(workflow="other") == {"running": 1}
    assert world.queries.task_status_counts() == {"completed": 20}


def test_one_execution_with_everything(world: AuditWorld) -> None:
    first = completed(run=1)
    again = completed(run=7, execution=first.execution)
    retry = retry_of(again, 1, run=9)
    world.write(events(first, again, retry))
    with statements(world.engine) as sent:
        detail = world.queries.show_execution(first.execution)
    assert detail is not None
    assert len(sent) <= 6
    assert (detail.execution.run, detail.runs) == (7, [7, 1])
    assert [item.seq for item in detail.history] == list(range(1, len(again.records) + 1))
    assert {task.step_name for task in detail.execution.tasks} == {"create", "otp", "mail", "activate"}
    assert [row.execution_id for row in detail.execution.retries] == [retry.execution]
    older = world.queries.show_execution(first.execution, run=1)
    assert older is not None
    assert (older.execution.run, older.execution.retries) == (1, [])
    child = world.queries.show_execution(retry.execution)
    assert child is not None
    assert child.execution.parent is not None
    assert (child.execution.parent.execution_id, child.execution.parent.run) == (again.execution, 7)
    assert world.queries.show_execution("nobody") is None
    assert world.queries.show_execution(first.execution, run=2) is None
