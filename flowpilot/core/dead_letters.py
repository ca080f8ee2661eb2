"""A dead letter from a record that nobody could process: the record alone decides its bytes.

The dead letter of a record whose input only a worker's type refused is made from the execution's state and input.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from heapq import nsmallest
from typing import Protocol

from flowpilot.core.state import Execution
from flowpilot_schemas.codec import encode
from flowpilot_schemas.ids import is_legal_name
from flowpilot_schemas.limits import MAX_ERROR_MESSAGE
from flowpilot_schemas.messages import INPUT_INVALID, DeadLetter, RecordHeader
from flowpilot_schemas.topics import LARGE_MESSAGE
from flowpilot_schemas.tracing import HEADER

# Key and value together, before base64 makes 4 bytes of 3; the rest is room for detail, names and framing.
WHOLE = LARGE_MESSAGE * 3 // 4 - 64 * 1024

# No more of the shortest, '{"name":"","value":""},', have room.
_MOST_HEADERS = DeadLetter.HEADERS // len('{"name":"","value":""},')


Place = tuple[str, int]
"""A topic and a partition."""


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
    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]: ...


def dead_letter(
    record: ReadRecord,
    reason: str,
    detail: str,
    source: str,
    workflow: str | None = None,
    topic_id: str | None = None,
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
    headers = _kept(record.headers)
    left_out = len(record.headers) - len(headers)
    return DeadLetter(
        reason=reason,
        detail=_text(detail),
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        key=None if key is None else b64encode(key).decode(),
        value=None if value is None else b64encode(value).decode(),
        headers=headers or None,
        headers_left_out=left_out or None,
        size=len(record.value or b""),
        sha256=hashlib.sha256(record.value or b"").hexdigest(),
        truncated=truncated,
        source=source,
        workflow=workflow if workflow is not None and is_legal_name(workflow) else None,
        topic_id=topic_id,
    )


def refused_input(state: Execution, given: bytes, detail: str, start: Place, at: int) -> DeadLetter:
    """The dead letter of the record that began the run `state`, whose input `given` (as JSON) a worker's types
    refused at `at` (ms). `start`: the topic and partition of the start, for a run that no trigger record began."""
    origin = state.origin or {"topic": start[0], "partition": start[1], "offset": state.run, "timestamp": at}
    timestamp = origin.get("timestamp")
    return DeadLetter(
        reason=INPUT_INVALID,
        detail=_text(detail),
        topic=origin["topic"],
        partition=origin["partition"],
        offset=origin["offset"],
        timestamp=at if timestamp is None else timestamp,
        value=b64encode(given).decode(),  # no input is larger than a quarter of what the topic takes
        size=len(given),
        sha256=hashlib.sha256(given).hexdigest(),
        source="worker",
        workflow=state.workflow if is_legal_name(state.workflow) else None,
        topic_id=origin.get("topic_id"),
    )


def dead_letter_key(record: ReadRecord) -> bytes | None:
    """The record key of the dead letter: the original key, as far as a record of that topic can carry it."""
    return record.key and record.key[: DeadLetter.HEAD]


def _kept(headers: tuple[tuple[str, bytes], ...]) -> list[RecordHeader]:
    """As many as there is room for: the trace goes before, and the short before the long."""
    places = range(len(headers))
    if len(headers) > _MOST_HEADERS:
        # There may be half a million in a record: only those are looked at that there could be room for.
        places = nsmallest(  # type: ignore[assignment]
            _MOST_HEADERS, places, key=lambda place: (headers[place][0] != HEADER, sum(map(len, headers[place])))
        )
    told = {place: _header(*headers[place]) for place in places}
    sizes = {place: len(encode(header.model_dump(exclude_none=True))) + 1 for place, header in told.items()}
    room, kept = DeadLetter.HEADERS, list[int]()
    for place in sorted(places, key=lambda place: (headers[place][0] != HEADER, sizes[place], place)):
        room -= sizes[place]
        if room < 0:
            break
        kept.append(place)
    return [told[place] for place in sorted(kept)]


def _header(name: str, value: bytes) -> RecordHeader:
    """As `flowpilot.ports.log.Headers` has it: bytes that are not UTF-8 are lone surrogates in a name."""
    held = b64encode(value).decode()
    try:
        name.encode()
        return RecordHeader(name=name, value=held)
    except UnicodeEncodeError:
        pass
    try:
        data = name.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # it stands for a name that is not known
        return RecordHeader(name="\ufffd", value=held)
    return RecordHeader(name=data.decode(errors="replace"), name_base64=b64encode(data).decode(), value=held)


def _text(detail: str) -> str:
    # A detail quotes the record, which may hold what UTF-8 cannot: lone surrogates from lenient producers.
    return _sound(detail[:MAX_ERROR_MESSAGE])


def _sound(text: str) -> str:
    return text.encode(errors="replace").decode()
