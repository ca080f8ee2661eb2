"""`doctor`, `topic`, `db` and `queue` on real servers: each thing that can be wrong is found and named."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from pydantic import SecretStr
from sqlalchemy import create_engine, text

from flowpilot import Workflow
from flowpilot.adapters.postgres.engine import driver_url
from flowpilot.adapters.postgres.migrations import upgrade
from flowpilot.app.database import prepare_database
from flowpilot.app.divergences import UnknownDivergence, acknowledge, differences
from flowpilot.app.doctor import Check, examine
from flowpilot.app.topics import apply_topics, list_queues, list_topics, plan_topics
from flowpilot.app.workflows import apply_workflow
from flowpilot.settings import Settings
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.members import ServedDefinition, worker_announced
from tests.conftest import delete_topics

pytestmark = pytest.mark.integration


@pytest.fixture
def fresh(settings: Settings, database_url: str) -> Any:
    """Settings with a database that is empty, and no topic."""
    yield settings.model_copy(update={"database_url": SecretStr(database_url)})
    delete_topics(settings)


def found(settings: Settings) -> dict[str, Check]:
    return {check.check: check for check in examine(settings)}


def execute(settings: Settings, statement: str) -> None:
    engine = create_engine(driver_url(settings.database_url.get_secret_value()))
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_topics_are_planned_created_mended_and_refused(fresh: Settings) -> None:
    assert {plan.action for plan in plan_topics(fresh)} == {"create"}
    assert {row["state"] for row in list_topics(fresh)} == {"missing"}
    assert {outcome.outcome for outcome in apply_topics(fresh)} == {"created"}
    assert {plan.action for plan in plan_topics(fresh)} == {"keep"}

    resource = ConfigResource(ResourceType.TOPIC, fresh.topics.control)
    entry = ConfigEntry("retention.ms", "17", incremental_operation=AlterConfigOpType.SET)
    resource.add_incremental_config(entry)
    client = AdminClient({"bootstrap.servers": fresh.bootstrap_servers})
    for done in client.incremental_alter_configs([resource]).values():
        done.result(10)
    [changed] = [plan for plan in plan_topics(fresh) if plan.action != "keep"]
    assert (changed.action, changed.topic) == ("change", fresh.topics.control)
    assert changed.detail == "retention.ms=17 instead of 86400000"
    checks = found(fresh)["topics"]
    assert (checks.status, checks.remedy) == ("warn", "flowpilot topic apply")
    assert [outcome.topic for outcome in apply_topics(fresh) if outcome.outcome == "updated"] == [changed.topic]

    other = fresh.model_copy(update={"event_partitions": 8})
    refused = {plan.topic for plan in plan_topics(other) if plan.action == "refuse"}
    assert fresh.topics.events in refused
    assert fresh.topics.triggers not in refused
    assert "FLOWPILOT_EVENT_PARTITIONS" in (found(other)["topics"].remedy or "")


def test_a_system_that_was_not_set_up_is_told_what_to_run(fresh: Settings) -> None:
    checks = found(fresh)
    assert (checks["topics"].status, checks["topics"].remedy) == ("fail", "flowpilot topic apply")
    assert (checks["migrations"].status, checks["migrations"].remedy) == ("fail", "flowpilot db upgrade")
    prepare_database(fresh)
    execute(fresh, "UPDATE alembic_version SET version_num = 'from-the-future'")
    assert "which this release does not know" in found(fresh)["migrations"].detail


def test_a_queue_that_nobody_serves_is_named(fresh: Settings) -> None:
    apply_topics(fresh)
    upgrade(fresh.database_url.get_secret_value())
    workflow = Workflow("lonely", version="1")
    workflow.add_step(lambda: None, name="wait")
    asyncio.run(apply_workflow(fresh, workflow))
    checks = found(fresh)
    assert checks["queue lonely"].status == "warn"
    assert {checks[role].status for role in ("engine", "router", "audit")} == {"warn"}

    producer = Producer({"bootstrap.servers": fresh.bootstrap_servers})
    for topic in (fresh.topics.steps("lonely"), fresh.topics.events):
        producer.produce(topic, b"{}")
    assert producer.flush(20) == 0
    checks = found(fresh)
    assert checks["queue lonely"].status == "fail"
    assert checks["queue lonely"].detail == "nobody serves it, waiting: 1 step"
    assert checks["queue lonely"].remedy == "flowpilot worker MODULE:lonely"
    assert (checks["engine"].status, checks["engine"].remedy) == ("fail", "flowpilot engine")
    assert checks["router"].status == "warn"
    [queue] = list_queues(fresh)
    assert (queue["queue"], queue["lag"], queue["worker"]) == ("lonely", 1, None)


def test_dead_letters_and_divergences_are_counted(fresh: Settings) -> None:
    prepare_database(fresh)
    checks = found(fresh)
    assert (checks["dead letters"].status, checks["audit record"].status) == ("ok", "ok")
    letter = (
        'INSERT INTO dead_letter (topic, partition, "offset", timestamp, source, reason, detail, size, sha256, '
        "truncated, reported_at) VALUES ('t', 0, {}, 0, 's', 'r', 'd', 0, '', false, now() - interval '{}')"
    )
    execute(fresh, letter.format(1, "2 days"))
    assert found(fresh)["dead letters"].status == "ok"
    execute(fresh, letter.format(2, "1 hour"))
    execute(
        fresh,
        'INSERT INTO audit_divergence (reason, detail, topic, partition, "offset", fingerprint) '
        "VALUES ('r', 'd', 't', 0, 1, 'f00d')",
    )
    checks = found(fresh)
    assert (checks["dead letters"].status, checks["dead letters"].detail) == ("warn", "1 within 24 hours")
    assert "step secret" not in checks
    execute(fresh, letter.format(3, "1 hour").replace("'r'", "'step_mac_invalid'"))
    assert found(fresh)["step secret"].status == "warn"
    assert (checks["audit record"].status, checks["audit record"].remedy) == ("fail", "flowpilot divergence list")
    [taken] = acknowledge(fresh, ["f00d"], None, "user:ann", "known")
    assert taken["acknowledged"]["reason"] == "known"
    checks = found(fresh)
    assert (checks["audit record"].status, checks["audit record"].detail) == (
        "ok",
        "no divergence but 1 acknowledged",
    )
    assert [each["id"] for each in differences(fresh)] == ["f00d"]  # listed, and no error
    assert acknowledge(fresh, [], None, "user:ann", "all") == []
    with pytest.raises(UnknownDivergence, match="no divergence has an id that begins with 'beef'"):
        acknowledge(fresh, ["f00d", "beef"], None, "user:ann", "known")


def test_servers_that_do_not_answer_are_findings(fresh: Settings) -> None:
    away = fresh.model_copy(
        update={
            "bootstrap_servers": "127.0.0.1:1",
            "database_url": SecretStr("postgresql://me:secret@127.0.0.1:1/x"),
        }
    )
    checks = found(away)
    assert {name: check.status for name, check in checks.items()} == {"kafka": "fail", "postgresql": "fail"}
    assert "secret" not in str(checks)


def test_version_that_runs_and_that_no_worker_serves_is_named(fresh: Settings) -> None:
    apply_topics(fresh)
    upgrade(fresh.database_url.get_secret_value())
    versions = []
    for number in ("1", "2"):
        workflow = Workflow("shop", version=number)
        workflow.add_step(lambda: None, name=f"step{number}")
        versions.append(workflow.definition)
        asyncio.run(apply_workflow(fresh, workflow))
    one, two = versions
    for definition, count in ((one, 3), (two, 1)):
        for number in range(count):
            execute(
                fresh,
                "INSERT INTO workflow_execution (execution_id, run, workflow_name, workflow_version, definition, "
                f"status, seq) VALUES ('{definition.version}-{number}', 1, 'shop', '{definition.version}', "
                f"'{definition.hash}', 'running', 1)",
            )
    announce(fresh, "w1", [two])
    checks = found(fresh)
    assert "version shop 2" not in checks
    lacking = checks["version shop 1"]
    assert lacking.status == "fail"
    assert lacking.detail == (
        "1 of 1 steps need a worker that serves shop 1: the worker of queue shop serves 2; 3 executions running"
    )
    assert lacking.remedy == "flowpilot worker MODULE:shop with the code of version 1"
    [queue] = list_queues(fresh)
    assert (queue["worker"], [each["version"] for each in queue["versions"]]) == ("w1", ["2"])

    announce(fresh, "w1", [one, two])
    checks = found(fresh)
    assert (checks["versions"].status, checks["versions"].detail) == ("ok", "2 in use, each with a worker")


def announce(settings: Settings, worker: str, definitions: list[WorkflowDefinition]) -> None:
    announced = worker_announced(
        worker,
        started_at="",
        release="",
        queues={"shop": [0]},
        definitions=[
            ServedDefinition(workflow=each.name, version=each.version, definition=each.hash) for each in definitions
        ],
        session_ms=120_000,
    )
    producer = Producer({"bootstrap.servers": settings.bootstrap_servers})
    producer.produce(settings.topics.members, encode_message(announced), announced.key)
    assert producer.flush(20) == 0
