"""The HTTP API over a client on the memory broker, asked as any HTTP client asks it."""

from __future__ import annotations

from typing import Any

import httpx
from pydantic import SecretStr

from flowpilot.adapters.opentelemetry import OpenTelemetryTracer
from flowpilot.api.application import create_app
from flowpilot.api.backend import Backend
from flowpilot.ports.meter import OFF, Meter
from flowpilot.settings import Settings
from tests.unit.client_world import World, onboarding

STARTS = "/workflows/onboarding/executions"
PATIENT = {"patient_id": "p"}


class Api:
    """The application over a world's client, where `onboarding` is registered and PostgreSQL does not answer."""

    def __init__(
        self, world: World, *, longest_wait: float = 5.0, limit: int = 1_000, meter: Meter = OFF, **settings: Any
    ) -> None:
        nobody = SecretStr("postgresql://nobody@127.0.0.1:1/nothing")
        self.settings = Settings(_env_file=None, database_url=nobody, trigger_limit=limit, **settings)
        self.world = world
        self.client = world.client(world.audit, patience=0.2, tracer=OpenTelemetryTracer(), input=limit)
        self.backend = Backend(self.settings, self.client, longest_wait=longest_wait, meter=meter)

    async def __aenter__(self) -> httpx.AsyncClient:
        await self.client.register(onboarding())
        transport = httpx.ASGITransport(create_app(self.backend), raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080")
        return self.http

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()
        await self.client.close()
        self.backend.close()


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem details of an answer that has to have them."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert (found["status"], found["code"], found["type"]) == (status, code, "about:blank")
    assert found["title"]
    assert found["detail"]
    return found
