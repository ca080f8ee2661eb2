"""Whether what one step returns can be what another takes, told from the types alone.

Clear misfits are refused, doubts are not: the worker validates every value again.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import types
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter

_UNIONS = (Union, types.UnionType)
_ARRAYS = (list, tuple, set, frozenset, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping)


def fits(produced: Any, wanted: Any) -> bool:
    """Whether a value of type `produced` may be given where `wanted` is annotated."""
    produced, wanted = _plain(produced), _plain(wanted)
    if produced == wanted or _is_open(produced) or _is_open(wanted):
        return True
    if get_origin(produced) in _UNIONS:
        return all(fits(member, wanted) for member in get_args(produced))
    if get_origin(wanted) in _UNIONS:
        return any(fits(produced, member) for member in get_args(wanted))
    if get_origin(produced) is Literal:
        return all(_value_fits(value, wanted) for value in get_args(produced))
    if get_origin(wanted) is Literal:
        return any(fits(produced, type(value)) for value in get_args(wanted))
    if isinstance(produced, type) and isinstance(wanted, type):
        if issubclass(produced, wanted):
            return True
        if _is_record(produced) and _is_record(wanted):
            return False  # two unrelated models: what they have in common is chance
    return _collections_fit(produced, wanted) and _kinds_meet(produced, wanted)


def is_same(produced: Any, wanted: Any) -> bool:
    """Whether both are one type, which says what it is."""
    produced, wanted = _plain(produced), _plain(wanted)
    return bool(produced == wanted) and not _is_open(produced)


def _plain(annotation: Any) -> Any:
    """Without Annotated, NewType and type aliases; None as its type."""
    while True:
        if annotation is None:
            return types.NoneType
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__") and hasattr(annotation, "__type_params__"):
            annotation = annotation.__value__
        else:
            return annotation


def _is_open(annotation: Any) -> bool:
    return annotation is Any or annotation is object or isinstance(annotation, TypeVar)


def _value_fits(value: Any, wanted: Any) -> bool:
    return value in get_args(wanted) if get_origin(wanted) is Literal else fits(type(value), wanted)


def _is_record(candidate: type) -> bool:
    named_tuple = issubclass(candidate, tuple) and hasattr(candidate, "_fields")
    return issubclass(candidate, BaseModel) or dataclasses.is_dataclass(candidate) or named_tuple


def _collections_fit(produced: Any, wanted: Any) -> bool:
    """Arrays with arrays and mappings with mappings: their elements must fit too, where they are named."""
    mine, theirs = get_args(produced), get_args(wanted)
    if not mine or not theirs:
        return True
    if _is_a(produced, _MAPPINGS) and _is_a(wanted, _MAPPINGS):
        return len(mine) != 2 or len(theirs) != 2 or fits(mine[1], theirs[1])
    if _is_a(produced, _ARRAYS) and _is_a(wanted, _ARRAYS):
        if len(mine) == len(theirs):
            return all(a is ... or b is ... or fits(a, b) for a, b in zip(mine, theirs, strict=True))
        return True
    return True


def _is_a(annotation: Any, kinds: tuple[type, ...]) -> bool:
    origin = get_origin(annotation) or annotation
    return isinstance(origin, type) and issubclass(origin, kinds)


def _kinds_meet(produced: Any, wanted: Any) -> bool:
    """Whether the JSON types that one writes and the other reads have one in common."""
    written, read = _kinds(produced, "serialization"), _kinds(wanted, "validation")
    if not written or not read:
        return True
    if "integer" in written and "number" in read:
        return True
    return bool(written & read)


def _kinds(annotation: Any, mode: Literal["serialization", "validation"]) -> set[str]:
    """The JSON types in the annotation's schema; empty if it has none or does not say."""
    try:
        schema = TypeAdapter(annotation).json_schema(mode=mode)
    except Exception:  # noqa: BLE001 - no schema, no verdict
        return set()
    return _schema_kinds(schema, schema.get("$defs", {}), 0)


def _schema_kinds(schema: Any, definitions: dict[str, Any], depth: int) -> set[str]:
    if not isinstance(schema, dict) or depth > 8:
        return set()
    if "$ref" in schema:
        return _schema_kinds(definitions.get(schema["$ref"].rpartition("/")[2]), definitions, depth + 1)
    if "type" in schema:
        named = schema["type"]
        return {named} if isinstance(named, str) else set(named)
    found: set[str] = set()
    for member in schema.get("anyOf") or schema.get("oneOf") or []:
        kinds = _schema_kinds(member, definitions, depth + 1)
        if not kinds:
            return set()
        found |= kinds
    return found


def describe(annotation: Any) -> str:
    """The annotation as a user would write it."""
    annotation = types.NoneType if annotation is None else annotation
    if annotation is types.NoneType:
        return "None"
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")
