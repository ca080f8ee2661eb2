"""CloudEvents as triggers: both modes, their identity, and each way to be malformed."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest

from flowpilot.ports.log import HEADERS_LOST, RECORD_LOST, Fetched, Headers
from flowpilot.router.cloudevents import Arrived, read
from flowpilot.router.routing import Omitted, route
from flowpilot_schemas.codec import BadRecord
from flowpilot_schemas.ids import event_execution_id, keyed_execution_id, record_execution_id
from flowpilot_schemas.messages import DeadLetter, StartExecution
from tests.unit.test_router_routing import TOPICS, known, workflow

ATTRIBUTES = {"specversion": "1.0", "id": "e-1", "source": "/shop", "type": "order.paid"}
DATA = {"order": "o-1", "sum": 150}
JSON_EVENT = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
ORDERS = workflow("orders", topic="orders")


def record(value: Any, headers: Headers = (), topic: str = "orders", offset: int = 7) -> Fetched:
    raw = value if isinstance(value, bytes | None) else json.dumps(value).encode()
    return Fetched(topic, 2, offset, 1_700_000_000_000, None, raw, headers)


def in_headers(**more: str | bytes | None) -> Headers:
    """The headers of the binary mode; None leaves one out, `content_type` is the data's."""
    told: dict[str, Any] = {**{f"ce_{name}": text for name, text in ATTRIBUTES.items()}, **more}
    names = {"content_type": "content-type"}
    return tuple(
        (names.get(name, name), text if isinstance(text, bytes) else text.encode())
        for name, text in told.items()
        if text is not None
    )


def structured(**changes: Any) -> dict[str, Any]:
    """An event as JSON; None stays, `...` leaves a member out."""
    event = {**ATTRIBUTES, "data": DATA, **changes}
    return {name: value for name, value in event.items() if value is not ...}


def outcome(read: Fetched, definition: Any = ORDERS) -> Any:
    (found,) = route(known(definition), read, "topic-id")
    return found


# What is one


@pytest.mark.parametrize(
    "event",
    [
        record(DATA, in_headers()),
        record(DATA, in_headers(content_type="application/json")),
        record(DATA, in_headers(content_type="application/vnd.shop+json; charset=utf-8")),
        record(structured(), JSON_EVENT),
        record(structured(), (("Content-Type", b"Application/CloudEvents+JSON"),)),
        record(structured(), (("content-type", b"application/cloudevents"),)),
        record(structured(), (*JSON_EVENT, *in_headers())),
        record(structured()),
        record(structured(subject=None, extension=True, another=5)),
        record(structured(datacontenttype="application/json")),
        record(structured(data=..., data_base64=b64encode(json.dumps(DATA).encode()).decode())),
    ],
)
def test_each_form_starts_the_same_execution_with_its_data(event: Fetched) -> None:
    start = outcome(event)
    assert isinstance(start, StartExecution), start
    assert start.execution == event_execution_id("orders", "/shop", "e-1")
    assert (start.key, start.input) == (None, DATA)
    assert start.origin is not None
    assert start.origin.offset == 7


def test_the_attributes_are_there_for_a_where() -> None:
    paid = workflow("paid", topic="orders", where='event.type == "order.paid" && data.sum > 100')
    assert isinstance(outcome(record(DATA, in_headers()), paid), StartExecution)
    assert outcome(record(DATA, in_headers(ce_type="order.sent")), paid) == Omitted("paid", "where")
    assert outcome(record(DATA), paid) == Omitted("paid", "where")
    told = read(record(DATA, in_headers(ce_subject="o-1", content_type="application/json")))
    assert told.event == {**ATTRIBUTES, "subject": "o-1", "datacontenttype": "application/json"}


def test_unique_by_reads_the_data_and_goes_before_the_events_id() -> None:
    start = outcome(record(structured()), workflow("orders", topic="orders", unique_by="order"))
    assert (start.execution, start.key) == (keyed_execution_id("orders", "o-1"), "o-1")


def test_the_same_event_sent_twice_is_one_execution_and_another_is_not() -> None:
    first, again = outcome(record(structured())), outcome(record(DATA, in_headers(), offset=8))
    assert first.execution == again.execution
    for other in (structured(id="e-2"), structured(source="/other")):
        assert outcome(record(other)).execution != first.execution


def test_on_the_triggers_topic_the_data_is_the_trigger() -> None:
    trigger = {"v": 1, "workflow": "orders", "input": DATA}
    start = outcome(record(trigger, in_headers(), TOPICS.triggers))
    assert (start.execution, start.input) == (event_execution_id("orders", "/shop", "e-1"), DATA)
    start = outcome(record(structured(data={**trigger, "key": "k"}), JSON_EVENT, TOPICS.triggers))
    assert start.execution == keyed_execution_id("orders", "k")
    assert outcome(record([1], in_headers(), TOPICS.triggers)).reason == "not_an_object"


def test_an_event_without_data_has_null_and_one_without_a_value_is_a_tombstone() -> None:
    assert outcome(record(structured(data=...))).input is None
    assert outcome(record(structured(data=None))).input is None
    assert outcome(record(None, in_headers())) == Omitted("orders", "tombstone")


# What is none


@pytest.mark.parametrize(
    "value",
    [
        {"specversion": 1.0, "id": "1", "source": "/s", "type": "t"},
        {"specversion": "1.0", "id": "1", "note": "a machine's data sheet"},
        {"id": "1", "source": "/s", "type": "t", "data": {}},
        ["specversion", "id", "source", "type"],
        "specversion",
    ],
)
def test_plain_json_stays_plain(value: Any) -> None:
    assert read(record(value)) == Arrived(value)
    assert read(record(value, (("content-type", b"application/json"), ("x", b"\xff")))) == Arrived(value)
    assert outcome(record(value)).execution == record_execution_id("orders", "topic-id", 2, 7)


@pytest.mark.parametrize(
    ("event", "reason", "word"),
    [
        (record(DATA, in_headers(ce_id=None)), "cloudevent_attribute", "no id"),
        (record(DATA, in_headers(ce_source="")), "cloudevent_attribute", "no source"),
        (record(DATA, in_headers(ce_type=None)), "cloudevent_attribute", "no type"),
        (record(DATA, in_headers(ce_specversion=None)), "cloudevent_attribute", "no specversion"),
        (record(DATA, in_headers(ce_specversion="0.3")), "cloudevent_version", "0.3"),
        (record(DATA, in_headers(ce_subject=b"\xff")), "cloudevent_attribute", "ce_subject"),
        (record(DATA, in_headers(content_type="application/xml")), "cloudevent_data", "application/xml"),
        (record(b"<xml/>", in_headers()), "cloudevent_data", "not JSON"),
        (record(b"", in_headers()), "cloudevent_data", "not JSON"),
        (record(DATA, (*in_headers(), ("ce_id", b"e-2"))), "cloudevent_contradiction", "ce_id"),
        (
            record(DATA, in_headers(ce_datacontenttype="text/json", content_type="application/json")),
            "cloudevent_contradiction",
            "datacontenttype",
        ),
        (record(structured(id=...)), "cloudevent_attribute", "no id"),
        (record(structured(source=None)), "cloudevent_attribute", "no source"),
        (record(structured(id=17)), "cloudevent_attribute", "no id"),
        (record(structured(type=""), JSON_EVENT), "cloudevent_attribute", "no type"),
        (record(structured(specversion="2.0")), "cloudevent_version", "2.0"),
        (record(structured(specversion=1.0), JSON_EVENT), "cloudevent_attribute", "no specversion"),
        (record(structured(subject={"a": 1})), "cloudevent_attribute", "subject"),
        (record(structured(weight=1.5)), "cloudevent_attribute", "weight"),
        (record(structured(data_base64="e30=")), "cloudevent_contradiction", "data_base64"),
        (record(structured(data=..., data_base64="e30")), "cloudevent_data", "Base64"),
        (record(structured(data=..., data_base64=17)), "cloudevent_data", "Base64"),
        (record(structured(data=..., data_base64="AAEC")), "cloudevent_data", "not JSON"),
        (record(structured(data=..., data_base64="/w==")), "cloudevent_data", "not UTF-8"),
        (
            record(structured(data=..., data_base64="e30=", datacontenttype="image/png")),
            "cloudevent_data",
            "image/png",
        ),
        (record(structured(data="<a/>", datacontenttype="text/xml")), "cloudevent_data", "text/xml"),
        (record(structured(), (*JSON_EVENT, ("ce_id", b"e-2"))), "cloudevent_contradiction", "id"),
        (record(structured(), (*JSON_EVENT, ("ce_subject", b"s"))), "cloudevent_contradiction", "subject"),
        (record([structured()], JSON_EVENT), "not_an_object", "array"),
        (record(b"{", JSON_EVENT), "not_json", "not JSON"),
        (
            record([structured()], (("content-type", b"application/cloudevents-batch+json"),)),
            "cloudevent_format",
            "",
        ),
        (record(b"\x00", (("content-type", b"application/cloudevents+avro"),)), "cloudevent_format", "avro"),
        (
            record(structured(), (("content-type", b"application/cloudevents+json; charset=latin-1"),)),
            "cloudevent_format",
            "latin-1",
        ),
    ],
)
def test_each_malformed_event_is_a_dead_letter_that_says_why(event: Fetched, reason: str, word: str) -> None:
    letter = outcome(event)
    assert isinstance(letter, DeadLetter), letter
    assert letter.reason == reason, letter.detail
    assert word in letter.detail
    with pytest.raises(BadRecord):
        read(event)


def test_an_attribute_that_is_a_boolean_agrees_with_its_header() -> None:
    assert read(record(structured(paid=True), (*JSON_EVENT, ("ce_paid", b"true")))).data == DATA


def test_a_header_whose_name_is_not_utf8_is_no_attribute() -> None:
    headers = (*in_headers(), ("ce_\udcff", b"\xff"), ("ce_\udcff", b"2"))
    data = {"order": 5}
    assert read(record(data, headers)).event == read(record(data, in_headers())).event
    assert read(record(data, headers[-2:])) == Arrived(data)


@pytest.mark.parametrize(
    ("name", "reason"), [(HEADERS_LOST, "headers_unreadable"), (RECORD_LOST, "record_unreadable")]
)
def test_what_the_client_cannot_give_is_a_dead_letter(name: str, reason: str) -> None:
    """The record may be a CloudEvent: taken for plain JSON it would start an execution with another id."""
    found = outcome(record({"order": 5}, ((name, b""),)))
    assert isinstance(found, DeadLetter)
    assert found.reason == reason
