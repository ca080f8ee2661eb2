"""`flowpilot api` as a process beside the other roles, asked by a plain HTTP client."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import httpx
import pytest

from flowpilot.cli.failures import Exit
from flowpilot.local.ports import free_ports
from flowpilot_schemas.ids import keyed_execution_id
from tests import planted
from tests.acceptance.running import PATIENCE, RunningSystem
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

TOKENS = f"ops={planted.MARK}-ops,billing={planted.TOKEN}"
START = "/workflows/shop/executions"


class Served(NamedTuple):
    """An API process and a client of it."""

    process: subprocess.Popen[str]
    http: httpx.Client


@contextmanager
def api(system: RunningSystem, **environment: str) -> Iterator[Served]:
    """The role from its readiness to its end by SIGTERM, which has to be a good one."""
    command = [sys.executable, "-m", "flowpilot.cli.main", "api"]
    env = {**os.environ, **system.environment, "FLOWPILOT_API_PORT": "0", **environment}
    process = subprocess.Popen(command, cwd=system.cwd, env=env, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith("api ready: http://127.0.0.1:"), said + process.stderr.read()
        with httpx.Client(base_url=said.split()[-1], timeout=PATIENCE) as http:
            yield Served(process, http)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, process.stderr.read()
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()


def shown_as(http: httpx.Client, execution: str, status: str) -> dict[str, object]:
    """The execution, once the audit record has that status."""

    def there() -> dict[str, object] | None:
        answer = http.get(f"/executions/{execution}")
        found: dict[str, object] = answer.json()
        return found if answer.is_success and found["status"] == status else None

    found = eventually(there, PATIENCE, what=f"{execution} {status}")
    assert found is not None
    return found


def test_an_executions_life_with_a_token(system: RunningSystem) -> None:
    [port] = free_ports(1)
    with api(system, FLOWPILOT_API_TOKENS=TOKENS, FLOWPILOT_METRICS_PORT=str(port)) as (_, http):
        assert http.get("/executions").status_code == http.post(START, json={"n": 3}).status_code == 401
        assert http.get("/readyz").json() == {"status": "ok", "kafka": "ok"}
        http.headers["Authorization"] = f"Bearer {planted.TOKEN}"
        assert http.get("/readyz").json() == {"status": "ok", "kafka": "ok", "postgres": "ok"}

        key = {"Idempotency-Key": f"p-{uuid.uuid4()}"}
        traced = {**key, "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
        done = http.post(START, json={"n": 3}, headers=traced, params={"wait": "1m"})
        assert done.status_code == 200, done.text
        execution = done.json()["execution"]
        assert (done.json()["status"], done.json()["output"]) == ("completed", 36)
        again = http.post(START, json={"n": 3}, headers=key, params={"wait": "1m"})
        assert (again.status_code, again.json()) == (200, done.json())
        conflict = http.post(START, json={"n": 4}, headers=key, params={"if_exists": "fail"})
        assert (conflict.status_code, conflict.json()["code"]) == (409, "key_conflict")
        assert conflict.json()["execution"] == execution

        shown = shown_as(http, execution, "completed")
        assert (shown["output"], shown["created_by"], shown["key"]) == (36, "billing", key["Idempotency-Key"])
        assert shown["traceparent"] == traced["traceparent"]
        [listed] = http.get("/executions", params={"key": key["Idempotency-Key"]}).json()["items"]
        assert (listed["execution"], listed["steps"]) == (execution, "2/2")
        told = http.get(f"/executions/{execution}/history").json()["items"]
        assert [event["seq"] for event in told] == list(range(1, len(told) + 1))
        assert {"ExecutionStarted", "StepCompleted", "ExecutionCompleted", "KeyConflict"} <= {
            event["type"] for event in told
        }
        [shop] = [row for row in http.get("/workflows").json()["items"] if row["workflow"] == "shop"]
        assert shop["steps"] == ["double", "square"]

        misfit = http.post(START, json={"n": "three"})
        assert (misfit.status_code, "input.n" in misfit.json()["detail"]) == (422, True)
        failed = http.post(START, json={"n": -1}, params={"wait": "1m"}).json()
        assert (failed["status"], failed["errors"]["double"]["message"]) == ("failed", "n is negative")
        retried = http.post(
            f"/executions/{failed['execution']}/retry", json={"reason": "once more"}, params={"wait": "1m"}
        )
        assert (retried.status_code, retried.json()["status"]) == (200, "failed")
        retry = f"{failed['execution']}.1"
        assert retried.json()["execution"] == retry
        assert shown_as(http, retry, "failed")["retry_reason"] == "once more"
        refused = http.post(f"/executions/{execution}/retry")
        assert (refused.status_code, refused.json()["code"]) == (409, "completed")

        told = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        retries = 'method="POST",route="/executions/{execution}/retry",status='
        assert f'flowpilot_api_requests_total{{{retries}"2xx"}} 1.0' in told
        assert f'flowpilot_api_requests_total{{{retries}"4xx"}} 1.0' in told
        assert execution not in told
        assert http.get("/metrics").status_code == 404


def test_a_cancel_reaches_who_waits_and_the_handler(system: RunningSystem) -> None:
    with api(system) as (_, http), ThreadPoolExecutor(1) as pool:
        started = http.post("/workflows/lingering/executions", headers={"X-FlowPilot-Actor": "user:ann"})
        assert started.status_code == 202
        execution = started.json()["execution"]
        key = {"Idempotency-Key": f"l-{uuid.uuid4()}"}
        waiting = pool.submit(http.post, "/workflows/lingering/executions", headers=key, params={"wait": "1m"})
        waited = keyed_execution_id("lingering", key["Idempotency-Key"])
        for lingers in (execution, waited):
            eventually(lambda lingers=lingers: f"lingers {lingers}" in system.calls(), PATIENCE)  # type: ignore[misc]
            assert http.post(f"/executions/{lingers}/cancel", json={"reason": "seen enough"}).status_code == 202
        answer = waiting.result(PATIENCE)
        assert (answer.status_code, answer.json()["status"], answer.json()["reason"]) == (
            200, "cancelled", "seen enough",
        )  # fmt: skip
        shown = shown_as(http, execution, "cancelled")
        assert shown["created_by"] == "user:ann"
        [cancelled] = [
            event
            for event in http.get(f"/executions/{execution}/history").json()["items"]
            if event["type"] == "ExecutionCancelled"
        ]
        assert (cancelled["actor"], cancelled["reason"]) == ("anonymous", "seen enough")


def test_at_sigterm_who_waits_is_answered_and_nobody_new_is_taken(system: RunningSystem) -> None:
    """On a PostgreSQL that does not answer, without which executions start and end all the same."""
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    dead = f"postgresql://flowpilot@{nobody}/flowpilot"
    with api(system, FLOWPILOT_DATABASE_URL=dead) as (process, http), ThreadPoolExecutor(1) as pool:
        listed = http.get("/executions")
        assert (listed.status_code, listed.json()["code"]) == (503, "postgres_unavailable")
        assert listed.headers["Retry-After"] == "5"
        assert nobody not in listed.text
        done = http.post(START, json={"n": 4}, params={"wait": "1m"})
        assert (done.status_code, done.json()["output"]) == (200, 64)

        key = {"Idempotency-Key": f"l-{uuid.uuid4()}"}
        execution = keyed_execution_id("lingering", key["Idempotency-Key"])
        waiting = pool.submit(http.post, "/workflows/lingering/executions", headers=key, params={"wait": "1m"})
        eventually(lambda: f"lingers {execution}" in system.calls(), PATIENCE)
        process.send_signal(signal.SIGTERM)
        answer = waiting.result(20)
        assert (answer.status_code, answer.json()["execution"]) == (202, execution)
        assert process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            http.get("/healthz")
    system.cli("execution", "cancel", execution, "--reason", "seen enough")
    assert system.ended(execution).status == "cancelled"


def test_a_start_that_kafka_does_not_acknowledge_has_an_id(system: RunningSystem) -> None:
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    with api(system, FLOWPILOT_BOOTSTRAP_SERVERS=nobody) as (_, http), ThreadPoolExecutor(1) as pool:
        key = {"Idempotency-Key": "k"}
        start = pool.submit(http.post, START, json={"n": 3}, headers=key)
        ready = http.get("/readyz")
        assert (ready.status_code, "Kafka did not answer" in ready.json()["detail"]) == (503, True)
        assert http.get("/executions").status_code == 200
        answer = start.result(PATIENCE)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert answer.json()["execution"] == keyed_execution_id("shop", "k")
        assert answer.json()["code"] == "not_started"


def test_without_tokens_it_does_not_listen_to_the_network(system: RunningSystem) -> None:
    refused = system.cli("api", code=Exit.USAGE, FLOWPILOT_API_HOST="0.0.0.0")
    assert refused.stderr.count("\n") == 1
    assert "FLOWPILOT_API_TOKENS" in refused.stderr
