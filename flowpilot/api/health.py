"""Whether the process lives, and whether it can do its work. No token is asked for."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

from flowpilot.adapters.postgres.queries import Filter
from flowpilot.api.backend import Backend, Served
from flowpilot.api.bodies import answer
from flowpilot.api.problems import Refusal, documented
from flowpilot.api.shapes import Alive, Ready
from flowpilot.app import executions
from flowpilot.app.database import DatabaseRefused, DatabaseUnreachable
from flowpilot.ports.log import LogUnavailable

router = APIRouter(tags=["health"])

READY_WITHIN = 5.0  # seconds


@router.get("/healthz", summary="Whether the process lives", responses={200: {"model": Alive}})
async def alive() -> Response:
    """Asks nobody."""
    return answer({"status": "ok"})


@router.get(
    "/readyz",
    summary="Whether Kafka and PostgreSQL answer",
    responses={200: {"model": Ready}, **documented(503)},
)
async def ready(backend: Served) -> Response:
    """503 names what does not answer."""
    if backend.draining.is_set():
        raise Refusal(503, "stopping", "this process is about to end", Retry_After="1")
    kafka, postgres = await asyncio.gather(_kafka(backend), _postgres(backend))
    missing = [name for name, answers in (("Kafka", kafka), ("PostgreSQL", postgres)) if not answers]
    if missing:
        detail = f"{' and '.join(missing)} did not answer, or `flowpilot setup` has not run"
        raise Refusal(503, "not_ready", detail, Retry_After="1")
    return answer({"status": "ok", "kafka": "ok", "postgres": "ok"})


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
