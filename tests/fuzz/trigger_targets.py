"""What others publish to start executions: trigger records, CloudEvents, definitions, and bodies for the API."""

from __future__ import annotations

import json
from typing import Any

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.api.parameters import _execution, _moment, _place, _seconds, _status
from flowpilot.api.shapes import CancelBody, RetryBody
from flowpilot.audit.batches import Definitions
from flowpilot.core.decide import decide_start
from flowpilot.ports.audit import Divergence
from flowpilot.ports.log import Fetched
from flowpilot.router import cloudevents
from flowpilot.router.routing import Omitted, Routes, route, routes
from flowpilot_schemas.codec import BadRecord, canonical, content_hash, decode, decode_object, encode, parse
from flowpilot_schemas.codec import encode_message as wire
from flowpilot_schemas.definition import StepDefinition, TriggerDefinition, WorkflowDefinition, dev_version
from flowpilot_schemas.history import iso
from flowpilot_schemas.ids import is_execution_id
from flowpilot_schemas.limits import Limits
from flowpilot_schemas.messages import DeadLetter, StartExecution
from flowpilot_schemas.topics import Topics
from tests.fuzz.frame import Given, framed, given
from tests.fuzz.seeds import EXECUTION, examples
from tests.fuzz.target import Target, require

T = Topics()
NOW = 1_700_000_000_000
TOPIC_ID = "AAAAAAAAAAAAAAAAAAAAAA"
_STEP = StepDefinition(name="a", queue="q", takes_input=True)
_SCHEMA = {
    "type": "object",
    "properties": {
        "patient_id": {"type": "string", "pattern": "^p-[0-9]+$"},
        "tags": {"items": {"type": "string"}},
    },
    "required": ["patient_id"],
}


def _workflow(name: str, schema: Any = None, **trigger: Any) -> WorkflowDefinition:
    triggers = (TriggerDefinition(topic="patients", **trigger),)
    return WorkflowDefinition(name=name, version="1", input_schema=schema, triggers=triggers, steps=(_STEP,))


_WORKFLOWS = {
    definition.name: definition
    for definition in (
        _workflow("onboarding", _SCHEMA, unique_by="patient_id"),
        _workflow("every"),
        _workflow("nested", unique_by="patient.account.id", start=iso(NOW - 1_000)),
        _workflow("chosen", where="data.sum > 100 && data.items.exists(i, i.name.startsWith('x'))"),
        _workflow("typed", where="event.type == 'order.paid' && size(data.tags) < 3", unique_by="order"),
        _workflow("parsed", where="int(data.text) > 3 || timestamp(data.at) < timestamp('2026-01-01T00:00:00Z')"),
    )
}


class _Known:
    def current(self, workflow: str) -> WorkflowDefinition | None:
        return _WORKFLOWS.get(workflow)

    def version(self, workflow: str, version: str) -> WorkflowDefinition | None:
        return self.current(workflow) if version == "1" else None

    def workflows(self) -> list[str]:
        return list(_WORKFLOWS)


_ROUTES: Routes = routes(_Known(), T, Limits(input=16_384))


def trigger(data: bytes) -> None:
    """The record as one of a user's topic and as one of `flowpilot.triggers`."""
    for record in given(data)[:4]:
        for topic in ("patients", T.triggers):
            read = Fetched(topic, 2, 7, NOW, record.key, record.value, record.headers)
            for outcome in route(_ROUTES, read, TOPIC_ID):
                _has_its_place(outcome, read)


def _has_its_place(outcome: StartExecution | DeadLetter | Omitted, read: Fetched) -> None:
    if isinstance(outcome, Omitted):
        return
    again = parse(type(outcome), decode_object(wire(outcome)))
    # Leaves out what is None: an input that is null is one that is missing.
    require(wire(again) == wire(outcome), "it is not on the wire what it was")
    if isinstance(outcome, StartExecution):
        require(is_execution_id(outcome.execution), outcome.execution)
        require(outcome.origin is not None and outcome.origin.offset == read.offset, "no origin")
    else:
        require((outcome.topic, outcome.offset) == (read.topic, read.offset) and bool(outcome.detail), outcome)


def cloudevent(data: bytes) -> None:
    """Each record as a CloudEvent, or as none."""
    for record in given(data)[:8]:
        try:
            arrived = cloudevents.read(Fetched("t", 0, 0, NOW, record.key, record.value, record.headers))
        except BadRecord as bad:
            require(bool(bad.detail) and bad.reason.isascii(), bad.reason)
            continue
        encode(arrived.data)
        if arrived.event is not None:
            for name in ("specversion", "id", "source", "type"):
                require(isinstance(arrived.event[name], str) and arrived.event[name] != "", name)


def definition(data: bytes) -> None:
    """Records of the definitions topic as the roles and the audit read them; what is taken is used."""
    topic = LogDefinitions(MemoryLog().producer(), MemoryLog().reader(), T.definitions)
    audited = Definitions()
    for offset, record in enumerate(given(data)[:8]):
        key, value = record.key, record.value
        if key is None:  # then it is the one that belongs to the value
            key = _fitting_key(value)
        read = Fetched(T.definitions, 0, offset, NOW, key, value)
        taken = True
        try:
            topic._take(read)
        except BadRecord:
            taken = False
        change = audited.changes(read)
        require(isinstance(change, Divergence) or taken or b"@" in (key or b""), f"the audit alone takes {key!r}")
    for held in topic._definitions.values():
        _use(held)
    for name in topic.workflows():
        topic.current(name), topic.versions(name), topic.registration(name)


def _fitting_key(value: bytes | None) -> bytes:
    try:
        return f"def/{content_hash(decode(value or b''))}".encode()
    except BadRecord:
        return b"def/sha256:none"


class _Only(_Known):
    def __init__(self, definition: WorkflowDefinition) -> None:
        self._definition = definition

    def current(self, workflow: str) -> WorkflowDefinition | None:
        return self._definition

    def workflows(self) -> list[str]:
        return [self._definition.name]


_RECORDS = (
    b"{}",
    b'{"patient_id":"p-1","sum":3,"tags":["x"],"items":[{"name":"x"}]}',
    b"[[1]]",
    b'"' + b"a" * 3_000 + b'"',
)


def _use(held: WorkflowDefinition) -> None:
    again = parse(WorkflowDefinition, decode_object(canonical(held.model_dump(mode="json"))))
    require(again == held, "it is another one when it is read again")
    require(dev_version(held).version != held.version, "no version of its own")
    where = routes(_Only(held), T, Limits())
    for topic in sorted(where.topics)[:3]:
        for value in _RECORDS:
            for outcome in route(where, Fetched(topic, 0, 1, NOW, None, value), TOPIC_ID):
                if isinstance(outcome, StartExecution):
                    decide_start(held, outcome, len(value), NOW, 1)


def body(data: bytes) -> None:
    """Bodies and parameters of the API."""
    for record in given(data)[:4]:
        value = record.value or b""
        for model in (CancelBody, RetryBody):
            try:
                parse(model, decode_object(value))
            except BadRecord as bad:
                require(bool(bad.detail), bad.reason)
        text = value.decode(errors="replace")
        for read in (_execution, _moment, _place, _seconds, _status):
            try:
                read(text)
            except ValueError:
                continue


def codec(data: bytes) -> None:
    """What is decoded can be encoded, and is the same then."""
    try:
        value = decode(data)
    except BadRecord:
        return
    again = encode(value)
    require(encode(decode(again)) == again, "it is another value when it is decoded again")
    require(content_hash(value) == content_hash(decode(again)), "it has another hash when it is decoded again")


# -- seeds ----------------------------------------------------------------------------------------------------


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


_DATA = (
    {"patient_id": "p-1", "tags": ["x"], "sum": 150, "items": [{"name": "xy"}], "order": 7},
    {"patient": {"account": {"id": True}}, "text": "12", "at": "2026-01-31T00:00:00Z"},
    {"v": 1, "workflow": "onboarding", "version": "1", "key": "p-1", "input": {"patient_id": "p-1"}},
    None,
    [1, "x"],
)
_ATTRIBUTES = {"specversion": "1.0", "id": "e-1", "source": "/shop", "type": "order.paid", "time": iso(NOW)}
_BINARY = tuple((f"ce_{name}", text.encode()) for name, text in _ATTRIBUTES.items())
_STRUCTURED = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
_EVENTS = (
    *(Given(_json(data), b"k", _BINARY) for data in _DATA),
    *(Given(_json({**_ATTRIBUTES, "data": data}), b"k", _STRUCTURED) for data in _DATA),
    Given(_json({**_ATTRIBUTES, "data_base64": "e30="}), None, (*_STRUCTURED, ("ce_id", b"e-1"))),
    Given(_json({**_ATTRIBUTES, "datacontenttype": "text/plain", "data": 1})),
    Given(b"1", None, (*_BINARY, ("content-type", b"application/vnd.shop+json"))),
)
_TRIGGERS = (*(Given(_json(data), b"k") for data in _DATA), *(Given(_json(each)) for each in examples("trigger")))
_FULL = {
    **_workflow("full", _SCHEMA, where="data.sum > 1", unique_by="patient_id").model_dump(mode="json"),
    "steps": [
        {"name": "a", "queue": "q", "takes_input": True, "args": {"n": 1}},
        {"name": "b", "queue": "q", "depends_on": ["a"], "takes": ["a"], "retry": {"max_attempts": 2}},
        {"name": "c", "queue": "q", "depends_on": ["a", "b"], "output": True, "on_schedule_to_start": "record"},
    ],
}
_POINTER = _json({"v": 1, "definition": "sha256:none", "version": "1"})
_SHAPES = (
    Given(_json(_FULL)),
    *(Given(_json(example)) for example in examples("definition")),
    Given(_POINTER, b"name/full@1"),
    Given(_POINTER, b"name/full"),
    Given(b'{"v":1,"deleted":true}', b"name/full"),
    Given(b"\0", b"name/full@1"),
)
_CEL = (
    "data.",
    "event.id",
    ".exists(i, i > 1)",
    ".all(x, x == 'a')",
    "matches('(a+)+$')",
    "size(data)",
    " in ",
    "[1,2]",
)
_BODIES = (
    b'{"reason":"moved"}',
    b'{"from_start":true,"version":"2"}',
    EXECUTION.encode(),
    iso(NOW).encode(),
    b"10s",
)


def _each(records: tuple[Given, ...]) -> tuple[bytes, ...]:
    return tuple(framed([record]) for record in records)


TARGETS = (
    Target("trigger", "trigger records, routed to several workflows", trigger, _each((*_TRIGGERS, *_EVENTS))),
    Target(
        "cloudevent",
        "CloudEvents, binary and structured",
        cloudevent,
        _each(_EVENTS),
        ("ce_id=e-1", "ce_specversion=1.0", "content-type=application/cloudevents", "data_base64", "e30="),
    ),
    Target(
        "definition",
        "definitions, their validation and their use",
        definition,
        (*_each(_SHAPES), framed(_SHAPES)),
        (*_CEL, "pattern", "$ref", "#", "#/properties/a", "allOf", "not", "(a+)+$", "name/full", "def/"),
    ),
    Target(
        "body", "bodies and parameters of the API", body, tuple(_BODIES), ("ms", "h", "Z", "+14:00", "AAAAAAAAAAA")
    ),
    Target("codec", "JSON at the edge", codec, (*map(_json, _DATA), b"1e308", b"-9223372036854775808")),
)
