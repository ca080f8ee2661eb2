"""Strict JSON at the edge: what is decoded here can be encoded again without a change of value.

Refused, each with a reason: text that is not UTF-8 or not JSON (RFC 8259), `NaN` and `Infinity`, lone
surrogates, integers beyond 64 bits (most decoders would round them) and nesting beyond what the parser
follows (about 200 levels). A NUL character in a string is legal JSON and passes.
"""

from __future__ import annotations

import hashlib
import re
from math import isfinite
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

Message = TypeVar("Message", bound=BaseModel)

# Only a number with 19 digits in a row or an exponent of three can be wider than 64 bits or overflow a double.
# Shapes are looked for with every digit made a 0: that is ten times faster than the regular expression, which
# then tells numbers from identifiers that look like them.
_SHAPE = bytes(ord("0") if chr(byte).isdecimal() else ord("e") if byte == ord("E") else byte for byte in range(256))
_SUSPICIOUS_SHAPES = (b"0" * 19, b"0e000", b"0e+000")
_SUSPICIOUS_NUMBER = re.compile(rb"\d{19}|\d[eE]\+?\d{3,}(?:[\s,\]}]|\Z)")
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


class BadRecord(Exception):
    """A record that cannot be taken as what it should be. `reason` is a stable word, `detail` a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def decode(data: bytes) -> Any:
    """The JSON value in `data`. Raises `BadRecord` (`not_utf8`, `not_json`, `integer_too_large`)."""
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        try:
            data.decode()
        except UnicodeDecodeError:
            raise BadRecord("not_utf8", "the record is not UTF-8 text") from None
        if "number out of range" in str(error):
            raise BadRecord("integer_too_large", "an integer has more than 64 bits") from None
        raise BadRecord("not_json", f"the record is not JSON: {str(error)[:200]}") from None
    shape = data.translate(_SHAPE)
    if any(found in shape for found in _SUSPICIOUS_SHAPES) and _SUSPICIOUS_NUMBER.search(data):
        _refuse_wide_numbers(value)
    return value


def _refuse_wide_numbers(root: Any) -> None:
    open_values = [root]
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict):
            open_values.extend(value.values())
        elif isinstance(value, list):
            open_values.extend(value)
        elif isinstance(value, int) and not _INT64_MIN <= value <= _INT64_MAX:
            raise BadRecord("integer_too_large", "an integer has more than 64 bits")
        elif isinstance(value, float) and not isfinite(value):
            raise BadRecord("not_json", "a number is beyond the range of a double")


def decode_object(data: bytes | None) -> dict[str, Any]:
    """The JSON object in `data`. Raises `BadRecord`, also with `null_value` and `not_an_object`."""
    if data is None:
        raise BadRecord("null_value", "the record has no value")
    return as_object(decode(data))


def as_object(value: Any) -> dict[str, Any]:
    """A decoded value that must be an object. Raises `BadRecord("not_an_object")`."""
    if not isinstance(value, dict):
        raise BadRecord("not_an_object", f"the record is a JSON {_json_type(value)}, not an object")
    return value


def parse(model: type[Message], value: dict[str, Any]) -> Message:
    """`value` as `model`; raises `BadRecord("wrong_shape")` naming the first field that does not fit.

    A `v` beyond the one this release knows is `future_version`: a newer producer must not be half understood.
    """
    version = value.get("v")
    if isinstance(version, int) and not isinstance(version, bool) and version > 1:
        raise BadRecord("future_version", f"the record has v={version}; this release reads v=1")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the record"
        raise BadRecord("wrong_shape", f"{where}: {first['msg']}") from None


def encode(value: Any) -> bytes:
    """Compact JSON bytes of plain values (and `orjson.Fragment`s), keys in the order given."""
    return orjson.dumps(value)


def encode_message(message: BaseModel) -> bytes:
    """A message as it goes on the wire: fields that are None are left out."""
    return orjson.dumps(message.model_dump(mode="json", by_alias=True, exclude_none=True))


def canonical(value: Any) -> bytes:
    """JSON with sorted keys: equal values give equal bytes, for hashes."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def content_hash(value: Any) -> str:
    """`sha256:<hex>` of the canonical JSON of `value`."""
    return "sha256:" + hashlib.sha256(canonical(value)).hexdigest()


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array"}
    return names.get(type(value), "value")
