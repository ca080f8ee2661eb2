"""What users ask of the audit: the answers, and that their number of queries does not grow with the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import DetachedInstanceError

from flowpilot.adapters.postgres.dead_letters import DeadLetterQueries, Place, Wanted
from flowpilot.adapters.postgres.models import TaskExecution
from flowpilot.adapters.postgres.queries import AuditQueries, Filter, Listed
from flowpilot.core.dead_letters import dead_letter
from flowpilot.ports.audit import Letter
from flowpilot.ports.log import Fetched
from tests.audit_history import EPOCH, Chain, completed, events, retry_of
from tests.audit_world import AuditWorld, statements

pytestmark = pytest.mark.integration


@pytest.fixture
def world(database_url: str) -> Iterator[AuditWorld]:
    made = AuditWorld(database_url)
    yield made
    made.close()


class OneQueryARow(AuditQueries):
    """Deliberately wrong: counts the tasks of each execution on its own."""

    def list_executions(self, wanted: Filter = Filter(), **page: int | None) -> list[Listed]:  # noqa: B008
        found = super().list_executions(wanted, limit=page["limit"] or 1)
        with Session(self._engine) as session:
            for row in found:
                session.scalar(select(func.count()).where(TaskExecution.workflow_execution_id == row.execution.id))
        return found


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
        assert sum(row.steps for row in found) == sum(row.completed for row in found) == 4 * last
        assert sum(row.retries for row in found) == 2 * last
    assert counts[0] == counts[1], counts


def test_a_list_takes_a_constant_number_of_queries(world: AuditWorld) -> None:
    _check_constant_number_of_queries(world, world.queries)


def test_the_check_of_the_number_of_queries_turns_red(world: AuditWorld) -> None:
    with pytest.raises(AssertionError, match=r"\[\d+, \d+\]"):
        _check_constant_number_of_queries(world, OneQueryARow(world.engine))


def test_what_is_not_loaded_raises_instead_of_querying(world: AuditWorld) -> None:
    world.write(events(completed()))
    [listed] = world.queries.list_executions()
    with pytest.raises(InvalidRequestError):
        _ = listed.execution.workflow
    with pytest.raises(DetachedInstanceError):
        _ = listed.execution.output


def test_filters_and_pages(world: AuditWorld) -> None:
    started = Chain(run=50)
    started.started(workflow="other", key="mine")
    world.write(events(*(completed(run) for run in range(5)), started))

    def runs(wanted: Filter = Filter(), **page: int) -> list[int | None]:  # noqa: B008
        return [row.execution.run for row in world.queries.list_executions(wanted, **page)]

    assert runs(limit=2) == [50, 4]
    [_, last] = world.queries.list_executions(limit=2)
    assert runs(limit=2, before=last.execution.id) == [3, 2]
    assert runs(Filter(status="running")) == [50]
    assert runs(Filter(workflow="onboarding"), limit=1) == [4]
    assert runs(Filter(key="k-3")) == [3]
    assert runs(Filter(status="failed")) == []
    assert world.queries.status_counts() == {"completed": 5, "running": 1}
    assert world.queries.status_counts(workflow="other") == {"running": 1}


def test_filters_by_time_and_parent(world: AuditWorld) -> None:
    """Also where the retries are of two runs of the same id, and where nobody knows the parent."""
    first = completed(run=1)
    again = completed(run=7, execution=first.execution)
    retries = [retry_of(first, 1, run=3), retry_of(again, 1, run=9)]
    world.write(events(first, again, *retries))

    def runs(**wanted: Any) -> list[int | None]:
        return [row.execution.run for row in world.queries.list_executions(Filter(**wanted))]

    assert sorted(runs(parent=first.execution)) == [3, 9]
    assert runs(parent=first.execution, status="failed") == runs(parent="nobody") == []
    started = {row.execution.run: row.execution.started_at for row in world.queries.list_executions()}
    assert None not in started.values()
    assert 7 in runs(since=started[7])
    assert 7 not in runs(until=started[7])
    assert runs(since=datetime(2100, 1, 1, tzinfo=UTC)) == runs(until=datetime(1, 1, 1, tzinfo=UTC)) == []


def test_history_by_pages(world: AuditWorld) -> None:
    first = completed(run=1)
    again = completed(run=7, execution=first.execution)
    world.write(events(first, again))
    count = len(again.records)
    page = world.queries.history(first.execution, None, after=0, limit=3)
    assert page is not None
    assert (page.run, [event.seq for event in page.events]) == (7, [1, 2, 3])
    rest = world.queries.history(first.execution, 7, after=3, limit=1_000)
    assert rest is not None
    assert [event.seq for event in rest.events] == list(range(4, count + 1))
    older = world.queries.history(first.execution, 1, after=count, limit=1)
    assert older == (1, [])
    assert world.queries.history(first.execution, 2, after=0, limit=1) is None
    with statements(world.engine) as sent:
        detail = world.queries.show_execution(first.execution, history=False)
    assert detail is not None
    assert detail.history == []
    assert not any("audit_event" in statement for statement in sent)


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


# Dead letters


def _letter(offset: int, reason: str, *, workflow: str | None = None, topic: str = "u", at: int = EPOCH) -> Letter:
    record = Fetched(topic, 1, offset, EPOCH, b"k", b"{" + bytes([offset % 256]))
    return Letter(dead_letter(record, reason, f"no {offset}", "router", workflow), at)


@pytest.fixture
def letters(world: AuditWorld) -> DeadLetterQueries:
    world.write(
        letters=[
            *(_letter(n, "not_json", topic="b" if n % 2 else "a") for n in range(5)),
            _letter(5, "key_missing", workflow="onboarding", at=EPOCH + 60_000),
            _letter(5, "key_missing", workflow="billing", at=EPOCH + 60_000),
        ]
    )
    return DeadLetterQueries(world.engine)


def test_dead_letters_by_reason(letters: DeadLetterQueries) -> None:
    keys, json = letters.groups(Wanted())
    assert (keys.example.reason, keys.count, keys.topics, keys.workflows) == (
        "key_missing", 2, ["u"], ["billing", "onboarding"],
    )  # fmt: skip
    assert (json.example.reason, json.count, json.topics, json.workflows) == ("not_json", 5, ["a", "b"], [])
    assert (json.example.topic, json.example.offset, json.example.detail) == ("a", 4, "no 4")
    [narrowed] = letters.groups(Wanted(topic="b"))
    assert (narrowed.count, narrowed.example.offset) == (2, 3)
    assert letters.groups(Wanted(reason="nothing")) == []


@pytest.mark.parametrize(
    ("wanted", "offsets"),
    [
        (Wanted(), [5, 5, 4, 3, 2, 1, 0]),
        (Wanted(reason="not_json"), [4, 3, 2, 1, 0]),
        (Wanted(workflow="onboarding"), [5]),
        (Wanted(topic="b", reason="not_json"), [3, 1]),
        (Wanted(since=datetime.fromtimestamp(EPOCH / 1000 + 60, UTC)), [5, 5]),
        (Wanted(since=datetime.fromtimestamp(EPOCH / 1000 + 61, UTC)), []),
    ],
)
def test_dead_letters_one_by_one(letters: DeadLetterQueries, wanted: Wanted, offsets: list[int]) -> None:
    found, total = letters.letters(wanted, 100)
    assert ([row.offset for row in found], total) == (offsets, len(offsets))
    first, total = letters.letters(wanted, 1)
    assert ([row.offset for row in first], total) == (offsets[:1], len(offsets))
    if first:
        rest, total = letters.letters(wanted, 100, before=first[0].id)
        assert ([row.offset for row in rest], total) == (offsets[1:], len(offsets))


def test_one_dead_letter_with_its_bytes_and_the_others_of_its_record(letters: DeadLetterQueries) -> None:
    found = letters.show(Place("u", 1, 5))
    assert found is not None
    letter, others = found
    assert (letter.workflow, letter.key, letter.value) == ("billing", b"k", b"{\x05")
    assert [other.workflow for other in others] == ["onboarding"]
    again = letters.show(others[0].id)
    assert again is not None
    assert (again[0].workflow, [other.id for other in again[1]]) == ("onboarding", [letter.id])
    assert letters.show(Place("u", 1, 6)) is letters.show(Place("a", 0, 4)) is letters.show(10**17) is None


def test_lists_of_dead_letters_load_no_bytes_in_a_constant_number_of_queries(
    world: AuditWorld, letters: DeadLetterQueries
) -> None:
    counts = []
    for more in (0, 30):
        world.write(letters=[_letter(100 + n, f"reason-{n}") for n in range(more)])
        with statements(world.engine) as sent:
            groups, (found, _) = letters.groups(Wanted()), letters.letters(Wanted(), 1_000)
        counts.append(len(sent))
        assert (len(groups), len(found)) == (2 + more, 7 + more)
        assert not any("dead_letter.value" in statement for statement in sent)
        with pytest.raises(DetachedInstanceError):
            _ = groups[0].example.value
        with pytest.raises(DetachedInstanceError):
            _ = found[0].key
    assert counts == [4, 4]


MANY = 20_000
FILL = """
INSERT INTO workflow_execution (execution_id, run, workflow_name, status, seq, started_at)
SELECT 'e-' || n, n, 'w', 'completed', 1, timestamptz '2026-05-01 00:00Z' + n * interval '1 s'
FROM generate_series(1, {many}) AS n;
INSERT INTO dead_letter
    (topic, partition, "offset", timestamp, source, reason, workflow, detail, size, sha256, truncated, reported_at)
SELECT CASE WHEN n % 5000 = 7 THEN 'rare' ELSE 'usual' END, 0, n, n, 'router',
    CASE WHEN n % 5000 = 7 THEN 'rare' ELSE 'usual' END, CASE WHEN n % 5000 = 7 THEN 'rare' ELSE 'usual' END,
    '', 0, '', false, timestamptz '2026-05-01 00:00Z' + n * interval '1 s'
FROM generate_series(1, {many}) AS n;
ANALYZE workflow_execution, dead_letter;
"""
EVENING = datetime(2026, 5, 1, 5, 33, tzinfo=UTC)  # 20 seconds before the last


def _plans(world: AuditWorld, asked: Callable[[], object]) -> str:
    """How PostgreSQL answers each query of `asked`."""
    plans: list[str] = []

    def explain(_connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        cursor.execute(f"EXPLAIN {statement}", parameters)
        plans.extend(line for (line,) in cursor)

    event.listen(world.engine, "before_cursor_execute", explain)
    try:
        asked()
    finally:
        event.remove(world.engine, "before_cursor_execute", explain)
    return "\n".join(plans)


def test_what_lists_are_narrowed_by_has_an_index(world: AuditWorld) -> None:
    with world.engine.begin() as connection:
        connection.execute(text(FILL.format(many=MANY)))
    letters = DeadLetterQueries(world.engine)
    plans = _plans(world, lambda: world.queries.list_executions(Filter(since=EVENING)))
    assert "ix_workflow_execution_started_at" in plans
    for name, index in (
        ("reason", "ix_dead_letter_reason_id"),
        ("workflow", "ix_dead_letter_workflow_id"),
        ("topic", "uq_dead_letter_record"),
    ):
        plans = _plans(world, lambda name=name: letters.letters(Wanted(**{name: "rare"}), 50))  # type: ignore[misc]
        assert (plans.count(index) >= 2, "Seq Scan" in plans) == (True, False), plans
    plans = _plans(world, lambda: letters.letters(Wanted(since=EVENING), 50))
    assert (plans.count("ix_dead_letter_reported_at") >= 1, "Seq Scan" in plans) == (True, False), plans
