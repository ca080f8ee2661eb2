"""A record that would take hours to check costs a dead letter, and nobody waits for it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.ports.log import Record
from flowpilot_schemas.definition import StepDefinition, TriggerDefinition, WorkflowDefinition
from tests.unit.api_world import Api, problem
from tests.unit.client_world import World as ClientWorld
from tests.unit.client_world import run as run_client
from tests.unit.filters import And, nested
from tests.unit.test_router_loop import TOPICS, World, run, until, workflow

DOUBLED = {
    "$ref": "#/$defs/d0",
    "$defs": {
        **{f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]} for i in range(50)},
        "d50": {"minLength": 1},
    },
}
CHAINED = {
    "$ref": "#/$defs/d0",
    "$defs": {
        **{
            f"d{i}": {"anyOf": [{"type": "string"}, {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}]}]}
            for i in range(1_000)
        },
        "d1000": {"items": {"$ref": "#/$defs/d0"}},
    },
}
HOSTILE: dict[str, tuple[Any, Any]] = {
    "unions": (And.model_json_schema(), nested(24)),
    "doubled": (DOUBLED, "x"),
    "look-ahead": ({"pattern": "^(?=(a+)+$)b"}, "a" * 10_000 + "!"),
    "stack": (CHAINED, json.loads("[" * 150 + "]" * 150)),
}


def checked(name: str, topic: str, schema: Any) -> WorkflowDefinition:
    steps = (StepDefinition(name="only", queue=name),)
    triggers = (TriggerDefinition(topic=topic, start="earliest"),)
    return WorkflowDefinition(name=name, version="1", triggers=triggers, input_schema=schema, steps=steps)


@pytest.mark.parametrize("name", HOSTILE)
def test_nobody_waits_for_a_record_that_is_too_costly(name: str) -> None:
    schema, value = HOSTILE[name]

    async def test(world: World) -> None:
        world.log.create_topic("filters", 1)
        world.log.create_topic("orders", 1)
        await world.definitions.register(checked("filtering", "filters", schema))
        await world.definitions.register(workflow("ledger", "filters", start="earliest"))
        await world.definitions.register(workflow("billing", "orders", start="earliest"))
        await world.publish("filters", value, value)
        await world.publish("orders", 1)
        begun = time.monotonic()
        async with world.running():
            await until(lambda: len(world.starts()) == 3 and len(world.letters()) == 2)
        assert time.monotonic() - begun < 5
        assert {letter["reason"] for letter in world.letters()} == {"validation_too_costly"}
        assert {letter["workflow"] for letter in world.letters()} == {"filtering"}
        assert sorted(start["workflow"] for start in world.starts()) == ["billing", "ledger", "ledger"]

    run(test)


def test_one_partition_does_not_keep_the_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowpilot.router.reading.LONGEST", -1.0)

    async def test(world: World) -> None:
        world.log.create_topic("orders", 2)
        await world.definitions.register(workflow("billing", "orders", start="earliest"))
        records = [Record("orders", None, str(n).encode(), partition=n % 2) for n in range(40)]
        await world.log.producer().send(records)
        async with world.running():
            await until(lambda: len(world.starts()) >= 40)
        assert sorted(start["input"] for start in world.starts()) == list(range(40))
        assert world.polled["orders"] > 40  # what was left came again

    run(test)


def test_a_request_that_is_too_costly_is_refused_at_once() -> None:
    async def test(world: ClientWorld) -> None:
        async with Api(world, limit=10_000) as http:
            definitions = LogDefinitions(world.log.producer(), world.log.reader(), TOPICS.definitions)
            await definitions.register(checked("filtering", "filters", And.model_json_schema()))
            begun = time.monotonic()
            body = json.dumps(nested(24))
            refused = await http.post(
                "/workflows/filtering/executions", content=body, headers={"Content-Type": "application/json"}
            )
            assert time.monotonic() - begun < 5
            assert "operations" in problem(refused, 422, "input_invalid")["detail"]

    run_client(test)
