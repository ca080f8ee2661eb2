"""What one connection may cost: a deadline for each request's head, and a bound on how many there are.

uvicorn closes a connection that is idle after a response, but keeps one that never sends a whole head; and its
`limit_concurrency` refuses requests while others only wait for an execution's end.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from flowpilot.api.problems import Refusal, response

# Seconds from the connection, or from the first byte of a further request, to the end of the request's head.
HEAD_ARRIVES_IN = 10.0
# Longer than the intervals at which clients poll, so that they keep their connection.
KEEP_ALIVE = 75

_DETAIL = "all connections that FLOWPILOT_API_CONNECTIONS allows are in use: repeat the request later"
_PROBLEM = bytes(response(Refusal(503, "too_many_connections", _DETAIL)).body)
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\n"
    b"Cache-Control: no-store\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(_PROBLEM) + _PROBLEM
)


def connection_class(most: int) -> type[H11Protocol]:
    """The protocol of a server with at most `most` connections. Beyond it the connection that has been idle for
    longest is closed for a new one; where none is idle, the new one is answered 503 and closed."""
    return type("Connection", (_Connection,), {"most": most})


class _Connection(H11Protocol):
    most: int

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_timer: asyncio.TimerHandle | None = None
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most and not self._make_room():
            transport.write(_TOO_MANY)
            transport.close()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._is_idle():
            self._expect_head()
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel_timer()  # the head is there; the body has a deadline of its own

    def on_response_complete(self) -> None:
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def _is_idle(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete and self._head_timer is None

    def _make_room(self) -> bool:
        others = [cast(_Connection, each) for each in self.connections if each is not self]
        idle = [each for each in others if each._is_idle() and not each.transport.is_closing()]
        if idle:
            oldest = min(idle, key=lambda each: each.idle_since)
            oldest.timeout_keep_alive_handler()
        return bool(idle)

    def _expect_head(self) -> None:
        self._cancel_timer()
        self._head_timer = self.loop.call_later(HEAD_ARRIVES_IN, self.transport.close)

    def _cancel_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
