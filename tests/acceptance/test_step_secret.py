"""With FLOWPILOT_STEP_SECRET, processes on real Kafka: what the engine signed is run, and nothing else."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from flowpilot.local.services import LocalServices
from flowpilot_schemas.mac import HEADER_MAC
from tests.acceptance import flows
from tests.acceptance.running import PATIENCE, Place, RunningSystem, prepared_system
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

SECRET, OTHER = "the engine and its workers know", "somebody else and as long"
FLOW = "tests.acceptance.flows:shop"


@pytest.fixture(scope="module")
def system(services: LocalServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    folder = tmp_path_factory.mktemp("secret")
    with prepared_system(services, folder, {"FLOWPILOT_STEP_SECRET": SECRET}) as system:
        system.start_roles([FLOW])
        yield system


def steps(system: RunningSystem) -> list[Any]:
    [queue] = flows.shop.definition.queues
    return system.records(system.settings.topics.steps(queue))


def reason(system: RunningSystem, place: Place) -> str | None:
    return system.dead_letters([place]).get(place)


def worker(system: RunningSystem, name: str, secret: str) -> None:
    system.start(name, "worker", FLOW, environment={"FLOWPILOT_STEP_SECRET": secret}, ready_timeout=PATIENCE)


def test_signed_steps_run_and_forged_ones_do_not(system: RunningSystem) -> None:
    real = system.trigger("shop", {"n": 3})
    assert system.ended(real)[:2] == ("completed", 36)
    [first, *_] = [record for record in steps(system) if record.key.decode().startswith(real)]
    headers = dict(first.headers)
    assert headers[HEADER_MAC].startswith(b"v1:")
    forged = json.loads(first.value)
    stranger = str(uuid.uuid4())
    forged |= {"task_id": forged["task_id"].replace(real, stranger), "input": {"n": 666}}
    value = json.dumps(forged).encode()
    unsigned = system.publish(first.topic, value)
    stolen = system.publish(first.topic, value, headers=headers)
    eventually(lambda: reason(system, unsigned) == "step_mac_missing", PATIENCE)
    eventually(lambda: reason(system, stolen) == "step_mac_invalid", PATIENCE)
    records = system.records(system.settings.topics.events)
    assert not any(stranger.encode() in (record.value or b"") for record in records)
    after = system.trigger("shop", {"n": 4})
    assert system.ended(after)[:2] == ("completed", 64)


def test_a_worker_with_another_secret_runs_and_fails_nothing(system: RunningSystem) -> None:
    system.supervisor.stop("worker-1")
    worker(system, "worker-2", OTHER)
    stuck = system.trigger("shop", {"n": 5})
    query = "select detail from dead_letter where reason = 'step_mac_invalid' and convert_from(key, 'UTF8') like %s"
    [[detail]] = eventually(lambda: system.ask(query, f"{stuck}/%"), PATIENCE, what="the dead letter")
    assert "FLOWPILOT_STEP_SECRET" in detail
    assert SECRET not in detail
    assert [event["type"] for event in system.history(stuck)] == ["ExecutionStarted", "StepReady"]
    # Both secrets, as while one is rotated: the next one is run.
    system.supervisor.stop("worker-2")
    worker(system, "worker-3", f"{OTHER},{SECRET}")
    assert system.ended(system.trigger("shop", {"n": 6}))[:2] == ("completed", 144)
    system.cli("execution", "cancel", stuck, "--reason", "its step was refused")
    assert system.ended(stuck).status == "cancelled"
    log = "".join(system.supervisor.log_path(name).read_text() for name in ("worker-2", "worker-3", "engine"))
    assert not any(secret in log for secret in (SECRET, OTHER))


def test_a_worker_without_a_secret_runs_signed_steps(system: RunningSystem) -> None:
    for name in system.supervisor.names():
        if name.startswith("worker"):
            system.supervisor.stop(name)
    worker(system, "worker-4", "")
    assert system.ended(system.trigger("shop", {"n": 7}))[:2] == ("completed", 196)
