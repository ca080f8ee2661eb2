"""Whether the process lives, and whether it can do its work. No token is asked for.

Anyone who reaches the port may ask, as often as they like: concurrent requests share one look at the servers, and
PostgreSQL, whose connections are few, is asked only for callers with a token where there are tokens.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from flowpilot.adapters.postgres.queries import Filter
from flowpilot.api.access import token_owner
from flowpilot.api.backend import Backend, Served
from flowpilot.api.bodies import answer
from flowpilot.api.problems import Refusal, documented
from flowpilot.api.shapes import Alive, Ready
from flowpilot.app import executions
from flowpilot.app.database import DatabaseRefused, DatabaseUnreachable
from flowpilot.ports.log import LogUnavailable

router = APIRouter(tags=["health"])

READY_WITHIN = 5.0  # seconds
_NAMES = {"kafka": "Kafka", "postgres": "PostgreSQL"}


@router.get("/healthz", summary="Whether the process lives", responses={200: {"model": Alive}})
async def alive() -> Response:
    """Asks nobody."""
    return answer({"status": "ok"})


@router.get(
    "/readyz",
    summary="Whether Kafka and PostgreSQL answer",
    responses={200: {"model": Ready}, **documented(503)},
)
async def ready(request: Request, backend: Served) -> Response:
    """503 names what does not answer. Where tokens are set, PostgreSQL is asked for callers with one only."""
    if backend.draining.is_set():
        raise Refusal(503, "stopping", "this process is about to end", Retry_After="1")
    tokens = backend.settings.api_tokens
    asked = {"kafka": _kafka}
    if not tokens or token_owner(request, tokens) is not None:
        asked["postgres"] = _postgres
    answers = await asyncio.gather(*(backend.once(name, ask) for name, ask in asked.items()))
    missing = [_NAMES[name] for name, answer in zip(asked, answers, strict=True) if not answer]
    if missing:
        detail = f"{' and '.join(missing)} did not answer, or `flowpilot setup` has not run"
        raise Refusal(503, "not_ready", detail, Retry_After="1")
    return answer({"status": "ok", **dict.fromkeys(asked, "ok")})


async def _kafka(backend: Backend) -> bool:
    connection = backend.client.connection
    try:
        async with asyncio.timeout(READY_WITHIN):
            await connection.reader.bounds(connection.topics.events, 0)
    except (LogUnavailable, TimeoutError):
        return False
    return True


async def _postgres(backend: Backend) -> bool:
    try:
        async with asyncio.timeout(READY_WITHIN):
            await backend.ask(lambda database: executions.list_executions(database, Filter(), limit=1))
    except (DatabaseUnreachable, DatabaseRefused, TimeoutError):
        return False
    return True
