"""Strict JSON: what is refused, with which reason, and that what passes comes back unchanged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flowpilot_schemas.codec import (
    BadRecord,
    canonical,
    content_hash,
    decode,
    decode_object,
    encode,
    encode_message,
    parse,
)
from flowpilot_schemas.limits import Limits
from flowpilot_schemas.messages import EVENT_TYPES, CancelExecution, StepCompleted, StepFailed, Trigger

REFUSED = [
    pytest.param(b"", "not_json", id="empty"),
    pytest.param(b"{", "not_json", id="cut off"),
    pytest.param(b"{} {}", "not_json", id="two values"),
    pytest.param(b"{'a': 1}", "not_json", id="python's quotes"),
    pytest.param(b'{"a": 1,}', "not_json", id="trailing comma"),
    pytest.param(b'{"a": 01}', "not_json", id="leading zero"),
    pytest.param(b'{"a": NaN}', "not_json", id="NaN"),
    pytest.param(b'{"a": Infinity}', "not_json", id="Infinity"),
    pytest.param(b'{"a": -Infinity}', "not_json", id="-Infinity"),
    pytest.param(b'{"a": 1e999}', "not_json", id="beyond a double"),
    pytest.param(b'{"a": [-1e400]}', "not_json", id="beyond a double, in a list"),
    pytest.param(b'{"a": "\xff"}', "not_utf8", id="not UTF-8"),
    pytest.param('{"a": "ü"}'.encode("latin-1"), "not_utf8", id="latin-1"),
    pytest.param('{"a": 1}'.encode("utf-16"), "not_utf8", id="UTF-16"),
    pytest.param(b'{"a": "\xed\xa0\x80"}', "not_utf8", id="surrogate in UTF-8"),
    pytest.param(b'{"a": "\\ud800"}', "not_json", id="lone surrogate"),
    pytest.param(b'{"a": "\\udc00\\ud800"}', "not_json", id="surrogates the wrong way round"),
    pytest.param(b'{"\\udfff": 1}', "not_json", id="lone surrogate in a key"),
    pytest.param(b'{"a": 9223372036854775808}', "integer_too_large", id="2^63"),
    pytest.param(b'{"a": [{"b": -9223372036854775809}]}', "integer_too_large", id="-2^63-1, deep"),
    pytest.param(b'{"a": ' + b"9" * 1_000_000 + b"}", "integer_too_large", id="a million digits"),
    pytest.param(b'{"a": -' + b"9" * 1_000_000 + b"}", "integer_too_large", id="minus a million digits"),
    pytest.param(b'{"a": ' + b"[" * 1_000 + b"]" * 1_000 + b"}", "not_json", id="nested 1,000 deep"),
    pytest.param(b'{"a":' * 1_000 + b"1" + b"}" * 1_000, "not_json", id="objects 1,000 deep"),
    pytest.param(b"[" * 1_000_000, "not_json", id="a million brackets"),
    pytest.param(b"null", "not_an_object", id="null"),
    pytest.param(b"true", "not_an_object", id="boolean"),
    pytest.param(b"1", "not_an_object", id="number"),
    pytest.param(b'"text"', "not_an_object", id="string"),
    pytest.param(b"[]", "not_an_object", id="array"),
    pytest.param(None, "null_value", id="null value"),
]


@pytest.mark.parametrize(("data", "reason"), REFUSED)
def test_refused(data: bytes | None, reason: str) -> None:
    with pytest.raises(BadRecord) as refused:
        decode_object(data)
    assert refused.value.reason == reason
    assert refused.value.detail
    assert len(refused.value.detail) < 400  # it goes into dead letters and logs


TAKEN = [
    {},
    {"a": None, "b": True, "c": False},
    {"a": 2**63 - 1, "b": -(2**63), "c": 0},
    {"a": 1.5, "b": -0.0, "c": 1e300, "d": 5e-324, "e": 0.1},
    {"nul": "a\x00b", "key\x00": 1},
    {"emoji": "😀", "ü": "é", "line": "\u2028"},
    {"a": ["1234567890123456789012345678901234567890", {"b": "1e400"}]},
    {"a": [[[[[[[[[[1]]]]]]]]]]},
]


@pytest.mark.parametrize("value", TAKEN)
def test_what_is_taken_comes_back(value: dict[str, Any]) -> None:
    assert decode_object(json.dumps(value).encode()) == value
    assert decode_object(json.dumps(value, ensure_ascii=False).encode()) == value
    assert decode_object(encode(value)) == value
    assert decode_object(canonical(value)) == value


def test_digits_in_a_string_are_no_number() -> None:
    digits = "9" * 1_000
    assert decode(json.dumps([digits]).encode()) == [digits]


def test_the_last_of_equal_keys_counts() -> None:
    assert decode(b'{"a": 1, "a": 2}') == {"a": 2}


def test_numbers_that_only_look_wide_pass() -> None:
    assert decode(b"[1234567890123456789, 1e15, 0.1234567890123456789]") == [
        1234567890123456789,
        1e15,
        0.12345678901234568,
    ]


def test_a_moderate_depth_passes() -> None:
    data = b"[" * 150 + b"]" * 150
    assert encode(decode(data)) == data


def test_a_future_version_is_not_half_understood() -> None:
    with pytest.raises(BadRecord, match="future_version"):
        parse(Trigger, {"v": 2, "workflow": "w", "something": "new"})
    assert parse(Trigger, {"v": 1, "workflow": "w", "something": "new"}) == Trigger(workflow="w")
    assert parse(Trigger, {"workflow": "w"}).v == 1


@pytest.mark.parametrize("version", [0, -1, 1.5, "1", None, False, [1]])
def test_a_version_that_is_none_is_a_wrong_shape(version: object) -> None:
    with pytest.raises(BadRecord, match="wrong_shape: v"):
        parse(Trigger, {"v": version, "workflow": "w"})


WRONG_SHAPES: list[tuple[str, dict[str, Any], str]] = [
    ("execution.cancel", {"execution": 7, "actor": "a"}, "execution"),
    ("execution.cancel", {"execution": "e"}, "actor"),
    ("execution.cancel", {"execution": "e", "actor": "a", "run": "1"}, "run"),
    ("execution.cancel", {"execution": "e", "actor": "a", "run": -1}, "run"),
    ("execution.cancel", {"execution": "e", "actor": "a", "run": 1.0}, "run"),
    ("execution.cancel", {"execution": "e", "actor": "a", "run": True}, "run"),
    ("step.failed", {"task_id": "t", "error": "broke"}, "error"),
    ("step.failed", {"task_id": "t", "error": {}}, "error.kind"),
    ("step.failed", {"task_id": "t", "error": {"kind": ""}}, "error.kind"),
    ("step.failed", {"task_id": "t", "error": {"kind": "K", "retry_after_ms": -1}}, "error.retry_after_ms"),
    ("timer.fired", {"execution": "e"}, "run"),
    ("partition.forget", {"before": None}, "before"),
    ("execution.start", {"execution": "e", "workflow": "", "version": "1", "definition": "d"}, "workflow"),
    (
        "execution.start",
        {"execution": "e", "workflow": "w", "version": "1", "definition": "d", "rules": 0},
        "rules",
    ),
]


@pytest.mark.parametrize(("kind", "fields", "where"), WRONG_SHAPES)
def test_a_wrong_shape_names_the_field(kind: str, fields: dict[str, Any], where: str) -> None:
    with pytest.raises(BadRecord) as refused:
        parse(EVENT_TYPES[kind], {"v": 1, "type": kind, **fields})
    assert refused.value.reason == "wrong_shape"
    assert refused.value.detail.startswith(f"{where}: ")


def test_the_type_on_the_wire_is_the_models() -> None:
    for name, model in EVENT_TYPES.items():
        assert model.model_fields["type"].default == name


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_integers_in_nested_parts_of_an_event_are_bounded(name: str) -> None:
    """They may be given as text, whose integers the decoder does not bound; beyond 64 bits none can be encoded."""

    def check(schema: Any, where: str) -> None:
        if isinstance(schema, dict):
            assert schema.get("type") != "integer" or {"minimum", "maximum"} <= schema.keys(), where
            for key, part in schema.items():
                check(part, f"{where}.{key}")
        elif isinstance(schema, list):
            for part in schema:
                check(part, where)

    check(EVENT_TYPES[name].model_json_schema().get("$defs"), name)


def test_a_message_leaves_out_what_is_none() -> None:
    message = CancelExecution(execution="e", actor="a")
    assert encode_message(message) == b'{"v":1,"type":"execution.cancel","execution":"e","actor":"a","reason":""}'
    failed = StepFailed.model_validate({"task_id": "t", "error": {"kind": "K"}})
    assert parse(StepFailed, decode_object(encode_message(failed))) == failed


def test_nulls_within_a_payload_survive() -> None:
    message = StepCompleted(task_id="t", output={"a": None, "b": [None]})
    assert parse(StepCompleted, decode_object(encode_message(message))) == message


def test_equal_values_have_one_hash() -> None:
    assert canonical({"b": [1, 2.5], "a": {"d": None, "c": "ü"}}) == '{"a":{"c":"ü","d":null},"b":[1,2.5]}'.encode()
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 1.0})
    assert content_hash({}) == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_limits_have_bounds() -> None:
    assert (Limits().input, Limits().result, Limits().step_inputs) == (256 * 1024, 64 * 1024, 512 * 1024)
    for beyond in ({"input": 0}, {"result": -1}, {"step_inputs": 10**9}):
        with pytest.raises(ValueError, match=next(iter(beyond))):
            Limits(**beyond)
