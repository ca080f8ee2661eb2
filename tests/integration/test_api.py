"""The HTTP API's reading side on real PostgreSQL: pages, one execution, its history, dead letters' bytes."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from flowpilot.core.dead_letters import dead_letter
from flowpilot.ports.audit import Letter
from flowpilot.ports.log import Fetched
from flowpilot.settings import Settings
from tests.api_server import serving
from tests.audit_history import EPOCH, Chain, completed, events, retry_of
from tests.audit_world import AuditWorld

pytestmark = pytest.mark.integration


@pytest.fixture
def world(database_url: str) -> Iterator[AuditWorld]:
    made = AuditWorld(database_url)
    yield made
    made.close()


@pytest.fixture
def http(settings: Settings, world: AuditWorld) -> Iterator[httpx.Client]:
    """The API, on a broker that has no topics."""
    with (
        serving(settings.model_copy(update={"database_url": SecretStr(world.url)}), longest_wait=0.1) as address,
        httpx.Client(base_url=address, timeout=30) as client,
    ):
        yield client


def pages(http: httpx.Client, path: str, **wanted: Any) -> list[list[dict[str, Any]]]:
    """All pages of a list."""
    found, params = [], wanted
    while True:
        answer = http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found.append(page["items"])
        if page["next"] is None:
            return found
        params = {**wanted, "cursor": page["next"]}


def test_pages_stay_while_executions_begin(http: httpx.Client, world: AuditWorld) -> None:
    world.write(events(*(completed(run) for run in range(5))))
    first = http.get("/executions", params={"limit": 2}).json()
    assert [row["run"] for row in first["items"]] == [4, 3]
    world.write(events(*(completed(run) for run in range(5, 9))))
    rest = pages(http, "/executions", limit=2, cursor=first["next"])
    assert [[row["run"] for row in page] for page in rest] == [[2, 1], [0]]
    assert [len(page) for page in pages(http, "/executions", limit=3)] == [3, 3, 3]
    [everything] = pages(http, "/executions")
    assert [row["run"] for row in everything] == list(range(8, -1, -1))
    assert (everything[0]["steps"], everything[0]["retries"], everything[0]["origin"]) == ("4/4", 0, "u/0/8")


def test_filters(http: httpx.Client, world: AuditWorld) -> None:
    other = Chain(run=50)
    other.started(workflow="other", key="a\0b")
    done = completed(1)
    world.write(events(done, other, retry_of(done, 1, run=60)))

    def runs(**wanted: Any) -> list[int]:
        return [row["run"] for page in pages(http, "/executions", limit=1, **wanted) for row in page]

    assert runs(status="completed") == [1]
    assert runs(status="running") == [60, 50]
    assert runs(workflow="other") == runs(key="a\0b") == runs(key="a␀b") == [50]
    assert runs(parent=done.execution) == [60]
    [at] = [row["started_at"] for row in pages(http, "/executions", key="a\0b")[0]]
    assert runs(since=at) == [60, 50]
    assert runs(until=at) == [1]
    assert runs(since=at, workflow="onboarding", status="running") == [60]
    assert runs(workflow="no\0body") == []


def test_one_execution_and_its_runs(http: httpx.Client, world: AuditWorld) -> None:
    first = completed(run=1)
    again = completed(run=7, execution=first.execution)
    world.write(events(first, again, retry_of(again, 1, run=9)))
    path = f"/executions/{first.execution}"
    shown = http.get(path).json()
    assert (shown["run"], shown["runs"], shown["status"], shown["output"]) == (7, [7, 1], "completed", {"ok": True})
    assert shown["retries"] == [f"{first.execution}.1"]
    assert {task["step"]: task["attempt"] for task in shown["tasks"]} == {
        "create": 1, "mail": 1, "otp": 2, "activate": 1,
    }  # fmt: skip
    assert "history" not in shown
    assert http.get(path, params={"run": 1}).json()["run"] == 1
    retry = http.get(f"{path}.1").json()
    assert (retry["parent"], retry["retry_reason"], retry["status"]) == (first.execution, "fixed", "running")
    for unknown in (f"{path}?run=2", f"{path}.2", f"{path}.2/history", f"{path}/history?run=2"):
        answer = http.get(unknown)
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_execution")
        assert answer.headers["Retry-After"] == "1"


def test_history_is_what_was_decided_byte_by_byte(http: httpx.Client, world: AuditWorld) -> None:
    run = completed(run=3)
    world.write(events(run))
    path = f"/executions/{run.execution}/history"
    told = pages(http, path, limit=4)
    assert [event["seq"] for page in told for event in page] == list(range(1, len(run.records) + 1))
    assert [len(page) for page in told[:-1]] == [4] * (len(told) - 1)
    for record in run.records:
        assert (record.value or b"").decode() in http.get(path, params={"limit": 500}).text
    kinds = [event["type"] for page in told for event in page if event.get("step") == "otp"]
    assert kinds == ["StepReady", "StepRetryScheduled", "StepReady", "StepCompleted"]


def test_dead_letters_and_their_bytes(http: httpx.Client, world: AuditWorld) -> None:
    hostile = b"<script>\0\xff\x1b[2J"

    def letter(offset: int, value: bytes | None, reason: str = "not_json") -> Letter:
        record = Fetched("u", 1, offset, EPOCH, b"k", value, (("traceparent", b"00-1"), ("bytes", b"\xff")))
        return Letter(dead_letter(record, reason, "no", "router", "w"), EPOCH)

    world.write(letters=[letter(0, hostile), letter(1, None, "null_value"), letter(2, b"{")])
    listed = pages(http, "/dead-letters", limit=2)
    assert [[row["offset"] for row in page] for page in listed] == [[2, 1], [0]]
    assert [row["offset"] for row in pages(http, "/dead-letters", reason="null_value", workflow="w")[0]] == [1]
    assert http.get("/dead-letters", params={"topic": "u", "limit": 1}).json()["total"] == 3
    assert pages(http, "/dead-letters", since="2100-01-01T00:00:00Z", topic="\0") == [[]]

    [[null], [bad]] = [
        pages(http, "/dead-letters", reason="null_value")[0], [listed[1][0]],
    ]  # fmt: skip
    shown = http.get(f"/dead-letters/{bad['id']}").json()
    assert (b64decode(shown["value_base64"]), shown["value_text"], shown["workflow"]) == (hostile, None, "w")
    assert (shown["headers"], shown["headers_left_out"]) == (
        [
            {"name": "traceparent", "name_base64": None, "value_base64": "MDAtMQ==", "value_text": "00-1"},
            {"name": "bytes", "name_base64": None, "value_base64": "/w==", "value_text": None},
        ],
        0,
    )
    assert "publish JSON" in shown["remedy"]
    raw = http.get(f"/dead-letters/{bad['id']}/value")
    assert (raw.content, raw.headers["Content-Type"]) == (hostile, "application/octet-stream")
    assert raw.headers["Content-Disposition"].startswith("attachment;")
    assert raw.headers["X-Content-Type-Options"] == "nosniff"
    assert http.get(f"/dead-letters/{null['id']}/value").json()["code"] == "no_value"
    assert http.get("/dead-letters/999").json()["code"] == "unknown_dead_letter"


def test_a_database_that_comes_back_is_used_again(http: httpx.Client, world: AuditWorld) -> None:
    """Its old connections are closed by the server: no request pays for that."""
    assert http.get("/executions").status_code == 200
    world.ask("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'flowpilot-api'")
    assert http.get("/executions").status_code == 200
    missing = http.get("/readyz").json()
    assert (missing["code"], "Kafka did not answer" in missing["detail"]) == ("not_ready", True)
