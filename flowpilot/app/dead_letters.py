"""Dead letters as the command line and the API show them: plain values out of the audit record."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from flowpilot.adapters.postgres.dead_letters import DeadLetterQueries, Place, Wanted
from flowpilot.adapters.postgres.models import DeadLetterRow
from flowpilot.app.database import Asked, iso, querying
from flowpilot.audit.records import without_nul
from flowpilot.ports.log import Headers, is_utf8

Fields = dict[str, Any]

# What to do about a reason, where the letter's own sentence does not say it.
REMEDIES = {
    "not_json": "publish JSON on this topic, or take the topic out of the workflow's triggers",
    "not_utf8": "publish JSON in UTF-8",
    "not_an_object": "publish a JSON object",
    "integer_too_large": "send integers beyond 64 bits as strings",
    "too_deep": "nest the JSON less deeply",
    "too_large": "keep large data elsewhere and send where it is, or raise the limit",
    "input_invalid": "publish what the input's type takes (`flowpilot workflow show` has its schema), under "
    "the same key if you like, or apply a version that takes it",
    "validation_too_costly": "nest it less deeply, or apply a version whose input type tells the members of its "
    "unions apart by a discriminator",
    "key_missing": "publish the field that the trigger's unique_by names, or apply a version without unique_by",
    "key_too_long": "use a shorter key",
    "unknown_workflow": "apply the workflow, then publish the record again",
    "unknown_version": "apply that version, or publish the record again without a version",
    "unknown_execution": "nothing, if its execution ended long ago: the answer came too late to count",
    "record_unreadable": "publish the record again, uncompressed",
    "headers_unreadable": "publish the record again, with names of headers in UTF-8",
    "future_version": "upgrade this role, then publish the record again",
    "dispatch_failed": "create the queue's topic or make what the step is given smaller, then retry the execution",
    "engine_fault": "this is a defect of FlowPilot: report it with this record",
    "engine_crash": "this is a defect of FlowPilot: report it with this record",
}


class Shown(NamedTuple):
    """One dead letter: its fields, and the record's bytes and headers (`flowpilot.ports.log.Headers`) as far as
    they were kept."""

    fields: Fields
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


def list_groups(asked: Asked, wanted: Wanted) -> list[Fields]:
    """By reason, the one with the newest letter first. Raises `DatabaseUnreachable`, `DatabaseRefused`."""
    with querying(asked, DeadLetterQueries) as queries:
        return [
            {
                "reason": group.example.reason,
                "count": group.count,
                "newest": iso(group.example.reported_at),
                "topics": group.topics,
                "workflows": group.workflows,
                "example": _record(group.example),
                "id": group.example.id,
                "detail": group.example.detail,
                "remedy": REMEDIES.get(group.example.reason),
            }
            for group in queries.groups(wanted)
        ]


def list_letters(asked: Asked, wanted: Wanted, limit: int, before: int | None = None) -> tuple[list[Fields], int]:
    """The newest first (older than the letter `before`), without their bytes; and how many there are in all.
    Raises as `list_groups`."""
    names = {name: without_nul(getattr(wanted, name)) for name in ("reason", "workflow", "topic")}
    with querying(asked, DeadLetterQueries) as queries:
        found, total = queries.letters(replace(wanted, **names), limit, before)
        return [_letter(row) for row in found], total


def show_letter(asked: Asked, which: int | Place) -> Shown | None:
    """One dead letter, by its id or by its record's place; None if there is none. Raises as `list_groups`."""
    with querying(asked, DeadLetterQueries) as queries:
        found = queries.show(which)
    if found is None:
        return None
    row, others = found
    fields = {
        **_letter(row),
        "remedy": REMEDIES.get(row.reason),
        "headers_left_out": row.headers_left_out or 0,
        "others": [{"id": other.id, "reason": other.reason, "workflow": other.workflow} for other in others],
    }
    return Shown(fields, row.key, row.value, headers_of(row))


def headers_of(row: DeadLetterRow) -> Headers:
    """The headers that were kept."""
    return tuple((_name(header), b64decode(header["value"])) for header in row.headers or ())


def _name(header: dict[str, str]) -> str:
    data = header.get("name_base64")
    return header["name"] if data is None else b64decode(data).decode(errors="surrogateescape")


def as_json(letter: Shown) -> Fields:
    """All of it: the bytes as base64, and as text where they are UTF-8."""
    return {
        **letter.fields,
        "key_base64": _base64(letter.key),
        "value_base64": _base64(letter.value),
        "value_text": _text(letter.value),
        "headers": [
            {**_name_fields(name), "value_base64": _base64(value), "value_text": _text(value)}
            for name, value in letter.headers
        ],
    }


def _letter(row: DeadLetterRow) -> Fields:
    return {
        "id": row.id,
        "reason": row.reason,
        "detail": row.detail,
        "record": _record(row),
        "topic": row.topic,
        "partition": row.partition,
        "offset": row.offset,
        "at": _moment(row.timestamp),
        "reported_at": iso(row.reported_at),
        "source": row.source,
        "workflow": row.workflow,
        "size": row.size,
        "sha256": row.sha256,
        "truncated": row.truncated,
    }


def _record(row: DeadLetterRow) -> str:
    return f"{row.topic}/{row.partition}/{row.offset}"


def _name_fields(name: str) -> Fields:
    data = name.encode(errors="surrogateescape")
    return {"name": data.decode(errors="replace"), "name_base64": None if is_utf8(name) else _base64(data)}


def _base64(data: bytes | None) -> str | None:
    return None if data is None else b64encode(data).decode()


def _text(data: bytes | None) -> str | None:
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        return None


def _moment(ms: int) -> str | None:
    """A record's own time, which may be anything if its topic takes the producer's word."""
    try:
        return iso(datetime.fromtimestamp(ms / 1000, UTC)) if ms >= 0 else None
    except (OverflowError, ValueError, OSError):
        return None
