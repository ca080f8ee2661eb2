"""W3C Trace Context: the `traceparent` that an execution is given and hands on to its steps.

`00-<trace id: 32 hex>-<span id: 16 hex>-<flags: 2 hex>`, lower case. What is none is as good as absent: a broken
trace is no reason to refuse work. `tracestate` is not carried.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

HEADER = "traceparent"
"""The name of the header, in Kafka's records as in HTTP's requests."""

_FORM = re.compile(
    r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL
)
_SAMPLED = 1


def as_traceparent(given: Any) -> str | None:
    """`given` (text, or UTF-8 bytes) if it is a traceparent, else None.

    One of a later version than 00 is told in version 00, with the flag that both know: whether it is sampled.
    """
    if isinstance(given, bytes):
        given = given.decode(errors="replace")
    found = _FORM.fullmatch(given) if isinstance(given, str) else None
    if found is None:
        return None
    version, ids, flags, more = found.groups()
    if version == "00":
        return given if more is None else None
    return f"00-{ids}-{int(flags, 16) & _SAMPLED:02x}"


def in_headers(headers: tuple[tuple[str, bytes], ...]) -> str | None:
    """The traceparent among a record's headers; the last one, if there are several."""
    for name, value in reversed(headers):
        if name == HEADER:
            return as_traceparent(value)
    return None


Traceparent = Annotated[str | None, BeforeValidator(as_traceparent)]
"""A field of a message: what is no traceparent is None there."""
