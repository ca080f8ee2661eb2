"""Whatever lies on the events topic: a dead letter or a recorded refusal, and nothing else changes."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest

from flowpilot.engine.table import WATERMARK_KEY
from flowpilot.ports.log import Record
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.history import HEADER_HOPS
from flowpilot_schemas.limits import MAX_ERROR_MESSAGE, MAX_HEARTBEAT_DETAILS
from tests.unit.engine_world import BRIEF, CHAIN, NOWHERE, T, World, answer_all, completed, drain, quiet, starting  # noqa: F401

START = orjson.loads(encode_message(starting(CHAIN, "1")))
X = START["execution"]


def json(**changes: Any) -> bytes:
    return orjson.dumps({**START, **changes})


def raw(text: str) -> bytes:
    """The start with an input given as text, which need not be what a library would write."""
    return orjson.dumps(START | {"input": "HERE"}).replace(b'"HERE"', text.encode())


BAD: dict[str, tuple[bytes | None, str]] = {
    "null value": (None, "null_value"),
    "empty": (b"", "not_json"),
    "not JSON": (b"{", "not_json"),
    "not UTF-8": (b'{"a":"\xff"}', "not_utf8"),
    "a list": (b"[1]", "not_an_object"),
    "no type": (b'{"v":1}', "unknown_type"),
    "a type that is a list": (b'{"v":1,"type":["execution.start"]}', "unknown_type"),
    "a type that is an object": (b'{"v":1,"type":{}}', "unknown_type"),
    "an unknown type": (b'{"v":1,"type":"step.exploded"}', "unknown_type"),
    "a later version": (json(v=2), "future_version"),
    "a later version of an unknown type": (b'{"v":9,"type":"new.thing"}', "future_version"),
    "a version that is text": (json(v="1"), "wrong_shape"),
    "wrong types": (json(workflow=5), "wrong_shape"),
    "an execution that is no id": (json(execution="../../etc"), "wrong_shape"),
    "a key too long": (json(key="k" * 513), "wrong_shape"),
    "rules below one": (json(rules=0), "wrong_shape"),
    "NaN": (raw("NaN"), "not_json"),
    "Infinity": (raw("-Infinity"), "not_json"),
    "a double out of range": (raw("1e999"), "not_json"),
    "nesting 1,000 deep": (raw("[" * 1000 + "]" * 1000), "not_json"),
    "an integer beyond 64 bits": (raw(str(2**63)), "integer_too_large"),
    "an integer of a million digits": (raw("9" * 10**6), "integer_too_large"),
    "an integer beyond 64 bits, as text": (
        json(origin={"topic": "t", "topic_id": "i", "partition": 0, "offset": 0, "timestamp": "9" * 30}),
        "wrong_shape",
    ),
    "a lone surrogate": (raw('"\\ud800"'), "not_json"),
    "a task id that is none": (orjson.dumps({"type": "step.completed", "task_id": "x/1/y"}), "wrong_shape"),
    "attempt zero": (orjson.dumps({"type": "step.completed", "task_id": f"{X}/0/a/0"}), "wrong_shape"),
    "a completion of an unknown execution": (
        orjson.dumps({"type": "step.completed", "task_id": f"{X}/0/a/1"}),
        "unknown_execution",
    ),
    "a cancel of an unknown execution": (
        orjson.dumps({"type": "execution.cancel", "execution": X, "actor": "a"}),
        "unknown_execution",
    ),
    "a reply to a partition that cannot be": (
        json(reply={"topic": T.replies, "partition": 2**40}),
        "wrong_shape",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_record_that_nobody_could_process_becomes_a_dead_letter(name: str) -> None:
    value, reason = BAD[name]
    world = World()
    owner = world.owner()
    before = world.start(BRIEF, "before")
    offset = world.raw(value, key=b"original")
    after = world.start(BRIEF, "after")
    assert drain(owner) == 3
    assert world.dead_letters() == [(reason, offset)]
    [letter] = world.values(T.dead_letters)
    assert letter["topic"] == T.events
    assert letter["size"] == len(value or b"")
    if not letter["truncated"]:
        assert (base64.b64decode(letter["value"]) if value is not None else None) == value
    keys = {record.key for record in world.log.records(T.changelog)} - {WATERMARK_KEY}
    assert {key.split(b"/")[0].decode() for key in keys if key is not None} == {before, after, "def"}
    for execution in (before, after):
        assert world.history(execution) == ["ExecutionStarted", "StepReady"]


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ('"a\\u0000b"', "a\0b"),
        (str(2**63 - 1), 2**63 - 1),
        (str(-(2**63)), -(2**63)),
        ('"' + "\U0001f98a" + '"', "\U0001f98a"),
    ],
)
def test_what_is_odd_but_legal_arrives_as_it_was(value: str, kept: Any) -> None:
    world = World()
    world.raw(raw(value))
    drain(world.owner())
    assert world.dead_letters() == []
    [step] = world.values(T.steps("q"))
    assert step["input"] == kept


@pytest.mark.parametrize("changes", [{"definition": "sha256:none"}, {"version": "2"}, {"workflow": "other"}])
def test_a_start_of_an_unknown_definition_is_refused_and_recorded(changes: dict[str, Any]) -> None:
    world = World()
    world.raw(json(**changes))
    drain(world.owner())
    assert world.history(X) == ["StartRefused"]
    assert world.dead_letters() == []


@pytest.mark.parametrize(("size", "taken"), [(-1, True), (0, True), (1, False), (9, False)])
def test_an_input_at_its_limit(size: int, taken: bool) -> None:
    world = World()
    limit = 1_000
    length = limit + size - 2 if size < 9 else 10 * limit  # the quotes count
    message = starting(CHAIN, "1", input="x" * length, limits=m.Limits(input=limit))
    world.event(message, X)
    drain(world.owner())
    assert world.history(X) == (["ExecutionStarted", "StepReady"] if taken else ["StartRefused"])


@pytest.mark.parametrize(("size", "taken"), [(-1, True), (0, True), (1, False), (9, False)])
def test_a_result_at_its_limit(size: int, taken: bool) -> None:
    world = World()
    owner = world.owner()
    message = starting(BRIEF, "1", limits=m.Limits(result=1_000))
    world.event(message, message.execution)
    drain(owner)
    length = 1_000 + size - 2 if size < 9 else 10_000
    world.event(completed(world.tasks()[0], "x" * length), message.execution)
    drain(owner)
    assert world.history(message.execution)[-1] == ("ExecutionCompleted" if taken else "ExecutionFailed")


def test_stale_and_unknown_attempts_are_recorded_and_change_nothing() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(CHAIN, "1")
    drain(owner)
    run = 0
    for task in (
        f"{execution}/{run}/a/2",
        f"{execution}/{run}/zz/1",
        f"{execution}/{run}/b/1",
        f"{execution}/9/a/1",
    ):
        world.event(completed(task), execution)
    drain(owner)
    ignored = [value["reason"] for value in world.values(T.history) if value["type"] == "CompletionIgnored"]
    assert ignored == ["unknown_attempt", "unknown_step", "unknown_attempt", "other_run"]
    assert len(world.tasks()) == 1


def test_a_record_on_a_wrong_partition_is_forwarded_once() -> None:
    world = World(2)
    owner = world.owner(0, 1)
    message = starting(CHAIN, "1")
    home = world.home(message.execution)
    world.event(message, message.execution, partition=1 - home)
    drain(owner)
    drain(owner)
    assert world.history(message.execution) == ["ExecutionStarted", "StepReady"]
    assert {record.partition for record in world.log.records(T.history)} == {home}
    assert world.dead_letters() == []


def test_a_forwarded_record_that_is_wrong_again_is_a_dead_letter_on_every_delivery() -> None:
    world = World(2)
    message = starting(CHAIN, "1")
    wrong = 1 - world.home(message.execution)
    world.log.append(Record(T.events, b"k", encode_message(message), wrong, ((HEADER_HOPS, b"1"),)))
    owner = world.owner(wrong)
    owner.process(owner.fetch(9)).before(lambda record: record.topic == T.dead_letters)
    owner.crash()
    drain(world.owner(wrong))
    assert world.dead_letters() == [("wrong_partition", 0)]
    assert len(world.log.records(T.events)) == 1


def test_a_step_that_cannot_be_delivered_fails_its_attempt_through_the_log() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(NOWHERE, "1")
    answered: set[str] = set()
    while drain(owner) or answer_all(world, answered):
        pass
    history = world.history(execution)
    assert "DispatchFailed" in history
    assert history[-1] == "ExecutionFailed"
    assert {reason for reason, _ in world.dead_letters()} == {"dispatch_failed"}


@pytest.mark.parametrize("wrong", [False, True])
def test_an_undeliverable_step_of_nobody_is_one_dead_letter(wrong: bool) -> None:
    """Also if it comes to another partition first, which sends it on."""
    world = World(partitions=2)
    execution = starting(BRIEF, "nobody").execution
    error = m.StepError(kind="dispatch_failed", message="no such topic")
    home = world.home(execution)
    partition = 1 - home if wrong else home
    world.event(m.StepFailed(task_id=f"{execution}/0/only/1", error=error), execution, partition)
    owner = world.owner(0, 1)
    while drain(owner):
        pass
    assert world.dead_letters() == [("dispatch_failed", 0)]


def test_a_step_message_beyond_the_topic_s_limit_fails_its_attempt() -> None:
    world = World()
    world.log.delete_topic(T.steps("q"))
    world.log.create_topic(T.steps("q"), 1, max_message_bytes=1_500)
    owner = world.owner()
    large = world.start(BRIEF, "large", input="x" * 2_000)
    small = world.start(BRIEF, "small")
    drain(owner)
    assert world.history(large)[-3:] == ["DispatchFailed", "StepFailed", "ExecutionFailed"]
    assert world.history(small) == ["ExecutionStarted", "StepReady"]


@pytest.mark.parametrize("size", [MAX_ERROR_MESSAGE + 1, 9 << 20, (10 << 20) - 400])
def test_an_error_of_any_length_fails_the_step_and_no_more(size: int) -> None:
    """History adds fields to what a worker says: a record that was just small enough must not stop a partition."""
    world = World()
    owner = world.owner()
    executions = [world.start(BRIEF, str(number)) for number in range(2)]
    drain(owner)
    for task in world.tasks():
        error = m.StepError(kind="Boom", message="é" * (size // 2), retryable=False)
        world.event(m.StepFailed(task_id=task, error=error), task.partition("/")[0])
    drain(owner)
    for execution in executions:
        assert world.history(execution)[-1] == "ExecutionFailed"
    assert max(len(record.value or b"") for record in world.log.records(T.history)) < 10_000


def test_heartbeat_details_beyond_their_limit_are_left_out() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(CHAIN, "1")
    drain(owner)
    [task] = world.tasks()
    for details in ({"at": 1}, "x" * (MAX_HEARTBEAT_DETAILS + 1)):
        world.event(m.StepHeartbeat(task_id=task, details=details), execution)
    world.event(m.StepFailed(task_id=task, error=m.StepError(kind="Boom")), execution)
    drain(owner)
    world.now += 5_000
    owner.tick().to_end()
    drain(owner)
    assert world.values(T.steps("q"))[-1]["last_heartbeat"] == {"at": 1}


@pytest.mark.parametrize(
    "reply",
    [
        {"topic": T.history, "partition": 999},
        {"topic": T.events, "partition": 0},
        {"topic": T.replies, "partition": 999},
        {"topic": "no.such.topic", "partition": 0},
        {"topic": "", "partition": 0},
    ],
)
def test_a_reply_goes_to_the_topic_of_replies_or_nowhere(reply: dict[str, Any]) -> None:
    world = World()
    owner = world.owner()
    world.raw(json(reply=reply))
    drain(owner)
    answered: set[str] = set()
    while answer_all(world, answered):
        drain(owner)
    assert world.history(X)[-1] == "ExecutionCompleted"
    assert world.dead_letters() == []
    assert world.log.records(T.replies) == []


def test_a_reserved_kind_from_a_worker_is_an_ordinary_refusal() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(BRIEF, "1")
    drain(owner)
    error = m.StepError(kind="dispatch_failed", message="says a worker")
    world.event(m.StepFailed(task_id=world.tasks()[0], error=error), execution)
    drain(owner)
    assert world.history(execution)[-1] == "ExecutionFailed"
