"""Who is live and what is served, as real processes announce it and the command line tells it."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator

import pytest

from flowpilot.adapters.kafka.config import producer_properties, reader_properties
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.adapters.members import LogMembers
from flowpilot.cli.failures import Exit
from flowpilot.local.services import LocalServices
from flowpilot.ports.members import LiveMembers
from flowpilot_schemas.messages import RULES
from tests.acceptance.running import PATIENCE, RunningSystem, prepared_system
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

VERSION = """
from flowpilot import Workflow

trip = Workflow("trip", version="{version}")


@trip.step
def go() -> int:
    return 1


@trip.step
def back(go: int) -> int:
    return go + {version}
"""


@pytest.fixture
def system(services: LocalServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Set up, with the versions 1 and 2 of `trip` as files and sessions of two seconds; nothing runs."""
    folder = tmp_path_factory.mktemp("announcements")
    for version in ("1", "2"):
        (folder / f"v{version}.py").write_text(VERSION.format(version=version))
    with prepared_system(services, folder, {"FLOWPILOT_MEMBER_SESSION": "2"}) as system:
        system.run("setup")
        yield system


def live(system: RunningSystem) -> LiveMembers:
    async def look() -> LiveMembers:
        producer = KafkaProducer(producer_properties(system.settings))
        reader = KafkaReader(reader_properties(system.settings))
        try:
            return await LogMembers(reader, system.settings.topics.members, producer).live()
        finally:
            producer.close()
            reader.close()

    return asyncio.run(look())


def test_engine_is_live_from_its_start_to_its_end(system: RunningSystem) -> None:
    system.start("engine", "engine", ready_timeout=PATIENCE)
    [engine] = eventually(lambda: live(system).engines)
    assert engine.rules == RULES
    assert live(system).engines_know(RULES)
    assert not live(system).engines_know(RULES + 1)
    system.supervisor.kill("engine")
    [again] = eventually(lambda: [each for each in live(system).engines if each.engine != engine.engine], PATIENCE)
    eventually(lambda: [each.engine for each in live(system).engines] == [again.engine])
    system.supervisor.stop("engine")
    assert live(system).engines == []


def rows(system: RunningSystem) -> list[tuple[str | None, list[str]]]:
    """Each worker of the queue, with the versions that it serves."""
    listed = system.cli_json("queue", "list")
    return [(row["worker"], [each["version"] for each in row["versions"] or []]) for row in listed]


def waits(system: RunningSystem, execution: str) -> dict[str, str]:
    """What the step `go` waits for, once it is ready."""

    def ready() -> dict[str, str] | None:
        [step] = [task for task in system.cli_json("execution", "show", execution)["tasks"] if task["step"] == "go"]
        found: dict[str, str] | None = step.get("waits_for")
        return found

    eventually(lambda: system.ask("select 1 from task_execution where status = 'ready'"), PATIENCE)
    return eventually(ready, PATIENCE)


def doctor(system: RunningSystem, *, code: Exit) -> dict[str, tuple[str, str]]:
    listed = json.loads(system.cli("doctor", "-o", "json", code=code).stdout)
    return {check["check"]: (check["status"], check["detail"]) for check in listed}


def test_what_is_served_is_told_until_a_killed_worker_expires(system: RunningSystem) -> None:
    for role in ("engine", "audit"):
        system.start(role, role, ready_timeout=PATIENCE)
    system.run("workflow", "apply", "v1.py:trip")
    execution = system.cli("execution", "start", "trip").stdout.strip()

    # Nobody is there.
    assert rows(system) == [(None, [])]
    wait = waits(system, execution)
    assert (wait["reason"], wait["remedy"]) == ("no_worker", "flowpilot worker MODULE:trip")
    shown = system.cli("execution", "show", execution).stdout
    assert "waits for a worker: queue trip has none" in shown
    assert "start one: flowpilot worker MODULE:trip" in shown
    assert doctor(system, code=Exit.ERROR)["version trip 1"] == (
        "fail",
        "2 of 2 steps need a worker: queue trip has none; 1 execution running",
    )

    # Another version's worker is listed as soon as it serves, and gone with its session when it is killed.
    worker = system.cli_process("worker", "v2.py:trip")
    try:
        [(name, versions)] = eventually(lambda: [row for row in rows(system) if row[1]], PATIENCE)
        assert versions == ["2"]
        assert name is not None
        assert f":{worker.pid}:" in name
        worker.send_signal(signal.SIGKILL)
        eventually(lambda: live(system).workers == [], PATIENCE)
        assert [row for row in rows(system) if row[1]] == []
    finally:
        worker.kill()
        worker.communicate()
    eventually(lambda: rows(system) == [(None, [])], PATIENCE)  # and out of the group, with the session of that


def test_execution_is_shown_without_kafka(system: RunningSystem) -> None:
    for role in ("engine", "audit"):
        system.start(role, role, ready_timeout=PATIENCE)
    system.run("workflow", "apply", "v1.py:trip")
    execution = system.cli("execution", "start", "trip").stdout.strip()
    waits(system, execution)
    began = time.monotonic()
    shown = system.cli("execution", "show", execution, FLOWPILOT_BOOTSTRAP_SERVERS="127.0.0.1:1").stdout
    assert "waits for a worker of queue trip" in shown
    assert time.monotonic() - began < 20
