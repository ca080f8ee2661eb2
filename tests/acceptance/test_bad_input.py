"""Bad input at each hop, at real brokers: a dead letter or a recorded refusal, and nothing else happens."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from flowpilot.core.murmur2 import partition_of
from flowpilot_schemas.history import HEADER_HOPS
from flowpilot_schemas.ids import keyed_execution_id
from tests.acceptance import flows
from tests.acceptance.conftest import RESULT_LIMIT, TRIGGER_LIMIT
from tests.acceptance.running import PATIENCE, Place, RunningSystem
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

# What no decoder of ours takes, wherever it comes: value, reason.
UNREADABLE = {
    "not JSON": (b"{", "not_json"),
    "not UTF-8": (b'{"n": 1, "text": "\xff\xfe"}', "not_utf8"),
    "nothing": (b"", "not_json"),
    "NaN": (b'{"n": NaN}', "not_json"),
    "infinity": (b'{"n": -Infinity}', "not_json"),
    "beyond a double": (b'{"n": 1e999}', "not_json"),
    "nested 1,000 deep": (b'{"n": 1, "text": ' + b"[" * 1_000 + b"]" * 1_000 + b"}", "not_json"),
    "an integer of 65 bits": (b'{"n": %d}' % 2**64, "integer_too_large"),
    "an integer of 10,000 digits": (b'{"n": ' + b"9" * 10_000 + b"}", "integer_too_large"),
    "a raw NUL": (b'{"n": 1, "text": "\0"}', "not_json"),
    "a lone surrogate": (b'{"n": 1, "text": "\\ud800"}', "not_json"),
}


class Before(NamedTuple):
    """What bad input must not change."""

    executions: int
    divergences: int
    restarts: dict[str, int]


@pytest.fixture
def before(system: RunningSystem) -> Before:
    return state(system)


@pytest.fixture(scope="module")
def orders(system: RunningSystem) -> str:
    """The user topic that starts `shop`."""
    topic = f"{system.namespace}-orders"
    system.create_topic(topic, {"max.message.bytes": "4000000"})
    return topic


def state(system: RunningSystem) -> Before:
    [(executions,)] = system.ask("select count(*) from workflow_execution")
    [(divergences,)] = system.ask("select count(*) from audit_divergence")
    return Before(executions, divergences, system.restarts())


def await_letters(system: RunningSystem, expected: dict[Place, str], names: dict[Place, str]) -> None:
    """Each place has become a dead letter of the reason expected, each place without one has not."""
    wanted = {names[place]: reason for place, reason in expected.items() if reason}

    def found() -> dict[str, str]:
        return {names[place]: reason for place, reason in system.dead_letters(list(expected)).items()}

    eventually(lambda: len(found()) >= len(wanted), PATIENCE, what=f"{len(wanted)} dead letters")
    assert found() == wanted


def padded(size: int, **fields: Any) -> bytes:
    """A record of exactly `size` bytes, by the length of its field `text`."""
    data = json.dumps({**fields, "text": ""}, separators=(",", ":")).encode()
    return data.replace(b'"text":""', b'"text":"' + b"x" * (size - len(data)) + b'"')


def test_on_a_user_topic(system: RunningSystem, orders: str, before: Before) -> None:
    n = 1_000_000
    refused = {
        **UNREADABLE,
        "10⁶ digits": (b'{"n": ' + b"9" * 1_000_000 + b"}", "too_large"),
        "nested 190 deep": (b'{"n": 1, "text": ' + b"[" * 190 + b"]" * 190 + b"}", "too_deep"),
        "an array": (b"[]", "key_missing"),
        "a null": (b"null", "key_missing"),
        "a wrong type": (b'{"n": "seven"}', "input_invalid"),
        "no key": (b'{"m": 7}', "key_missing"),
        "limit + 1": (padded(TRIGGER_LIMIT + 1, n=n), "too_large"),
        "limit × 10": (padded(TRIGGER_LIMIT * 10, n=n), "too_large"),
    }
    taken = {
        "limit − 1": (padded(TRIGGER_LIMIT - 1, n=n + 1), n + 1),
        "limit": (padded(TRIGGER_LIMIT, n=n + 2), n + 2),
        "an escaped NUL": (b'{"n": %d, "text": "\\u0000"}' % (n + 3), n + 3),
        "a good one": (b'{"n": %d}' % (n + 4), n + 4),
    }
    cases: dict[str, tuple[bytes | None, str]] = {
        **refused,
        "no value": (None, ""),
        **{name: (value, "") for name, (value, _) in taken.items()},
    }
    places = system.publish_all(orders, [value for value, _ in cases.values()], key="p", partition=1)
    names = dict(zip(places, cases, strict=True))
    await_letters(system, {place: cases[name][1] for place, name in names.items()}, names)
    for _, key in taken.values():
        ended = system.ended(keyed_execution_id("shop", str(key)))
        assert ended[:2] == ("completed", (2 * key) ** 2)
    nothing_else(system, before, len(taken))


def nothing_else(system: RunningSystem, before: Before, started: int) -> None:
    """Nothing has happened since but so many executions."""
    after = state(system)
    assert after == before._replace(executions=before.executions + started)


def test_on_the_topic_of_triggers(system: RunningSystem, before: Before) -> None:
    def trigger(**fields: Any) -> bytes:
        return json.dumps({"v": 1, "workflow": "shop", "input": {"n": 3}, **fields}).encode()

    def sized(size: int, key: str) -> bytes:
        record = trigger(key=key, input={"n": 3, "text": ""})
        return record.replace(b'"text": ""', b'"text": "' + b"x" * (size - len(record)) + b'"')

    mark = uuid.uuid4().hex
    refused = {
        **UNREADABLE,
        "an array": (b"[]", "not_an_object"),
        "a future v": (trigger(v=2), "future_version"),
        "no workflow": (b'{"v": 1}', "wrong_shape"),
        "a workflow that is no text": (trigger(workflow=7), "wrong_shape"),
        "an unknown workflow": (trigger(workflow="shpo"), "unknown_workflow"),
        "an unknown version": (trigger(version="9"), "unknown_version"),
        "an empty key": (trigger(key=""), "wrong_shape"),
        "a key of 513": (trigger(key="k" * 513), "wrong_shape"),
        "an input that does not fit": (trigger(input={"n": 1.5}), "input_invalid"),
        "limit + 1": (sized(TRIGGER_LIMIT + 1, mark), "too_large"),
        "limit × 10": (sized(TRIGGER_LIMIT * 10, mark), "too_large"),
    }
    taken = {
        "limit − 1": sized(TRIGGER_LIMIT - 1, f"{mark}-1"),
        "limit": sized(TRIGGER_LIMIT, f"{mark}-2"),
        "NUL in the key": trigger(key=f"{mark}\0"),
        "a good one": trigger(key=f"{mark}-3"),
    }
    cases: dict[str, tuple[bytes | None, str]] = {
        **refused,
        "no value": (None, ""),
        **{name: (value, "") for name, value in taken.items()},
    }
    places = system.publish_all(
        system.settings.topics.triggers, [value for value, _ in cases.values()], key="p", partition=1
    )
    names = dict(zip(places, cases, strict=True))
    await_letters(system, {place: cases[name][1] for place, name in names.items()}, names)
    for value in taken.values():
        assert system.ended(keyed_execution_id("shop", json.loads(value)["key"]))[:2] == ("completed", 36)
    nothing_else(system, before, len(taken))


def event(kind: str, **fields: Any) -> bytes:
    """A record for the events topic."""
    return json.dumps({"v": 1, "type": kind, **fields}).encode()


def start_of(execution: str, definition: str) -> dict[str, Any]:
    """What a start of `foreign` has to have."""
    return {"execution": execution, "workflow": "foreign", "version": "1", "definition": definition}


class Foreign:
    """A worker in no language of ours: it reads step messages and answers them, by Kafka alone."""

    def __init__(self, system: RunningSystem) -> None:
        self._system = system
        system.cli("workflow", "apply", flows.FOREIGN)
        topic = system.settings.topics.steps("elsewhere")
        self._consumer = Consumer(
            {"bootstrap.servers": system.settings.bootstrap_servers, "group.id": f"{system.namespace}-foreign"}
        )
        partitions = range(system.settings.step_partitions)
        self._consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        self._seen: dict[tuple[str, int], dict[str, Any]] = {}

    def close(self) -> None:
        self._consumer.close()

    def step(self, execution: str, attempt: int = 1) -> dict[str, Any]:
        """The step message of an attempt, once it has come."""

        def there() -> dict[str, Any] | None:
            for message in self._consumer.consume(100, 0.05):
                assert message.error() is None
                step = json.loads(message.value() or b"")
                self._seen[step["task_id"].split("/")[0], step["attempt"]] = step
            return self._seen.get((execution, attempt))

        found = eventually(there, PATIENCE, what=f"attempt {attempt} of {execution}")
        assert found is not None
        return found

    def answer(self, step: dict[str, Any], kind: str, **fields: Any) -> Place:
        """An answer, as the step message says where to."""
        value = {"v": 1, "type": kind, "task_id": step["task_id"], "worker_id": "foreign-1", **fields}
        reply = step["reply"]
        return self._system.publish(
            reply["topic"], json.dumps(value).encode(), key=reply["key"], partition=reply["partition"]
        )


@pytest.fixture(scope="module")
def foreign(system: RunningSystem) -> Iterator[Foreign]:
    worker = Foreign(system)
    yield worker
    worker.close()


def test_on_the_events_topic(system: RunningSystem, foreign: Foreign, before: Before) -> None:
    definition = definition_of(system, "foreign")
    unknown = str(uuid.uuid4())
    home = partition_of(unknown.encode(), system.settings.event_partitions)

    start = start_of(unknown, definition)
    cases: dict[str, tuple[bytes | None, str]] = {
        **UNREADABLE,
        "10⁶ digits": (b'{"v": ' + b"9" * 1_000_000 + b"}", "integer_too_large"),
        "no value": (None, "null_value"),
        "an array": (b"[1]", "not_an_object"),
        "a future v": (
            event("step.completed", v=2, task_id=f"{unknown}/1/outside/1"),
            "future_version",
        ),
        "an unknown type": (event("execution.explode"), "unknown_type"),
        "a type that is no text": (b'{"v": 1, "type": ["execution.start"]}', "unknown_type"),
        "a start without a definition": (
            event("execution.start", **{**start, "definition": None}),
            "wrong_shape",
        ),
        "an id that is none": (event("execution.start", **{**start, "execution": "../etc"}), "wrong_shape"),
        "a task id that is none": (event("step.completed", task_id="1/2/3/4"), "wrong_shape"),
        "a completion for nobody": (
            event("step.completed", task_id=f"{unknown}/1/outside/1", output=1),
            "unknown_execution",
        ),
        "a cancel for nobody": (event("execution.cancel", execution=unknown, actor="x"), "unknown_execution"),
    }
    values = [value for value, _ in cases.values()]
    places = system.publish_all(system.settings.topics.events, values, key=unknown, partition=home)
    names = dict(zip(places, cases, strict=True))
    await_letters(system, {place: cases[name][1] for place, name in names.items()}, names)

    # The same partition goes on.
    place = system.publish(
        system.settings.topics.events, event("execution.start", **start, input=1), key=unknown, partition=home
    )
    foreign.answer(foreign.step(unknown), "step.completed", output="fine")
    assert system.ended(unknown)[:2] == ("completed", "fine")
    assert system.dead_letters([place]) == {}
    nothing_else(system, before, 1)


def definition_of(system: RunningSystem, workflow: str) -> str:
    query = "select definition from workflow where name = %s"
    [(found,)] = eventually(lambda: system.ask(query, workflow), PATIENCE, what=f"the definition of {workflow}")
    return str(found)


def test_starts_that_the_engine_refuses(system: RunningSystem, foreign: Foreign, before: Before) -> None:
    definition = definition_of(system, "foreign")

    def start(**fields: Any) -> str:
        execution = str(uuid.uuid4())
        limits = {"input": TRIGGER_LIMIT, "result": RESULT_LIMIT}
        value = event("execution.start", **{**start_of(execution, definition), "limits": limits, **fields})
        system.publish(system.settings.topics.events, value, key=execution)
        return execution

    refused = {
        start(definition="sha256:" + "0" * 64): "no definition sha256:000",
        start(workflow="shop"): "is that of foreign version 1",
        start(input="x" * (TRIGGER_LIMIT - 1)): f"{TRIGGER_LIMIT + 1} bytes",
        start(input="x" * (10 * TRIGGER_LIMIT)): f"the limit (FLOWPILOT_TRIGGER_LIMIT) is {TRIGGER_LIMIT}",
    }
    for execution, part in refused.items():
        ended = system.ended(execution)
        assert ended.status == "refused"
        assert part in str(ended.reason)
    for size in (TRIGGER_LIMIT - 1, TRIGGER_LIMIT):
        execution = start(input="x" * (size - 2))
        step = foreign.step(execution)
        assert len(step["input"]) == size - 2
        foreign.answer(step, "step.completed", output=size)
        assert system.ended(execution)[:2] == ("completed", size)
    nothing_else(system, before, len(refused) + 2)


def test_a_record_on_the_wrong_partition_is_forwarded_once(
    system: RunningSystem, foreign: Foreign, before: Before
) -> None:
    partitions = system.settings.event_partitions
    execution = str(uuid.uuid4())
    wrong = (partition_of(execution.encode(), partitions) + 1) % partitions
    value = event("execution.start", **start_of(execution, definition_of(system, "foreign")))
    topic = system.settings.topics.events
    lost = system.publish(topic, value, key=execution, partition=wrong, headers={HEADER_HOPS: b"1"})
    eventually(lambda: system.dead_letters([lost]) == {lost: "wrong_partition"}, PATIENCE)
    system.publish(topic, value, key=execution, partition=wrong)
    step = foreign.step(execution)
    assert step["reply"]["partition"] == partition_of(execution.encode(), partitions)
    foreign.answer({**step, "reply": {**step["reply"], "partition": wrong}}, "step.completed", output=1)
    assert system.ended(execution)[:2] == ("completed", 1)
    nothing_else(system, before, 1)


def test_answers_that_do_not_count_are_recorded(system: RunningSystem, foreign: Foreign, before: Before) -> None:
    execution = system.trigger("foreign")
    first = foreign.step(execution)
    run = first["task_id"].split("/")[1]
    foreign.answer(first, "step.failed", error={"kind": "Oops", "message": "\0 again"})
    second = foreign.step(execution, 2)

    def other(**parts: str) -> dict[str, Any]:
        named = dict(zip(("execution", "run", "step", "attempt"), second["task_id"].split("/"), strict=True))
        return {**second, "task_id": "/".join({**named, **parts}.values())}

    foreign.answer(first, "step.completed", output="late")
    foreign.answer(other(attempt="7"), "step.completed", output="early")
    foreign.answer(other(run=str(int(run) + 1)), "step.completed", output="another run")
    foreign.answer(other(step="inside"), "step.completed", output="another step")
    foreign.answer(second, "step.completed", output="counts")
    foreign.answer(second, "step.completed", output="twice")
    assert system.ended(execution)[:2] == ("completed", "counts")
    ignored = system.told(execution, "CompletionIgnored", 5)
    assert [event["reason"] for event in ignored] == [
        "stale_attempt", "unknown_attempt", "other_run", "unknown_step", "execution_over",
    ]  # fmt: skip
    nothing_else(system, before, 1)


def test_results_around_the_limit(system: RunningSystem, foreign: Foreign, before: Before) -> None:
    """A worker of ours does not even send one that is too large; this one does."""
    sizes = (RESULT_LIMIT - 1, RESULT_LIMIT, RESULT_LIMIT + 1, 10 * RESULT_LIMIT)
    executions = [system.trigger("foreign") for _ in sizes]
    for execution, size in zip(executions, sizes, strict=True):
        foreign.answer(foreign.step(execution), "step.completed", output="x" * (size - 2))
    for execution, size in zip(executions, sizes, strict=True):
        ended = system.ended(execution)
        if size <= RESULT_LIMIT:
            assert ended.status == "completed"
        else:
            assert ended.status == "failed"
            assert ended.errors is not None
            assert ended.errors["outside"]["kind"] == "result_too_large"
            assert f"{size} bytes" in ended.errors["outside"]["message"]
    nothing_else(system, before, len(sizes))
