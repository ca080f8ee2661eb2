"""Rule sets over a roll-out, with real processes: a later release is this one with one rule set more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowpilot.core.murmur2 import partition_of
from flowpilot.local.services import LocalServices
from flowpilot_schemas.ids import keyed_execution_id, root_id
from flowpilot_schemas.messages import RULES
from tests.acceptance.running import PATIENCE, RunningSystem, prepared_system
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

LATER = RULES + 1
TRIP = """
from flowpilot import Workflow

trip = Workflow("trip", version="1")


@trip.step
def go() -> int:
    return 1
"""


@pytest.fixture
def system(services: LocalServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Set up, with `trip` registered; nothing runs."""
    folder = tmp_path_factory.mktemp("rules")
    (folder / "flows.py").write_text(TRIP)
    (folder / "later").mkdir()
    later = f"from flowpilot_schemas import messages\nmessages.RULES = {LATER}\n"
    (folder / "later" / "sitecustomize.py").write_text(later)
    with prepared_system(services, folder, {"FLOWPILOT_MEMBER_SESSION": "2"}) as system:
        system.run("setup")
        system.run("workflow", "apply", "flows.py:trip")
        yield system


def of_later(system: RunningSystem) -> dict[str, str]:
    """The environment of a process of the later release."""
    return {"PYTHONPATH": f"{Path(system.cwd or '.') / 'later'}:{system.environment['PYTHONPATH']}"}


def home(system: RunningSystem, execution: str) -> int:
    return partition_of(root_id(execution).encode(), system.settings.event_partitions)


def start(system: RunningSystem, key: str, rules: int | None) -> str:
    """As a producer of its own would: a start on the events topic."""
    [found] = [each for each in system.cli_json("workflow", "list") if each["workflow"] == "trip"]
    execution = keyed_execution_id("trip", key)
    message = {
        "v": 1,
        "type": "execution.start",
        "execution": execution,
        "workflow": "trip",
        "version": "1",
        "definition": found["definition"],
        "key": key,
        "input": None,
        **({"rules": rules} if rules else {}),
    }
    value = json.dumps(message).encode()
    system.publish(system.settings.topics.events, value, key=execution, partition=home(system, execution))
    return execution


def test_start_above_the_permitted_set_costs_that_start_alone(system: RunningSystem) -> None:
    for role in ("engine", "audit"):
        system.start(role, role, ready_timeout=PATIENCE)
    refused = start(system, "above", LATER)
    [event] = system.told(refused, "StartRefused")
    assert event["reason"] == "rules_not_permitted"
    system.ended(refused)
    shown = system.cli("execution", "show", refused).stdout
    assert f"it asks for rule set {LATER}, and {RULES} is the highest that is permitted here" in " ".join(
        shown.split()
    )
    other = next(
        f"other-{n}"
        for n in range(99)
        if home(system, keyed_execution_id("trip", f"other-{n}")) == home(system, refused)
    )
    system.told(start(system, other, None), "ExecutionStarted")


def test_setup_permits_a_set_when_all_engines_have_it(system: RunningSystem) -> None:
    later = of_later(system)
    for role in ("engine", "audit"):
        system.start(role, role, ready_timeout=PATIENCE)
    said = eventually(lambda: json.loads(system.cli("setup", "-o", "json", **later).stdout)["rules"], PATIENCE)
    assert said["raised"] is False
    assert "would stop: upgrade all engines" in said["detail"]

    system.supervisor.stop("engine")

    def told() -> dict[str, Any]:
        """The group keeps a static member until its session ends."""
        found: dict[str, Any] = json.loads(system.cli("setup", "-o", "json", **later).stdout)["rules"]
        assert found["raised"] is False
        return found if "no engine is live" in found["detail"] else {}

    eventually(told, PATIENCE)

    system.start("upgraded", "engine", environment=later, ready_timeout=PATIENCE)
    said = json.loads(system.cli("setup", "-o", "json", **later).stdout)["rules"]
    assert said == {"rules": LATER, "raised": True, "detail": f"rule sets up to {LATER} are permitted"}
    system.told(start(system, "permitted", LATER), "ExecutionStarted")


def test_engine_without_a_permitted_set_stops_and_doctor_tells(system: RunningSystem) -> None:
    later = of_later(system)
    for role in ("engine", "audit"):
        system.start(role, role, ready_timeout=PATIENCE)
    system.cli("setup", "--raise-rules", **later)
    waiting = start(system, "waiting", LATER)
    sentence = f"partition {home(system, waiting)} permits rule set {LATER} from offset"

    def told() -> str:
        doctor = system.cli_process("doctor")
        said = " ".join(doctor.communicate(timeout=PATIENCE)[0].split())
        return said if sentence in said else ""

    said = eventually(told, PATIENCE, what="doctor tells of the stopped partition")
    assert "upgrade the engine" in said
    assert system.history(waiting) == []

    system.supervisor.stop("engine")
    system.start("upgraded", "engine", environment=later, ready_timeout=PATIENCE)
    system.told(waiting, "ExecutionStarted")
