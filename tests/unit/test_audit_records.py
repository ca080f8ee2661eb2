"""What is taken of a record, and what is set aside with a reason."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from flowpilot.audit.batches import Definitions
from flowpilot.audit.records import dead_letter, definition_change, history_event
from flowpilot.core.dead_letters import dead_letter as make_dead_letter
from flowpilot.ports.audit import Divergence, Letter, Pointed, Registered, Removed
from flowpilot.ports.log import Fetched, Record
from flowpilot_schemas.codec import canonical, encode_message
from flowpilot_schemas.definition import (
    DefinitionPointer,
    WorkflowDeletion,
    definition_key,
    pointer_key,
    version_key,
)
from tests.audit_history import DEFINITION, Chain, fetched


def sound() -> Record:
    return Chain().started()


def changed(**fields: Any) -> Fetched:
    record = sound()
    assert record.value is not None
    body = {**orjson.loads(record.value), **fields}
    return fetched(record._replace(value=orjson.dumps(body)))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "null_value"),
        (b"", "not_json"),
        (b"\xff{}", "not_utf8"),
        (b"[]", "not_an_object"),
        (b"{}", "future_version"),
        (b'{"v":1}', "wrong_shape"),
        (b'{"v":1,"x":NaN}', "not_json"),
        (b'{"v":1,"x":' + b"9" * 1_000_000 + b"}", "integer_too_large"),
        (b'{"v":1,"x":' + b"[" * 1_000 + b"]" * 1_000 + b"}", "not_json"),
        (b'{"v":1,"x":"\\ud800"}', "not_json"),
    ],
)
def test_a_record_that_is_no_event_is_kept_with_its_reason(value: bytes | None, reason: str) -> None:
    event, divergence = history_event(Fetched("t.history", 3, 7, 0, b"k", value))
    assert event is None
    assert divergence is not None
    assert (divergence.reason, divergence.body, divergence.key) == (reason, value, b"k")
    assert (divergence.topic, divergence.partition, divergence.offset) == ("t.history", 3, 7)


@pytest.mark.parametrize(
    "fields",
    [
        {"execution": 1}, {"execution": "x"}, {"run": -1}, {"run": True}, {"seq": 0}, {"seq": "1"},
        {"type": None}, {"at": "2026-01-01"}, {"at": "2026-02-30T00:00:00.000Z"}, {"at": 5}, {"step": 5},
        {"attempt": 2**31}, {"attempt": "1"},
    ],
)  # fmt: skip
def test_fields_of_wrong_types(fields: dict[str, Any]) -> None:
    event, divergence = history_event(changed(**fields))
    assert event is None
    assert divergence is not None
    assert divergence.reason == "wrong_shape"


def test_a_key_that_is_not_the_execution() -> None:
    event, divergence = history_event(fetched(sound()._replace(key=b"other")))
    assert event is None
    assert divergence is not None
    assert divergence.reason == "wrong_key"


@pytest.mark.parametrize("headers", [(), (("fp-prev", bytes(32)), ("fp-hash", bytes(32)))])
def test_an_event_with_a_wrong_hash_is_an_event_and_a_divergence(headers: Any) -> None:
    event, divergence = history_event(fetched(sound()._replace(headers=headers)))
    assert event is not None
    assert divergence is not None
    assert (divergence.reason, divergence.seq) == ("hash_mismatch", 1)


def test_nul_is_replaced_in_the_fields_and_kept_in_the_bytes() -> None:
    record = Chain().started(key="a\0b", input={"c\0": ["\0"]})
    event, divergence = history_event(fetched(record))
    assert divergence is None
    assert event is not None
    assert (event.fields["key"], event.fields["input"]) == ("a␀b", {"c␀": ["␀"]})
    assert event.body == record.value


def test_a_dead_letter_and_one_that_is_none() -> None:
    origin = Fetched("user", 1, 2, 3, b"\0", b"\xff")
    message = make_dead_letter(origin, "not_json", "a \0 there", "router", "onboarding")
    letter = dead_letter(Fetched("t.dead", 0, 0, 99, None, encode_message(message)))
    assert isinstance(letter, Letter)
    assert (letter.message.detail, letter.message.offset, letter.at) == ("a ␀ there", 2, 99)
    assert isinstance(dead_letter(Fetched("t.dead", 0, 1, 99, None, b"{}")), Divergence)


def test_changes_of_definitions() -> None:
    name, version, hash_ = DEFINITION.name, DEFINITION.version, DEFINITION.hash
    body = canonical(DEFINITION.model_dump(mode="json"))
    pointer = encode_message(DefinitionPointer(definition=hash_, version=version))

    def change(key: bytes, value: bytes | None, known: Definitions) -> Any:
        found = known.changes(Fetched("t.definitions", 0, 0, 5, key, value))
        return found if isinstance(found, Divergence) or len(found) > 1 else found[0]

    known = Definitions()
    assert change(pointer_key(name), pointer, known) == Pointed(name, version, hash_, current=True)
    registered = Registered(hash_, DEFINITION, 5)
    waiting = Pointed(name, version, hash_, True, registered)  # the pointer before it comes into force
    assert change(definition_key(hash_), body, known) == [registered, waiting]
    assert change(pointer_key(name), pointer, known) == Pointed(name, version, hash_, True, registered)
    assert change(version_key(name, version), pointer, known) == Pointed(name, version, hash_, False, registered)
    both = [waiting, waiting._replace(current=False)]
    assert change(definition_key(hash_), body, known) == [registered, *both]
    assert change(pointer_key(name), None, known) == Removed(workflow=name)
    assert change(pointer_key(name), encode_message(WorkflowDeletion()), known) == Removed(workflow=name)
    assert change(definition_key(hash_), body, known) == registered
    assert isinstance(change(pointer_key(name), b'{"deleted": 7}', known), Divergence)
    assert isinstance(change(version_key(name, version), encode_message(WorkflowDeletion()), known), Divergence)
    assert change(version_key(name, version), None, known) == Removed(workflow=name, version=version)
    assert change(definition_key(hash_), None, known) == Removed(hash=hash_)
    assert change(pointer_key(name), pointer, known).definition is None


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (None, b"{}", "wrong_key"),
        (b"other/x", b"{}", "wrong_key"),
        (b"def/", b"{}", "wrong_key"),
        (b"def/sha256:0", canonical(DEFINITION.model_dump(mode="json")), "definition_mismatch"),
        (b"name/x", b"{}", "wrong_shape"),
        (b"name/x", b"nonsense", "not_json"),
    ],
)
def test_records_that_define_nothing(key: bytes | None, value: bytes, reason: str) -> None:
    change = definition_change(Fetched("t.definitions", 0, 0, 5, key, value))
    assert isinstance(change, Divergence)
    assert change.reason == reason


@pytest.mark.parametrize("key", [b"name/f\xffl", b"def/\xff", b"\xff/x"])
def test_a_definitions_key_that_is_no_text_is_nobodys_for_the_audit_too(key: bytes) -> None:
    found = definition_change(Fetched("t.definitions", 0, 3, 0, key, None))
    assert isinstance(found, Divergence)
    assert (found.reason, found.key) == ("wrong_key", key)
