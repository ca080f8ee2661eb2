"""What query and path parameters take, with the sentence where they do not."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Path, Query, Request
from pydantic import BeforeValidator, WithJsonSchema

from flowpilot.api.problems import Refusal
from flowpilot.app.executions import STATUSES
from flowpilot.authoring.durations import milliseconds
from flowpilot_schemas.ids import is_execution_id
from flowpilot_schemas.limits import MAX_KEY

LARGEST = 2**63 - 1
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_SECONDS = re.compile(r"\d{1,9}(?:\.\d{1,3})?(?:ms|s|m|h)", re.ASCII)
# Eight bytes; the last character has four bits of them.
_CURSOR = re.compile(r"[A-Za-z0-9_-]{10}[AEIMQUYcgkosw048]", re.ASCII)


def cursor(place: int | None) -> str | None:
    """A place in a list, as callers send it back; None: there is no next page."""
    return None if place is None else urlsafe_b64encode(place.to_bytes(8, "big")).decode().rstrip("=")


def _place(value: Any) -> int:
    if not isinstance(value, str) or not _CURSOR.fullmatch(value):
        raise ValueError("is not the `next` of a page")
    return min(int.from_bytes(urlsafe_b64decode(f"{value}="), "big"), LARGEST)


def _moment(value: Any) -> datetime:
    try:
        if isinstance(value, str) and _MOMENT.fullmatch(value):
            moment = datetime.fromisoformat(value.upper())
            try:
                return moment.astimezone(UTC)  # PostgreSQL takes offsets below 16 hours only
            except OverflowError:  # at either end of all time
                return moment.replace(tzinfo=UTC)
    except ValueError:
        pass
    raise ValueError("is not a time such as 2026-05-01T12:00:00Z")


def _seconds(value: Any) -> float:
    if not isinstance(value, str) or not _SECONDS.fullmatch(value):
        raise ValueError("is not a duration such as 10s or 500ms")
    return milliseconds(value) / 1_000


def _status(value: Any) -> str:
    if value not in STATUSES:
        raise ValueError(f"takes one of {', '.join(STATUSES)}")
    return str(value)


def _execution(value: Any) -> str:
    if not isinstance(value, str) or not is_execution_id(value):
        raise ValueError(f"{value!r} is not an execution id")
    return value


def _text(pattern: re.Pattern[str], **more: Any) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^{pattern.pattern}$", **more})


_ID = {
    "type": "string",
    "pattern": r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(\.[1-9][0-9]{0,5})?$",
    "examples": ["c66e4a16-8185-50e7-a0b4-7ab3a77f66d5"],
}

ExecutionId = Annotated[
    str, BeforeValidator(_execution), WithJsonSchema(_ID), Path(description="An execution's id.")
]
Parent = Annotated[
    str | None,
    BeforeValidator(_execution),
    WithJsonSchema(_ID),
    Query(description="Only retries of this execution."),
]
Status = Annotated[
    str | None,
    BeforeValidator(_status),
    WithJsonSchema({"type": "string", "enum": list(STATUSES)}),
    Query(description="Only these."),
]
Moment = Annotated[
    datetime | None,
    BeforeValidator(_moment),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-05-01T12:00:00Z"]}),
]
Wait = Annotated[
    float | None,
    BeforeValidator(_seconds),
    _text(_SECONDS, examples=["10s"]),
    Query(description="Wait so long for the execution's end, at most a minute: then the answer is 200 with it."),
]
After = Annotated[
    int | None,
    BeforeValidator(_place),
    _text(_CURSOR),
    Query(alias="cursor", description="`next` of the page before."),
]
Limit = Annotated[int, Query(ge=1, le=500, description="At most so many.")]
Run = Annotated[
    int | None, Query(ge=0, le=LARGEST, description="An earlier run of the same key; without it, the newest.")
]
Key = Annotated[str | None, Query(min_length=1, max_length=MAX_KEY, description="Only with this key.")]
Name = Annotated[str | None, Query(min_length=1, max_length=249)]
WorkflowName = Annotated[str, Path(description="A workflow's name.", examples=["onboarding"])]


async def only_known(request: Request) -> None:
    """Refuses a query parameter that the route does not have: a filter that was mistyped would show everything."""
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            takes = f"this address takes {', '.join(known)}" if known else "this address takes none"
            raise Refusal(422, "parameter_invalid", f"there is no query parameter {name!r}: {takes}")
