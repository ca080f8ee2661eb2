"""Records of systems that know nothing of FlowPilot, and what can be asked about each of them afterwards."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from flowpilot.adapters.postgres.engine import connect
from flowpilot.adapters.postgres.queries import AuditQueries
from flowpilot.cli.failures import Exit
from flowpilot_schemas.ids import event_execution_id, keyed_execution_id
from tests.acceptance.running import PATIENCE, Place, RunningSystem
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

FLOWS = """
from flowpilot import Workflow, on_topic

ledger = Workflow("ledger", version="1", triggers=[on_topic("{topic}", start="earliest")])
large = Workflow(
    "large",
    version="1",
    triggers=[on_topic("{topic}", unique_by="order", where='data.sum > 100 && event.type == "paid"')],
)


@ledger.step(queue="nobody")
def note() -> None: ...


@large.step(queue="nobody")
def ring() -> None: ...
"""
EVENT = {"specversion": "1.0", "source": "/shop", "type": "paid"}


def structured(id: str, **data: Any) -> bytes:
    return json.dumps({**EVENT, "id": id, "data": data}).encode()


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def dry_run(system: RunningSystem, topic: str, record: bytes, *options: str, code: Exit = Exit.OK) -> Any:
    process = system.cli_process("trigger", "dry-run", topic, *options, "-o", "json")
    out, err = process.communicate(record.decode(), timeout=PATIENCE)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return json.loads(out) if out else err


def test_each_record_has_a_fate_that_can_be_asked_for_and_foretold(system: RunningSystem, tmp_path: Path) -> None:
    topic = f"{system.namespace}-payments"
    module = tmp_path / "payments.py"
    module.write_text(FLOWS.format(topic=topic))
    system.create_topic(topic)
    [old] = system.publish_all(topic, [structured("e-0", order="o-0", sum=500)], partition=0)
    system.cli("workflow", "apply", f"{module}:ledger")
    system.cli("workflow", "apply", f"{module}:large")
    headers = {f"ce_{name}": value.encode() for name, value in EVENT.items()}
    values: list[bytes | None] = [
        structured("e-1", order="o-1", sum=500),
        structured("e-1", order="o-1", sum=500),
        structured("e-2", order="o-1", sum=501),
        structured("e-3", order="o-2", sum=5),
        structured("e-4", order="o-3", sum="500"),
        b"{",
        None,
    ]
    first, again, conflict, small, unsure, broken, empty = system.publish_all(topic, values, partition=0)
    [binary] = system.publish_all(
        topic, [b'{"order": "o-4", "sum": 101}'], partition=0, headers={**headers, "ce_id": b"e-5"}
    )

    engine = connect(system.services.database_url)
    queries = AuditQueries(engine)

    def fates(place: Place) -> dict[str | None, str]:
        """By workflow, once both are known."""

        def known() -> dict[str | None, str]:
            found = {each.workflow: each.reason or each.fate for each in queries.fates(*place)}
            return found if len(found) == 2 or None in found else {}

        return eventually(known, PATIENCE, what=f"the fates of {place}")

    # The one that goes back to the beginning was given a record that the other never saw.
    assert fates(old) == {"ledger": "started", "large": "before_start"}
    assert fates(first) == {"ledger": "started", "large": "started"}
    assert fates(again) == {"ledger": "duplicate", "large": "duplicate"}
    assert fates(conflict) == {"ledger": "started", "large": "key_conflict"}
    assert fates(small) == {"ledger": "started", "large": "where"}
    assert fates(unsure) == {"ledger": "started", "large": "where_failed"}
    assert fates(broken) == {None: "not_json"}
    assert fates(empty) == {"ledger": "tombstone", "large": "tombstone"}
    assert fates(binary) == {"ledger": "started", "large": "started"}

    engine.dispose()

    listed = system.cli("trigger", "fate", *map(str, binary)).stdout
    assert event_execution_id("ledger", "/shop", "e-5") in listed
    missing = system.cli("trigger", "fate", topic, "0", "4711", code=Exit.NOT_FOUND)
    assert f"{topic}/0 has no record 4711 yet" in missing.stderr
    assert (missing.stdout, missing.stderr.count("\n")) == ("", 1)

    options = [f"-Hce_{name}={value}" for name, value in {**EVENT, "id": "e-9"}.items()]
    large, ledger = dry_run(system, topic, b'{"order": "o-9", "sum": 500}', *options)
    assert (ledger["workflow"], ledger["execution"]) == ("ledger", event_execution_id("ledger", "/shop", "e-9"))
    assert (large["workflow"], large["outcome"], large["key"]) == ("large", "start", "o-9")
    [letter] = dry_run(system, topic, b"{", code=Exit.ERROR)
    assert (letter["outcome"], letter["reason"]) == ("dead_letter", "not_json")
    assert "no registered workflow reads" in dry_run(system, "no-such-topic", b"1", code=Exit.NOT_FOUND)


def test_a_record_is_published_from_the_command_line(system: RunningSystem, tmp_path: Path) -> None:
    topic = f"{system.namespace}-refunds"
    module = tmp_path / "refunds.py"
    module.write_text(FLOWS.format(topic=topic).replace('"ledger"', '"refunds"').replace('"large"', '"audits"'))
    record = tmp_path / "record.json"
    record.write_bytes(structured("e-1", order="o-é", sum=500))
    publish = ("trigger", "publish", topic, "--file", str(record))

    # On a topic that nobody reads, or that is not there, nothing is published.
    unread = system.cli(*publish, code=Exit.NOT_FOUND)
    assert f"no registered workflow reads {topic} (" in unread.stderr
    system.cli("workflow", "apply", f"{module}:ledger")
    system.cli("workflow", "apply", f"{module}:large")
    other = system.cli("trigger", "publish", "no-such-topic", "--file", str(record), code=Exit.NOT_FOUND)
    assert f"{topic} starts audits, refunds" in other.stderr
    missing = system.cli(*publish, code=Exit.NOT_FOUND)
    assert (missing.stdout, f"there is no topic {topic} on Kafka" in missing.stderr) == ("", True)
    system.create_topic(topic)  # which is refused if it was there after all

    # What is said beforehand, and what becomes of it.
    foretold = system.cli(*publish, "--dry-run").stdout
    assert event_execution_id("refunds", "/shop", "e-1") in foretold
    assert system.records(topic) == []
    sent = system.cli(*publish, "--key", "o-é", "-H", "trace=a=b", "--wait", "-o", "json")
    found = json.loads(sent.stdout)
    assert {fate["workflow"]: fate["fate"] for fate in found["fates"]} == {
        "refunds": "started",
        "audits": "started",
    }
    [kept] = system.records(topic)
    assert (kept.partition, kept.offset) == (found["partition"], found["offset"])
    assert (kept.key, kept.value, kept.headers) == ("o-é".encode(), record.read_bytes(), (("trace", b"a=b"),))

    # From stdin; the place is all of stdout, so that a script goes on with it.
    process = system.cli_process("trigger", "publish", topic)
    out, err = process.communicate("{", timeout=PATIENCE)
    assert process.returncode == Exit.OK, err
    assert "every workflow that reads it: a dead letter, not_json" in err
    [broken] = [each for each in system.records(topic) if each.value == b"{"]
    assert out == f"{topic}/{broken.partition}/{broken.offset}\n"
    record.write_bytes(b"{")
    letter = system.cli(*publish, "--wait", code=Exit.ERROR)
    assert "not_json" in letter.stdout
    record.write_bytes(structured("e-2", order="o-2", sum=5))
    filtered = system.cli(*publish, "--wait", "--timeout", "60")
    assert "the trigger's where is not true for it" in filtered.stdout
    late = system.cli(*publish, "--wait", "--timeout", "0", code=Exit.TIMED_OUT)
    assert f"`flowpilot trigger fate {topic} " in late.stderr


def test_a_records_trace_is_in_the_step_record_in_ctx_and_in_the_audit(system: RunningSystem) -> None:
    record = {"v": 1, "workflow": "troubles", "key": (key := f"k-{uuid.uuid4()}"), "input": {"trouble": "trace"}}
    headers = {"traceparent": TRACE.encode()}
    system.publish(system.settings.topics.triggers, json.dumps(record).encode(), key=key, headers=headers)
    execution = keyed_execution_id("troubles", key)

    assert system.ended(execution).output == TRACE
    [(place,)] = system.ask(
        "select t.broker_task_id from task_execution t join workflow_execution e on e.id = t.workflow_execution_id "
        "where e.execution_id = %s",
        execution,
    )
    steps = system.records(place.rsplit("/", 2)[0])
    [step] = [each for each in steps if f"{each.topic}/{each.partition}/{each.offset}" == place]
    assert dict(step.headers)["traceparent"] == TRACE.encode()
    query = "select traceparent from workflow_execution where execution_id = %s"
    assert system.ask(query, execution) == [(TRACE,)]
    [started] = system.told(execution, "ExecutionStarted")
    assert started["traceparent"] == TRACE
    assert TRACE in system.cli("execution", "show", execution).stdout
