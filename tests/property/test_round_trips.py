"""What is written is what is read: of every message, history event, state and definition, found by looking."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from flowpilot.core import events as e
from flowpilot.core import state as states
from flowpilot.core.state import Execution, OutboxEntry, Retry, StepState, decode_execution, encode_execution
from flowpilot.engine import keys, owned
from flowpilot.engine.owned import Trial, Watermark
from flowpilot_schemas import messages as m
from flowpilot_schemas import triggers
from flowpilot_schemas.codec import canonical, decode, decode_object, encode, encode_message, parse
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.history import from_iso, iso
from flowpilot_schemas.ids import TaskId, retry_id, retry_number, root_id
from flowpilot_schemas.limits import Limits
from tests.property import built

FEW = settings(max_examples=15, deadline=None)
MODELS = built.models()
EXECUTIONS = st.uuids().map(str) | st.tuples(st.uuids(), st.integers(1, 999_999)).map(lambda t: f"{t[0]}.{t[1]}")


def test_all_of_them_are_found() -> None:
    assert set(m.EVENT_TYPES.values()) <= set(MODELS)
    assert {m.StepReady, m.DeadLetter, m.Trigger, WorkflowDefinition, triggers.TriggerPosition} <= set(MODELS)
    assert len(MODELS) > 30
    assert set(built.named_tuples(e)) == set(e.CLASSES.values())
    assert set(built.named_tuples(states)) == {StepState, OutboxEntry, Retry, Execution}
    assert set(built.named_tuples(owned)) == {Trial, Watermark, owned.Ended}
    assert set(built.named_tuples(triggers)) == {triggers.PositionKey}
    assert set(built.named_tuples(keys)) == {keys.Payload}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
@given(data=st.data())
@FEW
def test_a_message_comes_back_as_it_was(model: type[BaseModel], data: st.DataObject) -> None:
    message = data.draw(built.instances(model))
    wire = encode_message(message)
    assert parse(model, decode_object(wire)) == message
    assert encode_message(parse(model, decode_object(wire))) == wire


@given(definition=built.instances(WorkflowDefinition))
@FEW
def test_a_definition_keeps_its_hash_on_every_way(definition: WorkflowDefinition) -> None:
    """By the definitions topic and by the copy in a partition's table."""
    for stored in (encode_message(definition), definition.model_dump_json().encode()):
        found = WorkflowDefinition.model_validate_json(stored)
        assert found == definition
        assert found.hash == definition.hash


@pytest.mark.parametrize("cls", e.CLASSES.values(), ids=e.CLASSES)
@given(data=st.data())
@FEW
def test_a_decided_event_comes_back_as_it_was(cls: type[e.CoreEvent], data: st.DataObject) -> None:
    event = data.draw(built.tuples(cls))
    assert e.unpack(orjson.loads(orjson.dumps(e.pack(event)))) == event


def _entries(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return built.tuples(OutboxEntry, events=st.lists(st.lists(built.JSON, max_size=3), max_size=2), of=of)


def _executions(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    outbox = st.lists(_entries(of), max_size=2).map(tuple)
    return built.tuples(Execution, outbox=outbox, limits=st.just(Limits()) | built.instances(Limits)).map(_counted)


def _counted(state: Execution) -> Execution:
    """Without steps there is none open."""
    return state if state.steps else state._replace(open=0)


EARLIER = _executions(st.none()).map(lambda state: state._replace(outbox=()))


@given(state=_executions(st.none() | EARLIER))
@settings(FEW, max_examples=60)
def test_a_state_comes_back_as_it_was(state: Execution) -> None:
    data = encode_execution(state)
    assert decode_execution(data) == state
    assert encode_execution(decode_execution(data)) == data


@given(mark=built.tuples(Watermark))
@FEW
def test_a_watermark_comes_back_as_it_was(mark: Watermark) -> None:
    assert Watermark.of(mark.entry(3).value) == mark


@given(value=built.JSON)
@settings(FEW, max_examples=200)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    for data in (encode(value), canonical(value)):
        assert decode(data) == value
    assert canonical(decode(encode(value))) == canonical(value)


@given(execution=EXECUTIONS, run=st.integers(0, 10**18 - 1), step=built.NAMES, attempt=st.integers(1, 999_999_999))
@FEW
def test_names_come_back_as_they_were(execution: str, run: int, step: str, attempt: int) -> None:
    task = TaskId(execution, run, step, attempt)
    assert TaskId.parse(str(task)) == task
    assert retry_id(root_id(execution), retry_number(execution)) == execution
    for key in (keys.input_key(execution, run), keys.output_key(execution, run, step)):
        assert keys.payload_of(key) == (execution, run)
        assert not keys.is_state(key)
    assert keys.is_state(keys.state_key(execution))
    assert keys.payload_of(keys.state_key(execution)) is None


@given(
    workflow=built.NAMES,
    topic=built.NAMES,
    partition=st.integers(0, 2**31 - 1),
    topic_id=st.text("abcABC019-_", min_size=1),
)
@FEW
def test_a_positions_key_comes_back_as_it_was(workflow: str, topic: str, partition: int, topic_id: str) -> None:
    key = triggers.PositionKey(workflow, topic, partition, topic_id)
    assert triggers.PositionKey.decode(key.encode()) == key


@given(ms=st.integers(0, 253_402_300_799_999))  # the year 9999
@FEW
def test_a_time_comes_back_as_it_was(ms: int) -> None:
    assert from_iso(iso(ms)) == ms
