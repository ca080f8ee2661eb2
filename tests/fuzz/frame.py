"""An input of the fuzzer as records of the log: one byte string that any mutation leaves readable.

Records are separated by 0x1d, the parts of a record by 0x1e (neither is legal in JSON text): value, key, then
headers as `name=value`. A value of one NUL is none at all, a tombstone; a missing or empty key is no key.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from flowpilot.ports.log import Headers

BETWEEN_RECORDS, BETWEEN_PARTS, NO_VALUE = b"\x1d", b"\x1e", b"\0"


class Given(NamedTuple):
    """A record as the fuzzer gives it. Header names are text, as Kafka has them."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()


def given(data: bytes) -> list[Given]:
    """The records in an input."""
    return [_one(part.split(BETWEEN_PARTS)) for part in data.split(BETWEEN_RECORDS)]


def _one(parts: list[bytes]) -> Given:
    value, key, *headers = *parts, *([b""] if len(parts) == 1 else [])
    return Given(None if value == NO_VALUE else value, key or None, tuple(map(_header, headers)))


def _header(part: bytes) -> tuple[str, bytes]:
    name, _, value = part.partition(b"=")
    return name.decode(errors="replace"), value


def framed(records: Iterable[Given]) -> bytes:
    """The inverse of `given`."""
    return BETWEEN_RECORDS.join(
        BETWEEN_PARTS.join(
            [
                NO_VALUE if record.value is None else record.value,
                record.key or b"",
                *(name.encode() + b"=" + value for name, value in record.headers),
            ]
        )
        for record in records
    )
