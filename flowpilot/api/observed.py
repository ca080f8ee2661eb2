"""What the API tells its meter: once a request, when it is answered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowpilot.client.errors import StartUnconfirmed
from flowpilot.ports import metrics
from flowpilot.ports.meter import Meter

# A caller may send any word as a method, and any address: neither becomes a label.
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_OTHER, _NONE = "other", "none"


class Observed:
    """Used on the loop that serves. Costs next to nothing while the meter is off."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._waits = 0
        self._meter.set(metrics.API_WAITS, 0)

    @property
    def is_on(self) -> bool:
        """Whether anybody wants the numbers."""
        return self._meter.is_on

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A request waits for an execution's end."""
        self._wait(1)
        try:
            yield
        finally:
            self._wait(-1)

    def _wait(self, more: int) -> None:
        self._waits += more
        self._meter.set(metrics.API_WAITS, self._waits)

    def unconfirmed(self, error: StartUnconfirmed) -> None:
        """A start was not acknowledged."""
        self._meter.add(metrics.API_UNCONFIRMED, 1, error.code)

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """`scope`: the request's, as routing has left it."""
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        route = getattr(scope.get("route"), "path", _NONE)
        self._meter.add(metrics.API_REQUESTS, 1, method, route, f"{status // 100}xx")
        if "wait" not in QueryParams(scope["query_string"]):
            self._meter.observe(metrics.API_REQUEST, seconds, method, route)


class Observing:
    """The middleware around everything."""

    def __init__(self, app: ASGIApp, observed: Observed) -> None:
        self._app, self._observed = app, observed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.perf_counter()
        status = 500  # what a defect is answered with, further out

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            self._observed.answered(scope, status, time.perf_counter() - began)
