"""What each record starts, and what becomes of every kind of bad record at this hop."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from flowpilot.core.inputs import MAX_DEPTH, is_deeper
from flowpilot.ports.log import Fetched
from flowpilot.router.routing import Omitted, Routes, key_of, route, routes
from flowpilot_schemas.codec import BadRecord, decode, encode, encode_message
from flowpilot_schemas.definition import StepDefinition, TriggerDefinition, WorkflowDefinition
from flowpilot_schemas.ids import keyed_execution_id, record_execution_id
from flowpilot_schemas.limits import MAX_KEY, Limits
from flowpilot_schemas.messages import DeadLetter, StartExecution
from flowpilot_schemas.topics import Topics

SCHEMA = {
    "type": "object",
    "properties": {"patient_id": {"type": "string"}, "name": {"type": "string"}},
    "required": ["patient_id"],
}
LIMITS = Limits(input=1_000)
TOPICS = Topics()


def workflow(name: str, version: str = "1", schema: Any = None, **trigger: Any) -> WorkflowDefinition:
    triggers = (TriggerDefinition(**trigger),) if trigger else ()
    step = StepDefinition(name="only", queue=name)
    return WorkflowDefinition(name=name, version=version, input_schema=schema, triggers=triggers, steps=(step,))


@dataclass
class Known:
    """Definitions as the router asks them; the last one of a name is current."""

    of: list[WorkflowDefinition] = field(default_factory=list)

    def current(self, name: str) -> WorkflowDefinition | None:
        return next((known for known in reversed(self.of) if known.name == name), None)

    def version(self, name: str, version: str) -> WorkflowDefinition | None:
        return next((known for known in self.of if (known.name, known.version) == (name, version)), None)

    def workflows(self) -> list[str]:
        return list({known.name for known in self.of})


def known(*definitions: WorkflowDefinition) -> Routes:
    return routes(Known(list(definitions)), TOPICS, LIMITS)


ONBOARDING = workflow("onboarding", schema=SCHEMA, topic="patients", unique_by="patient_id")


def record(value: bytes | None, topic: str = "patients", offset: int = 7) -> Fetched:
    return Fetched(topic, 2, offset, 1_700_000_000_000, b"some key", value)


def named(**fields: Any) -> Fetched:
    return record(json.dumps({"v": 1, "workflow": "onboarding", **fields}).encode(), TOPICS.triggers)


def the_start(where: Routes, read: Fetched) -> StartExecution:
    (outcome,) = route(where, read, "topic-id")
    assert isinstance(outcome, StartExecution), outcome
    return outcome


def the_reason(where: Routes, read: Fetched) -> str:
    (outcome,) = route(where, read, "topic-id")
    assert isinstance(outcome, DeadLetter), outcome
    assert (outcome.topic, outcome.partition, outcome.offset) == (read.topic, read.partition, read.offset)
    assert (outcome.source, outcome.size) == ("router", len(read.value or b""))
    assert outcome.detail
    return outcome.reason


# What is started


def test_a_keyed_record_starts_the_execution_of_its_key() -> None:
    start = the_start(known(ONBOARDING), record(b'{"patient_id": "p-17", "name": "Jo\\u0000"}'))
    assert start.execution == keyed_execution_id("onboarding", "p-17")
    assert (start.key, start.input) == ("p-17", {"patient_id": "p-17", "name": "Jo\0"})
    assert (start.workflow, start.version, start.definition) == ("onboarding", "1", ONBOARDING.hash)
    assert start.limits == LIMITS
    assert start.created_by == "trigger:patients"
    assert start.origin is not None
    place = {"topic": "patients", "topic_id": "topic-id", "partition": 2, "offset": 7}
    assert start.origin.model_dump() == {**place, "timestamp": 1_700_000_000_000}


def test_without_unique_by_every_record_is_its_own_execution() -> None:
    where = known(workflow("onboarding", topic="patients"))
    start = the_start(where, record(b"[1, null]"))
    assert start.execution == record_execution_id("onboarding", "topic-id", 2, 7)
    assert (start.key, start.input) == (None, [1, None])
    assert the_start(where, record(b"[1, null]", offset=8)).execution != start.execution
    (again,) = route(where, record(b"[1, null]"), "id of a later topic of that name")
    assert isinstance(again, StartExecution)
    assert again.execution != start.execution


def test_one_record_feeds_every_workflow_that_reads_the_topic() -> None:
    where = known(
        ONBOARDING,
        workflow("billing", topic="patients"),
        workflow("strict", topic="patients", unique_by="account.id"),
        workflow("elsewhere", topic="other"),
    )
    outcomes = route(where, record(b'{"patient_id": "p-1"}'), "t")
    assert [type(outcome).__name__ for outcome in outcomes] == ["StartExecution", "StartExecution", "DeadLetter"]
    assert [outcome.workflow for outcome in outcomes] == ["billing", "onboarding", "strict"]
    (broken,) = route(where, record(b"{"), "t")
    assert (type(broken), broken.workflow) == (DeadLetter, None)


def test_only_the_current_version_is_triggered() -> None:
    where = known(ONBOARDING, workflow("onboarding", "2", topic="patients-v2"))
    assert where.topics == {TOPICS.triggers, "patients-v2"}
    assert route(where, record(b'{"patient_id": "p"}'), "t") == []
    assert the_start(where, record(b"1", "patients-v2")).version == "2"


@pytest.mark.parametrize("topic", [TOPICS.events, TOPICS.history, TOPICS.triggers, TOPICS.steps("mail")])
def test_flowpilots_own_topics_trigger_nothing(topic: str) -> None:
    assert known(workflow("loop", topic=topic)).topics == {TOPICS.triggers}


def test_a_tombstone_starts_nothing() -> None:
    assert route(known(ONBOARDING), record(None), "t") == [Omitted("onboarding", "tombstone")]
    assert route(known(ONBOARDING), record(None, TOPICS.triggers), "t") == [Omitted(None, "tombstone")]
    assert route(known(), record(None), "t") == []


def test_a_where_chooses_among_the_workflows_of_a_topic() -> None:
    where = known(
        workflow("all", topic="patients"),
        workflow("grown-ups", topic="patients", where="data.age >= 18"),
        workflow("unusable", topic="patients", where="data.age >="),
    )
    outcomes = route(where, record(b'{"age": 17}'), "t")
    assert [type(outcome).__name__ for outcome in outcomes] == ["StartExecution", "Omitted", "DeadLetter"]
    assert outcomes[1] == Omitted("grown-ups", "where")
    _, adult, _ = route(where, record(b'{"age": 18}'), "t")
    assert isinstance(adult, StartExecution)
    assert route(where, record(b"{}"), "t", {"grown-ups"}) == [Omitted("grown-ups", "where")]
    _, unsure, unusable = route(where, record(b'{"age": "18"}'), "t")
    assert isinstance(unsure, DeadLetter)
    assert isinstance(unusable, DeadLetter)
    assert (unsure.reason, unsure.workflow) == ("where_failed", "grown-ups")
    assert (unusable.reason, unusable.workflow) == ("where_failed", "unusable")


def test_what_is_older_than_the_start_is_left_out_whatever_it_is() -> None:
    where = known(
        workflow("since", topic="patients", start="2023-11-14T22:13:20.001Z"),
        workflow("just", topic="patients", start="2023-11-14T22:13:20.000Z"),
    )
    since, just = route(where, record(b"{}"), "t")
    assert since == Omitted("since", "before_start")
    assert isinstance(just, StartExecution)
    assert [type(each).__name__ for each in route(where, record(b"{"), "t")] == ["Omitted", "DeadLetter"]


def test_two_triggers_of_one_workflow_on_a_topic_are_asked_each() -> None:
    paid = TriggerDefinition(topic="orders", where='data.kind == "paid"', unique_by="order")
    sent = TriggerDefinition(topic="orders", where='data.kind == "sent"', unique_by="parcel")
    both = workflow("both").model_copy(update={"triggers": (paid, sent)})
    outcomes = route(known(both), record(b'{"kind": "sent", "parcel": "x"}', "orders"), "t")
    assert outcomes[0] == Omitted("both", "where")
    assert isinstance(outcomes[1], StartExecution)
    assert outcomes[1].key == "x"


def test_a_trigger_names_its_workflow() -> None:
    where = known(ONBOARDING, workflow("onboarding", "2"))
    start = the_start(where, named(input={"any": 1}, key="p-17", created_by="crm"))
    assert (start.version, start.key, start.created_by) == ("2", "p-17", "crm")
    assert start.execution == keyed_execution_id("onboarding", "p-17")
    start = the_start(where, named(version="1", input={"patient_id": "p"}))
    assert (start.version, start.created_by) == ("1", f"trigger:{TOPICS.triggers}")
    assert start.execution == record_execution_id("onboarding", "topic-id", 2, 7)


# What is not


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b'{"patient_id": "p", "x": NaN}', "not_json"),
        (b'{"patient_id": "p", "x": Infinity}', "not_json"),
        (b'{"patient_id": "p", "x": 1e999}', "not_json"),
        (b'{"patient_id": "\\ud800"}', "not_json"),
        (b'{"patient_id": "\xff"}', "not_utf8"),
        (b"\xff\xfe{\x00}\x00", "not_utf8"),
        (b'{"patient_id": "p", "x": 9223372036854775808}', "integer_too_large"),
        (b"[" * 400 + b"]" * 400, "not_json"),
        (b'{"patient_id": "p", "x": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "too_deep"),
        (b'{"patient_id": "p", "x": "' + b"x" * 1_000 + b'"}', "too_large"),
        (b'{"patient_id": "p", "name": 17}', "input_invalid"),
        (b'{"name": "p"}', "key_missing"),
        (b'{"patient_id": null}', "key_missing"),
        (b'{"patient_id": ""}', "key_missing"),
        (b'{"patient_id": {"a": 1}}', "key_missing"),
        (b'{"patient_id": 1.5}', "key_missing"),
        (b"null", "key_missing"),
        (b'["patient_id"]', "key_missing"),
        (b'{"patient_id": 17}', "input_invalid"),
        (b'{"patient_id": "' + b"k" * (MAX_KEY + 1) + b'"}', "key_too_long"),
    ],
)
def test_bad_records_on_a_user_topic(value: bytes, reason: str) -> None:
    assert the_reason(known(ONBOARDING), record(value)) == reason


def test_an_integer_of_a_million_digits_is_refused_and_quickly() -> None:
    where = routes(Known([ONBOARDING]), TOPICS, Limits(input=2_000_000))
    value = b'{"patient_id": "p", "x": ' + b"9" * 10**6 + b"}"
    assert the_reason(where, record(value)) in {"integer_too_large", "not_json"}


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (named(workflow="nobody"), "unknown_workflow"),
        (named(workflow="nobody", version="1"), "unknown_workflow"),
        (named(version="9"), "unknown_version"),
        (named(v=2), "future_version"),
        (named(v="1"), "wrong_shape"),
        (named(workflow=17), "wrong_shape"),
        (named(workflow="w" * 101), "wrong_shape"),
        (named(workflow=None), "wrong_shape"),
        (named(key=""), "wrong_shape"),
        (named(key=17), "wrong_shape"),
        (named(key="k" * (MAX_KEY + 1)), "wrong_shape"),
        (named(), "input_invalid"),
        (named(input={"patient_id": 17}), "input_invalid"),
        (named(input={"patient_id": "p" * 1_000}), "too_large"),
        (record(b"[]", TOPICS.triggers), "not_an_object"),
        (record(b"{}", TOPICS.triggers), "wrong_shape"),
        (record(b"{", TOPICS.triggers), "not_json"),
        (record(b'{"workflow": "\xff"}', TOPICS.triggers), "not_utf8"),
    ],
)
def test_bad_triggers(read: Fetched, reason: str) -> None:
    assert the_reason(known(ONBOARDING), read) == reason


@pytest.mark.parametrize(("size", "fits"), [(999, True), (1_000, True), (1_001, False), (10_000, False)])
def test_the_size_limit_to_the_byte(size: int, fits: bool) -> None:
    frame = b'{"patient_id":"p","name":""}'
    value = frame[:-2] + b"x" * (size - len(frame)) + frame[-2:]
    assert len(value) == size
    (outcome,) = route(known(ONBOARDING), record(value), "t")
    assert isinstance(outcome, StartExecution if fits else DeadLetter)


def test_numbers_that_grow_when_written_again_count_as_written() -> None:
    where = known(workflow("sums", topic="numbers"))
    value = b"[" + b",".join([b"1e9"] * 200) + b"]"
    assert len(value) < LIMITS.input
    assert the_reason(where, record(value, "numbers")) == "too_large"


def test_what_passes_here_passes_at_the_next_hop() -> None:
    """A start wraps the input: what is accepted must not be too deep for whoever decodes the start."""
    where = known(workflow("deep", topic="patients"))
    start = the_start(where, record(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH))
    assert decode(encode_message(start))["input"] == start.input
    assert decode(encode({"parents": {"one": {"more": start.input}}}))


@pytest.mark.parametrize("levels", [1, 2, 50])
def test_depth_is_counted_exactly(levels: int) -> None:
    value: Any = 1
    for level in range(levels):
        value = {"a": value, "b": 2} if level % 2 else [3, value]
    assert is_deeper(value, levels - 1)
    assert not is_deeper(value, levels)


@pytest.mark.parametrize(
    ("value", "path", "key"),
    [
        ({"id": "p"}, "id", "p"),
        ({"id": 0}, "id", "0"),
        ({"id": -(2**63)}, "id", "-9223372036854775808"),
        ({"id": True}, "id", "true"),
        ({"a": {"b": {"c": "é\0"}}}, "a.b.c", "é\0"),
        ({"id": "k" * MAX_KEY}, "id", "k" * MAX_KEY),
    ],
)
def test_keys(value: Any, path: str, key: str) -> None:
    assert key_of(value, path) == key


@pytest.mark.parametrize("value", [{}, {"a": 1}, {"a": {"b": []}}, {"a": [{"b": 1}]}, "a.b", None])
def test_no_key(value: Any) -> None:
    with pytest.raises(BadRecord, match="key_missing"):
        key_of(value, "a.b")


def test_a_schema_that_cannot_be_used_is_a_reason_not_a_crash() -> None:
    for schema in ({"type": "no such type"}, {"$ref": "http://127.0.0.1:1/schema"}):
        where = known(workflow("broken", schema=schema, topic="patients"))
        assert the_reason(where, record(b"{}")) == "input_invalid"


def test_the_reason_does_not_repeat_the_value() -> None:
    (letter,) = route(known(ONBOARDING), record(b'{"patient_id": "p", "name": [["secret"]]}'), "t")
    assert isinstance(letter, DeadLetter)
    assert "input.name" in letter.detail
    assert "secret" not in letter.detail
