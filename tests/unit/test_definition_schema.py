"""A definition is a DAG with legal names and bounded numbers, or it is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from flowpilot_schemas.codec import BadRecord, canonical, content_hash, decode_object, parse
from flowpilot_schemas.definition import TriggerDefinition, WorkflowDefinition
from flowpilot_schemas.limits import MAX_STEPS


def step(name: str, *parents: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "queue": "q", "depends_on": list(parents), **fields}


def content(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"v": 1, "name": "onboarding", "version": "1", "steps": list(steps or (step("a"),)), **fields}


def test_a_diamond() -> None:
    diamond = WorkflowDefinition.model_validate(
        content(step("a"), step("b", "a", queue="r"), step("c", "a"), step("d", "b", "c", takes=["c"], output=True))
    )
    assert diamond.index == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert diamond.dependents == ((1, 2), (3,), (3,), ())
    assert diamond.queues == ("q", "r")


def test_the_hash_is_that_of_the_bytes_on_the_wire() -> None:
    definition = WorkflowDefinition.model_validate(content(step("a"), step("b", "a")))
    wire = canonical(definition.model_dump(mode="json"))
    read = parse(WorkflowDefinition, decode_object(wire))
    assert read == definition
    assert read.hash == definition.hash == content_hash(decode_object(wire))


@pytest.mark.parametrize(
    "other",
    [
        content(step("a"), step("b", "a"), version="2"),
        content(step("a"), step("b", "a"), name="other"),
        content(step("a"), step("b")),
        content(step("a"), step("b", "a", retry={"max_attempts": 4})),
        content(step("a"), step("b", "a", args={"n": 1})),
        content(step("a"), step("b", "a"), timeout_ms=1_000),
    ],
)
def test_other_content_has_another_hash(other: dict[str, Any]) -> None:
    definition = WorkflowDefinition.model_validate(content(step("a"), step("b", "a")))
    assert WorkflowDefinition.model_validate(other).hash != definition.hash


REFUSED: list[tuple[dict[str, Any], str]] = [
    (content(steps=[]), "steps"),
    (content(step("a"), step("a")), "defined twice"),
    (content(step("a", "a")), "not an earlier step"),
    (content(step("a", "b"), step("b", "a")), "not an earlier step"),
    (content(step("a", "nowhere")), "not an earlier step"),
    (content(step("a"), step("b", "a", "a")), "names a dependency twice"),
    (content(step("a"), step("b", takes=["a"])), "does not depend on"),
    (content(step("a", output=True), step("b", output=True)), "more than one step"),
    (content(step("input")), "not a legal step name"),
    (content(step("parents")), "not a legal step name"),
    (content(step("a/b")), "not a legal step name"),
    (content(step("a", queue="-q")), "not a legal queue name"),
    (content(name="a@b"), "not a legal workflow name"),
    (content(name=""), "not a legal workflow name"),
    (content(version=""), "version"),
    (content(version="x" * 101), "version"),
    (content(step("a", retry={"max_attempts": 0})), "retry.max_attempts"),
    (content(step("a", retry={"backoff": 0.5})), "retry.backoff"),
    (content(step("a", retry={"initial_ms": -1})), "retry.initial_ms"),
    (content(step("a", start_to_close_ms=0)), "start_to_close_ms"),
    (content(step("a", heartbeat_ms=10)), "heartbeat_ms"),
    (content(step("a", schedule_to_start_ms=7 * 86_400_000)), "schedule_to_start_ms"),
    (content(step("a", on_schedule_to_start="explode")), "on_schedule_to_start"),
    (content(dedupe_window_ms=8 * 86_400_000), "dedupe_window_ms"),
    (content(triggers=[{"topic": ""}]), "triggers.0.topic"),
]


@pytest.mark.parametrize(("value", "sentence"), REFUSED)
def test_refused(value: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadRecord) as refused:
        parse(WorkflowDefinition, value)
    assert refused.value.reason == "wrong_shape"
    assert sentence in refused.value.detail


def test_width_has_a_bound() -> None:
    widest = [step(f"s{n}") for n in range(MAX_STEPS)]
    assert len(WorkflowDefinition.model_validate(content(*widest)).steps) == MAX_STEPS
    with pytest.raises(BadRecord, match="steps"):
        parse(WorkflowDefinition, content(*widest, step("one-more")))


def test_a_newer_definition_is_not_half_understood() -> None:
    with pytest.raises(BadRecord, match="future_version"):
        parse(WorkflowDefinition, {**content(), "v": 2})


def test_a_trigger_without_where_and_start_keeps_its_bytes() -> None:
    """So that a definition keeps the hash that it had before triggers knew them."""
    plain = TriggerDefinition(topic="orders", unique_by="id")
    assert plain.model_dump(mode="json") == {"topic": "orders", "unique_by": "id"}
    told = {"topic": "orders", "unique_by": None, "where": "data.n > 1", "start": "2026-01-31T00:00:00.000Z"}
    assert TriggerDefinition.model_validate(told).model_dump(mode="json") == told
    for start in ("latest", "2026-01-31", "2026-01-31T00:00:00Z"):
        with pytest.raises(ValidationError):
            TriggerDefinition(topic="orders", start=start)
