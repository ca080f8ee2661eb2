"""Bodies in and out: read within bounds before anything is parsed, decoded as everywhere in FlowPilot."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response
from pydantic import BaseModel

from flowpilot.api.problems import Refusal
from flowpilot_schemas.codec import decode, decode_object, parse
from flowpilot_schemas.limits import KIB

# Bytes of what is no workflow's input; seconds in which a body has to arrive.
SMALL, ARRIVES_IN = 16 * KIB, 30.0

Body = TypeVar("Body", bound=BaseModel)


def answer(content: Any, status: int = 200, *, location: str | None = None) -> Response:
    """JSON."""
    headers = {} if location is None else {"Location": location}
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


async def json_value(request: Request, limit: int) -> Any:
    """The JSON value in the body, None if there is none. Raises `Refusal`, `BadRecord`."""
    data = await _read(request, limit)
    return decode(data) if data else None


async def json_fields(request: Request, model: type[Body]) -> Body:
    """The JSON object in the body, or nothing, as `model`. Raises `Refusal`, `BadRecord`."""
    data = await _read(request, SMALL)
    return parse(model, decode_object(data) if data else {})


async def _read(request: Request, limit: int) -> bytes:
    # Also where there is no body: a form of another site's page could send none.
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind and kind != "application/json" and not kind.endswith("+json"):
        raise Refusal(415, "unsupported_media_type", f"send JSON as Content-Type: application/json, not {kind!r}")
    announced = request.headers.get("Content-Length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    try:
        async with asyncio.timeout(ARRIVES_IN):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
    except TimeoutError:
        raise Refusal(408, "request_timeout", f"the body did not arrive within {ARRIVES_IN:g} s") from None
    data = b"".join(parts)
    if data and not kind:
        raise Refusal(415, "unsupported_media_type", "send JSON as Content-Type: application/json")
    return data


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "too_large", f"the body has more than the {limit:,} bytes that are taken here")
