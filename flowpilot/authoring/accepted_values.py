"""The JSON that types without parts accept: numbers, texts, moments, literals (see `accepted`)."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

Schema = dict[str, Any] | bool
"""A JSON Schema. False: nothing in JSON is accepted."""
Core = Mapping[str, Any]

ANYTHING, NOTHING = True, False
_NUMERIC = ["boolean", "number", "string"]
_WITHOUT_PARTS = ("config", "metadata", "serialization", "cls", "default", "expected", "members")
# Options of a config that let a text be what it is not without them, or that change its engine of patterns.
_OF_TEXTS = (
    *("coerce_numbers_to_str", "str_strip_whitespace", "str_to_lower", "str_to_upper"),
    "regex_engine",
)
_ORDINARY = (None, False, "rust-regex")
_NO_MISSING = enum.Enum._missing_.__func__  # type: ignore[attr-defined]
# Doubles hold every integer up to here, so that a bound means the same before and after rounding.
_EXACT = 2**53


def config_of_definitions(root: Core) -> Core:
    """The options for texts that may hold in a definition of `root`: those of every config in it.

    pydantic validates a definition under the config of a model that refers to it, or of none: that depends on which
    of them was built first.
    """
    found: dict[str, Any] = {}
    open_values: list[Any] = [root]
    while open_values:
        value = open_values.pop()
        if isinstance(value, Mapping) and isinstance(value.get("type"), str):
            config = value.get("config") or {}
            found |= {name: config[name] for name in _OF_TEXTS if config.get(name) not in _ORDINARY}
            open_values += [each for name, each in value.items() if name not in _WITHOUT_PARTS]
        elif isinstance(value, Mapping):  # fields, or members, by name
            open_values += value.values()
        elif isinstance(value, list | tuple):
            open_values += value
    return found


def integer(core: Core, config: Core) -> Schema:
    """Whole numbers, texts of them, and booleans."""
    return {"type": _NUMERIC, "multipleOf": 1, "pattern": "[0-9]", **_bounds(core)}


def number(core: Core, config: Core) -> Schema:
    """Numbers, texts of them, and booleans."""
    return {"type": _NUMERIC, **_bounds(core)}


def decimal(core: Core, config: Core) -> Schema:
    """Numbers, texts, and (sign, digits, exponent)."""
    return {"type": ["array", *_NUMERIC], **_bounds(core)}


def boolean(core: Core, config: Core) -> Schema:
    """Also 0 and 1, and words for them."""
    return {"type": _NUMERIC}


def text(core: Core, config: Core) -> Schema:
    """Patterns are left out: pydantic's, Python's and JSON Schema's regular expressions differ."""
    coerced = core.get("coerce_numbers_to_str", config.get("coerce_numbers_to_str"))
    found: dict[str, Any] = {"type": _NUMERIC if coerced else "string"}

    def is_set(option: str) -> bool:
        return bool(core.get(option, config.get(f"str_{option}")))

    folds = is_set("to_lower") or is_set("to_upper")  # which may change the length
    if core.get("min_length") and not folds:
        found["minLength"] = core["min_length"]
    if core.get("max_length") is not None and not folds and not is_set("strip_whitespace"):
        found["maxLength"] = core["max_length"]
    return found


def only_text(core: Core, config: Core) -> Schema:
    """What is written as text."""
    return {"type": "string"}


def moment(core: Core, config: Core) -> Schema:
    """ISO 8601, or a number in one of two units."""
    return {"type": ["number", "string"]}


def null(core: Core, config: Core) -> Schema:
    """Null."""
    return {"type": "null"}


def literal(core: Core, config: Core) -> Schema:
    """Values; those of numbers and booleans are compared as Python does."""
    return _values(core["expected"])


def enumeration(core: Core, config: Core) -> Schema:
    """The values of the members, unless the class has a `_missing_` of its own."""
    if core.get("missing") is not None or core["cls"]._missing_.__func__ is not _NO_MISSING:
        return ANYTHING
    if core.get("sub_type") in ("int", "float"):
        return {"type": _NUMERIC}
    return _values([member.value for member in core["members"]])


def nothing(core: Core, config: Core) -> Schema:
    """What only a Python object can be."""
    return NOTHING


def _values(values: list[Any]) -> Schema:
    plain = [value.value if isinstance(value, enum.Enum) else value for value in values]
    if any(not isinstance(value, str | int | float | bool | None) for value in plain):
        return ANYTHING
    exact = {"enum": [str(value) if isinstance(value, str) else value for value in plain]}
    if all(isinstance(value, str | None) for value in plain):
        return exact
    if any(isinstance(value, str) for value in plain):
        return any_of([exact, {"type": ["boolean", "number"]}])
    return {"type": ["boolean", "null", "number"]} if None in plain else {"type": ["boolean", "number"]}


def _bounds(core: Core) -> dict[str, Any]:
    """Bounds of numbers; texts and booleans pass them by. A strict one may be met by rounding."""
    found: dict[str, Any] = {}
    for names, keyword in ((("ge", "gt"), "minimum"), (("le", "lt"), "maximum")):
        for bound in (core.get(name) for name in names):
            if isinstance(bound, int | float) and isfinite(bound) and abs(bound) <= _EXACT:
                found[keyword] = bound
    return found


def any_of(members: list[Schema]) -> Schema:
    """What any of `members` takes."""
    found: list[Any] = []
    for member in members:
        if member is ANYTHING:
            return ANYTHING
        if member is not NOTHING and member not in found:
            found.append(member)
    if not found:
        return NOTHING
    return found[0] if len(found) == 1 else {"anyOf": found}


KINDS: dict[str, Callable[[Core, Core], Schema]] = {
    "int": integer,
    "float": number,
    "decimal": decimal,
    "bool": boolean,
    "str": text,
    "bytes": only_text,
    "uuid": only_text,
    "url": only_text,
    "multi-host-url": only_text,
    "json": only_text,
    "date": moment,
    "datetime": moment,
    "time": moment,
    "timedelta": moment,
    "none": null,
    "literal": literal,
    "enum": enumeration,
    "is-instance": nothing,
    "is-subclass": nothing,
    "callable": nothing,
}
