"""A dead letter from a record that nobody could process: the record alone decides its bytes."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from typing import Protocol

from flowpilot_schemas.ids import is_legal_name
from flowpilot_schemas.limits import MAX_ERROR_MESSAGE
from flowpilot_schemas.messages import DeadLetter
from flowpilot_schemas.topics import LARGE_MESSAGE

# Key and value together, before base64 makes 4 bytes of 3; the rest is room for detail, names and framing.
WHOLE = LARGE_MESSAGE * 3 // 4 - 64 * 1024


class ReadRecord(Protocol):
    """What is taken of a record (`flowpilot.ports.log.Fetched` has it)."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


def dead_letter(
    record: ReadRecord, reason: str, detail: str, source: str, workflow: str | None = None
) -> DeadLetter:
    """The dead letter of `record`. `reason` is a stable word, `source` the role that gave up on it.

    `size` and `sha256` are those of the whole value. A record too large for the dead-letter topic keeps the
    first 64 KiB of its key and value and is marked `truncated`. A `workflow` that is no legal name is left out.
    """
    key, value = record.key, record.value
    truncated = len(key or b"") + len(value or b"") > WHOLE
    if truncated:
        key = key and key[: DeadLetter.HEAD]
        value = value and value[: DeadLetter.HEAD]
    return DeadLetter(
        reason=reason,
        detail=_text(detail),
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        key=None if key is None else b64encode(key).decode(),
        value=None if value is None else b64encode(value).decode(),
        size=len(record.value or b""),
        sha256=hashlib.sha256(record.value or b"").hexdigest(),
        truncated=truncated,
        source=source,
        workflow=workflow if workflow is not None and is_legal_name(workflow) else None,
    )


def dead_letter_key(record: ReadRecord) -> bytes | None:
    """The record key of the dead letter: the original key, as far as a record of that topic can carry it."""
    return record.key and record.key[: DeadLetter.HEAD]


def _text(detail: str) -> str:
    # A detail quotes the record, which may hold what UTF-8 cannot: lone surrogates from lenient producers.
    return detail[:MAX_ERROR_MESSAGE].encode(errors="replace").decode()
