"""A handler's result as strict JSON: what cannot be read back unchanged is refused, never altered."""

from __future__ import annotations

from math import isfinite
from typing import Any

import pydantic_core
from pydantic import TypeAdapter

from flowpilot.authoring.bounds import bounds_of
from flowpilot.core.bounds.checks import TooCostly
from flowpilot.core.inputs import MAX_DEPTH, is_deeper
from flowpilot_schemas.codec import BadRecord, decode


class NotSerialisable(Exception):
    """The value is not JSON; the message says why."""


def to_json(value: Any, adapter: TypeAdapter[Any] | None = None, *, round_trip: bool = False) -> bytes:
    """`value` as JSON by its annotation's `adapter`, else by what it is. Raises `NotSerialisable`.

    With `round_trip` it is what the type reads again: without computed fields, and with the texts of `Json[…]`.

    NaN, infinities, integers beyond 64 bits, lone surrogates and deep nesting are refused.
    """
    try:
        if adapter is not None:
            bounds_of(adapter).check_written(value)
        if adapter is None:
            data = pydantic_core.to_json(value, inf_nan_mode="constants", by_alias=True)
        else:
            data = adapter.dump_json(value, by_alias=True, warnings=False, round_trip=round_trip)
        if b"null" in data and adapter is not None and _has_nan(adapter.dump_python(value, warnings=False)):
            # Most serialisers write NaN and infinities as null, without a word.
            raise NotSerialisable("it holds NaN or an infinity")
        if b"null" in data and adapter is None and _has_nan(pydantic_core.to_jsonable_python(value)):
            raise NotSerialisable("it holds NaN or an infinity")
        plain = decode(data)
        if data.count(b"[") + data.count(b"{") > MAX_DEPTH and is_deeper(plain, MAX_DEPTH):
            raise NotSerialisable(f"it is nested deeper than {MAX_DEPTH} levels")
    except NotSerialisable:
        raise
    except TooCostly as costly:
        raise NotSerialisable(str(costly)) from None
    except BadRecord as error:
        raise NotSerialisable(_sentence(error)) from None
    except Exception as error:  # noqa: BLE001 - serialisers are the user's code too
        raise NotSerialisable(str(error) or type(error).__name__) from None
    return data


def _sentence(error: BadRecord) -> str:
    """What `decode` says of a record, said of a value: what serialisers write is JSON but for two things."""
    if error.reason != "not_json":
        return error.detail
    is_deep = "recursion" in error.detail
    return f"it is nested deeper than {MAX_DEPTH} levels" if is_deep else "it holds NaN or an infinity"


def _has_nan(root: Any) -> bool:
    open_values = [root]
    while open_values:
        value = open_values.pop()
        if isinstance(value, float):
            if not isfinite(value):
                return True
        elif isinstance(value, dict):
            open_values.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            open_values.extend(value)
    return False
