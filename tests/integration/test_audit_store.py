"""The audit store on real PostgreSQL: what only SQL can ask, or do behind its back.

What the port promises is in tests/contract, on the store in memory too.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr
from sqlalchemy.exc import DBAPIError

from flowpilot.adapters.postgres import definitions, rows
from flowpilot.adapters.postgres.bulk import TASK_TYPES, Shapes
from flowpilot.adapters.postgres.dead_letters import Place
from flowpilot.adapters.postgres.store import PostgresAuditStore
from flowpilot.app.audit_view import PostgresAuditView
from flowpilot.app.dead_letters import show_letter
from flowpilot.core.dead_letters import dead_letter
from flowpilot.ports.audit import (
    BatchRefused,
    Letter,
    Pointed,
    Removed,
    Row,
    StoreUnavailable,
    StoreUnusable,
)
from flowpilot.ports.log import Fetched
from flowpilot.settings import Settings
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.messages import RecordHeader
from tests.audit_history import DEFINITION, EPOCH, Chain, completed, event, events, retry_of
from tests.audit_world import PLACE, REGISTERED, AuditWorld, statements

pytestmark = pytest.mark.integration


@pytest.fixture
def world(database_url: str) -> Iterator[AuditWorld]:
    made = AuditWorld(database_url)
    yield made
    made.close()


def test_a_history_is_stored_byte_by_byte_with_its_rows(world: AuditWorld) -> None:
    history = completed(run=3)
    world.write(events(history), definitions=[REGISTERED])
    assert [bytes(body) for body in world.ask("SELECT body FROM audit_event ORDER BY seq")] == [
        record.value for record in history.records
    ]
    assert world.one("SELECT status, run, seq, output, origin_offset, key FROM workflow_execution") == (
        "completed", 3, len(history.records), {"ok": True}, 3, "k-3",
    )  # fmt: skip
    tasks = world.ask(
        "SELECT t.step_name, t.status, t.attempt, s.step_order FROM task_execution t "
        "JOIN step s ON s.id = t.step_id ORDER BY s.step_order"
    )
    assert tasks == [
        ("create", "completed", 1, 0), ("otp", "completed", 2, 1), ("mail", "completed", 1, 2),
        ("activate", "completed", 1, 3),
    ]  # fmt: skip
    assert world.differences() == []


def test_the_trace_stands_in_the_row_and_is_there_for_a_retry(world: AuditWorld) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    traced, plain, refused = Chain(run=1), Chain(run=2), Chain(run=3)
    traced.started(traceparent=trace)
    plain.started()
    refused("StartRefused", workflow="w", version="9", definition="d", reason="r", detail="d", traceparent=trace)
    world.write(events(traced, plain, refused))
    rows = world.ask("SELECT run, traceparent FROM workflow_execution ORDER BY run")
    assert rows == [(1, trace), (2, None), (3, trace)]
    assert world.differences() == []
    view = PostgresAuditView(world.engine)
    for history, told in ((traced, trace), (plain, None)):
        started = asyncio.run(view.started(history.execution))
        assert started is not None
        assert started.traceparent == told


@pytest.mark.parametrize(
    "sql", ["UPDATE audit_event SET type = 'x'", "DELETE FROM audit_event", "TRUNCATE audit_event"]
)
def test_audit_events_are_append_only(world: AuditWorld, sql: str) -> None:
    world.write(events(completed()))
    with pytest.raises(DBAPIError, match="append only"):
        world.ask(sql)


@pytest.mark.parametrize(
    ("tamper", "what"),
    [
        ("UPDATE audit_event SET body = body || ' ' WHERE seq = 3", "hash_mismatch"),
        ("UPDATE audit_event SET type = 'StepSkipped' WHERE seq = 2", "its columns"),
        ("DELETE FROM audit_event WHERE seq = 4", "gap"),
        ("DELETE FROM audit_event", "there is a row but no event"),
        ("UPDATE workflow_execution SET status = 'failed'", "execution.status is 'failed' instead of 'completed'"),
        ("UPDATE task_execution SET output = '1' WHERE step_name = 'mail'", "task mail.output is 1 instead of"),
        ("DELETE FROM task_execution WHERE step_name = 'otp'", "task otp has no row"),
        ("DELETE FROM workflow_execution", "there is no row"),
        (
            "INSERT INTO task_execution (workflow_execution_id, step_name, status, attempt, seq) "
            "SELECT id, 'x', 'ready', 1, 1 FROM workflow_execution",
            "task x has a row but no event",
        ),
    ],
)
def test_verify_finds_what_was_tampered_with(world: AuditWorld, tamper: str, what: str) -> None:
    world.write(events(completed()))
    assert world.differences() == []
    world.ask("ALTER TABLE audit_event DISABLE TRIGGER append_only")
    world.ask(tamper)
    assert any(what in item.what for item in world.differences()), world.differences()


# Relations


def _whole_audit(world: AuditWorld) -> None:
    """A workflow, an execution of it with four tasks, and a dead letter of it."""
    letter = Letter(
        dead_letter(Fetched("user", 1, 2, EPOCH, None, b"{"), "not_json", "no", "router", "onboarding"), 1
    )
    world.write(events(completed()), definitions=[REGISTERED], letters=[letter])
    assert world.one("SELECT count(*) FROM step") == world.one("SELECT count(*) FROM step_dependency") == 4
    assert world.one("SELECT count(*) FROM workflow_execution WHERE workflow_id IS NOT NULL") == 1
    assert world.one("SELECT count(*) FROM task_execution WHERE step_id IS NOT NULL") == 4


def _delete_by_sql(world: AuditWorld) -> None:
    world.ask("DELETE FROM workflow")


def _delete_as_the_writer_does(world: AuditWorld) -> None:
    world.write(definitions=[Removed(workflow="onboarding")])


@pytest.mark.parametrize("delete", [_delete_by_sql, _delete_as_the_writer_does])
def test_deleting_a_workflow_removes_its_steps_and_keeps_what_was_executed(
    world: AuditWorld, delete: Callable[[AuditWorld], None]
) -> None:
    _whole_audit(world)
    told = world.one("SELECT count(*), string_agg(encode(hash, 'hex'), '' ORDER BY seq) FROM audit_event")
    delete(world)
    for table in ("workflow", "step", "step_dependency"):
        assert world.one(f"SELECT count(*) FROM {table}") == 0, table
    assert world.one("SELECT workflow_id, workflow_name, workflow_version, definition FROM workflow_execution") == (
        None, "onboarding", "1", REGISTERED.hash,
    )  # fmt: skip
    assert world.ask("SELECT step_id, step_name, status FROM task_execution ORDER BY 2") == [
        (None, "activate", "completed"), (None, "create", "completed"), (None, "mail", "completed"),
        (None, "otp", "completed"),
    ]  # fmt: skip
    assert world.one("SELECT count(*), string_agg(encode(hash, 'hex'), '' ORDER BY seq) FROM audit_event") == told
    assert world.one("SELECT workflow, reason FROM dead_letter") == ("onboarding", "not_json")
    assert world.differences() == []


def test_deleting_a_step_removes_its_edges_on_both_sides(world: AuditWorld) -> None:
    _whole_audit(world)
    world.ask("DELETE FROM step WHERE name = 'otp'")  # it depends on create, and activate depends on it
    edges = world.ask(
        "SELECT a.name, b.name FROM step_dependency d JOIN step a ON a.id = d.step_id "
        "JOIN step b ON b.id = d.depends_on_id ORDER BY a.step_order"
    )
    assert edges == [("mail", "create"), ("activate", "mail")]
    assert world.ask("SELECT step_name, step_id IS NULL FROM task_execution ORDER BY 1") == [
        ("activate", False), ("create", False), ("mail", False), ("otp", True),
    ]  # fmt: skip


def test_what_the_models_say_of_each_relation_is_what_the_database_does(world: AuditWorld) -> None:
    rules = world.ask(
        "SELECT conrelid::regclass::text, confrelid::regclass::text, confdeltype FROM pg_constraint "
        "WHERE contype = 'f' ORDER BY 1, 2, conname"
    )
    assert [(child, parent, {"c": "CASCADE", "n": "SET NULL"}[rule]) for child, parent, rule in rules] == [
        ("step", "workflow", "CASCADE"),
        ("step_dependency", "step", "CASCADE"),
        ("step_dependency", "step", "CASCADE"),
        ("task_execution", "step", "SET NULL"),
        ("task_execution", "workflow_execution", "CASCADE"),
        ("workflow_execution", "workflow", "SET NULL"),
        ("workflow_execution", "workflow_execution", "SET NULL"),
    ]


def test_a_version_of_many_executions_goes_and_comes_back_in_small_statements(
    world: AuditWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(definitions, "_AT_ONCE", 2)
    other = Chain(run=9)
    other.started(version="2")
    world.write(events(*(completed(run) for run in range(7)), other), definitions=[REGISTERED])
    linked = "SELECT count(*) FROM workflow_execution WHERE workflow_id IS NOT NULL"
    tasks = "SELECT count(*) FROM task_execution WHERE step_id IS NOT NULL"
    assert (world.one(linked), world.one(tasks)) == (7, 28)
    with statements(world.store.engine) as sent:
        world.write(definitions=[Removed(workflow="onboarding")])
    assert (world.one(linked), world.one(tasks)) == (0, 0)
    assert len([statement for statement in sent if statement.startswith("UPDATE task_execution")]) == 4
    world.write(definitions=[REGISTERED])
    assert (world.one(linked), world.one(tasks)) == (7, 28)
    assert world.differences() == []


def test_deleting_an_execution_deletes_its_tasks_and_leaves_its_retries(world: AuditWorld) -> None:
    first = completed(run=1)
    retry = retry_of(first, 1, run=40)
    again = retry_of(first, 2, run=50)
    world.write(events(first, retry, again))
    detail = world.queries.show_execution(first.execution)
    assert detail is not None
    assert [row.execution_id for row in detail.execution.retries] == [retry.execution]
    assert world.differences() == []
    world.ask("DELETE FROM workflow_execution WHERE execution_id = :id", id=first.execution)
    assert world.one("SELECT count(*) FROM task_execution") == 0
    children = world.ask("SELECT execution_id, parent_execution_id IS NULL FROM workflow_execution ORDER BY run")
    assert children == [(retry.execution, True), (again.execution, False)]
    assert world.one("SELECT count(*) FROM audit_event WHERE execution_id = :id", id=first.execution) > 0


def test_a_retry_says_who_asked_why_and_whose_results_it_took(world: AuditWorld) -> None:
    first = completed(run=1)
    retry = retry_of(first, 1, run=40, taken={first.execution: ["create"]})
    world.write(events(first, retry), definitions=[REGISTERED])
    of_retry = {"id": retry.execution}
    row = "SELECT created_by, retry_reason FROM workflow_execution WHERE execution_id = :id"
    assert world.one(row, **of_retry) == ("user:ann", "fixed")
    tasks = (
        "SELECT t.step_name, t.status, t.attempt, t.taken_from, t.step_id IS NULL FROM task_execution t "
        "JOIN workflow_execution e ON e.id = t.workflow_execution_id WHERE e.execution_id = :id"
    )
    assert world.ask(tasks, **of_retry) == [("create", "completed", 0, first.execution, False)]
    assert world.differences() == []
    world.ask("UPDATE task_execution SET taken_from = 'another' WHERE taken_from IS NOT NULL")
    assert [item.what for item in world.differences(retry.execution)] != []


def test_a_missing_parent_is_a_stub_until_it_turns_up(world: AuditWorld) -> None:
    first = completed(run=1)
    retry = retry_of(first, 1, run=40)
    world.write(events(retry), definitions=[REGISTERED])
    assert world.one("SELECT run, status FROM workflow_execution WHERE execution_id = :id", id=first.execution) == (
        None, "unknown",
    )  # fmt: skip
    world.write(events(first))
    assert world.queries.status_counts() == {"running": 1, "completed": 1}
    assert world.one("SELECT count(*) FROM workflow_execution WHERE workflow_id IS NULL") == 0
    assert world.differences() == []


def test_a_parent_is_the_newest_run_before_the_retry(world: AuditWorld) -> None:
    execution = Chain().execution
    runs = [completed(run=number, execution=execution) for number in (1, 2, 90)]
    world.write(events(*runs, retry_of(runs[0], 1, run=40)))
    parent = "SELECT p.run FROM workflow_execution c JOIN workflow_execution p ON p.id = c.parent_execution_id"
    assert world.one(parent) == 2


# Definitions


def test_a_definition_that_comes_late_is_linked(world: AuditWorld) -> None:
    world.write(events(completed()))
    assert world.one("SELECT workflow_id FROM workflow_execution") is None
    world.write(definitions=[REGISTERED])
    assert (
        world.one("SELECT w.name FROM workflow_execution e JOIN workflow w ON w.id = e.workflow_id") == "onboarding"
    )
    assert world.one("SELECT count(*) FROM task_execution WHERE step_id IS NULL") == 0
    dependencies = world.ask(
        "SELECT a.name, b.name FROM step_dependency d JOIN step a ON a.id = d.step_id "
        "JOIN step b ON b.id = d.depends_on_id ORDER BY a.step_order, b.step_order"
    )
    assert dependencies == [("otp", "create"), ("mail", "create"), ("activate", "otp"), ("activate", "mail")]


def test_of_two_registrations_of_a_version_its_pointer_decides(world: AuditWorld) -> None:
    other = REGISTERED._replace(definition=_with(description="x"), hash=_with(description="x").hash)
    history = completed()
    world.write(events(history), definitions=[REGISTERED, other, Pointed("onboarding", "1", "?", True)])
    assert world.one("SELECT definition FROM workflow") == REGISTERED.hash
    world.write(definitions=[Pointed("onboarding", "1", other.hash, False, other)])
    assert world.one("SELECT definition, description, is_current FROM workflow") == (other.hash, "x", True)
    assert world.one("SELECT count(*) FROM workflow_execution WHERE workflow_id IS NULL") == 0


def _with(**changes: str) -> WorkflowDefinition:
    return WorkflowDefinition.model_validate({**DEFINITION.model_dump(), **changes})


# What the store refuses


def test_a_key_that_no_index_takes_is_refused(world: AuditWorld) -> None:
    too_long = Chain()
    too_long.started(key=_incompressible(9_000))
    with pytest.raises(BatchRefused):
        world.write([*events(completed()), *events(too_long)])
    assert (
        world.one("SELECT (SELECT count(*) FROM audit_event) + (SELECT sum(next_offset) FROM consumer_offset)") == 0
    )


def _incompressible(length: int) -> str:
    return "".join(hashlib.sha256(str(n).encode()).hexdigest() for n in range(length // 64))


def test_a_database_without_tables(database_url: str) -> None:
    store = PostgresAuditStore(database_url)
    with pytest.raises(StoreUnusable, match="flowpilot setup"):
        asyncio.run(store.positions([PLACE]))
    asyncio.run(store.close())


def test_a_server_that_is_not_there() -> None:
    store = PostgresAuditStore("postgresql://nobody@127.0.0.1:1/x")
    with pytest.raises(StoreUnavailable):
        asyncio.run(store.positions([PLACE]))
    asyncio.run(store.close())


def test_the_headers_of_a_dead_letter(world: AuditWorld) -> None:
    headers = (("traceparent", b"00-1"), ("b", b"\xff\0"), ("b", b""))
    record = Fetched("user", 1, 2, EPOCH, None, b"{", headers)
    sound = dead_letter(record, "not_json", "no", "router")
    world.write(
        letters=[Letter(sound, EPOCH), Letter(dead_letter(record._replace(headers=()), "x", "", "r"), EPOCH)]
    )
    stored = [{"name": name, "value": b64encode(value).decode()} for name, value in headers]
    found = world.ask("SELECT headers, headers_left_out FROM dead_letter ORDER BY id")
    assert found == [(stored, None), (None, None)]
    shown = show_letter(Settings(_env_file=None, database_url=SecretStr(world.url)), 1)
    assert shown is not None
    assert (shown.headers, shown.fields["headers_left_out"]) == (headers, 0)

    latin = (("gr\udcf6\udcdfe", b"1"),)
    world.write(letters=[Letter(dead_letter(record._replace(offset=4, headers=latin), "x", "", "r"), EPOCH)])
    again = show_letter(Settings(_env_file=None, database_url=SecretStr(world.url)), Place("user", 1, 4))
    assert again is not None
    assert again.headers == latin

    foreign = sound.model_copy(update={"offset": 3, "headers": [RecordHeader(name="a", value="a")]})
    with pytest.raises(BatchRefused):
        world.write(letters=[Letter(foreign, EPOCH)])


# Only changed columns


class EveryColumn(Shapes):
    """Deliberately wrong: sets every column of a task, changed or not."""

    def add(self, key: tuple[object, ...], row: Row) -> None:
        if self._types is TASK_TYPES:
            row = {**dict.fromkeys(("output", "error", "retry_at")), **row}
        super().add(key, row)


def _touched(sent: list[str]) -> dict[str, list[set[str]]]:
    """The columns that UPDATEs of the current rows set, by table."""
    found: dict[str, list[set[str]]] = {}
    for statement in sent:
        match = re.search(r"(?:UPDATE|INSERT INTO) (\w+_execution)\b.*? SET (.*?) (?:FROM|WHERE)", statement)
        if match:
            found.setdefault(match[1], []).append(set(re.findall(r'"?(\w+)"? = ', match[2])))
    return found


def _check_only_changed_columns(world: AuditWorld) -> None:
    history = Chain()
    history.started()
    history("StepReady", step="create", attempt=1, queue="q")
    world.write(events(history))
    expected: list[tuple[str, dict[str, object], dict[str, list[set[str]]]]] = [
        ("StepStarted", {"worker_id": "w"}, {"task_execution": [{"status", "seq", "started_at", "worker_id"}]}),
        ("CompletionIgnored", {"answer": "x", "reason": "y"}, {}),
        ("StepCompleted", {"output": 1}, {"task_execution": [{"status", "seq", "finished_at", "output"}]}),
        ("ExecutionCompleted", {}, {"workflow_execution": [{"status", "seq", "finished_at"}]}),
    ]
    for kind, fields, columns in expected:
        with statements(world.store.engine) as sent:
            world.write([event(history(kind, step="create", attempt=1, **fields))])
        assert _touched(sent) == columns, kind
    assert world.differences() == []


def test_updates_touch_only_changed_columns(world: AuditWorld) -> None:
    _check_only_changed_columns(world)


def test_the_check_of_changed_columns_turns_red(world: AuditWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "Shapes", EveryColumn)
    with pytest.raises(AssertionError):
        _check_only_changed_columns(world)


def test_a_batch_takes_a_constant_number_of_statements(world: AuditWorld) -> None:
    assert _statements_for(world, 2) == _statements_for(world, 60)


def _statements_for(world: AuditWorld, executions: int) -> int:
    with statements(world.store.engine) as sent:
        world.write(events(*(completed(run) for run in range(executions))))
    return len(sent)
