"""A record whose input only a worker's type can refuse: one dead letter, and its key is free for another."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flowpilot.cli.failures import Exit
from flowpilot_schemas.ids import keyed_execution_id
from tests.acceptance.running import PATIENCE, Place, RunningSystem
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance


def fates(system: RunningSystem, place: Place, wanted: str) -> dict[str, Any]:
    """The only current outcome of a record, once it is `wanted`."""

    def known() -> dict[str, Any] | None:
        process = system.cli_process("trigger", "fate", *map(str, place), "-o", "json")
        out, _ = process.communicate(timeout=PATIENCE)
        found = json.loads(out) if process.returncode == Exit.OK else []
        return found[0] if [each["fate"] for each in found] == [wanted] else None

    return eventually(known, PATIENCE, what=f"the outcome {wanted} of {place}")


def test_a_corrected_record_starts_what_a_refused_one_could_not(system: RunningSystem) -> None:
    topic = f"{system.namespace}-bookings"
    system.create_topic(topic)
    bad = system.publish(topic, b'{"key": "b-1", "booking_id": "b-1", "seats": 9}')
    execution = keyed_execution_id("booking", "b-1")

    refused = fates(system, bad, "dead_letter")
    assert (refused["reason"], refused["execution"]) == ("input_invalid", execution)
    assert "there are 4 seats" in refused["detail"]
    assert eventually(lambda: system.dead_letters([bad]), PATIENCE) == {bad: "input_invalid"}
    ended = system.ended(execution)
    assert (ended.status, ended.reason) == ("failed", "input_invalid")
    letter = json.loads(system.cli("dead-letter", "show", "/".join(map(str, bad)), "-o", "json").stdout)
    assert json.loads(letter["value_text"]) == {"key": "b-1", "booking_id": "b-1", "seats": 9}
    assert (letter["source"], letter["workflow"]) == ("worker", "booking")
    retried = system.cli("execution", "retry", execution, "--reason", "again", code=Exit.ERROR)
    assert "its key is free" in retried.stderr

    good = system.publish(topic, b'{"key": "b-1", "booking_id": "b-1", "seats": "3"}')
    started = fates(system, good, "started")
    assert started["execution"] == execution
    assert started["run"] != refused["run"]
    assert eventually(lambda: f"book {execution} 3" in system.calls(), PATIENCE)
    query = "select status, output from workflow_execution where execution_id = %s and run = %s"
    done = ("completed", 3)
    eventually(lambda: system.ask(query, execution, started["run"]) == [done], PATIENCE, what="the second run")
    assert not [call for call in system.calls() if call == f"book {execution} 9"]
    assert fates(system, bad, "dead_letter")["run"] == refused["run"]
