"""The API's process."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from flowpilot.api.access import OpenToAll, is_this_machine
from flowpilot.api.application import create_app
from flowpilot.api.backend import PATIENCE, Backend
from flowpilot.api.connections import KEEP_ALIVE, connection_class
from flowpilot.app.client import Client
from flowpilot.app.metrics import serving_metrics
from flowpilot.app.signals import run_until_signalled
from flowpilot.core.errors import FlowPilotError
from flowpilot.settings import Settings

# Seconds after the signal: for requests under way, and until the process ends whatever still hangs.
GRACE, END = 10, 25.0


class CannotListen(FlowPilotError):
    """The address is taken, or none of this machine's."""

    def __init__(self, host: str, port: int, reason: str) -> None:
        super().__init__(
            f"the API cannot listen on {host}:{port} ({reason}): set FLOWPILOT_API_HOST and FLOWPILOT_API_PORT"
        )


async def run_api(settings: Settings, on_ready: Callable[[str], None] = lambda address: None) -> int:
    """Serve until a signal; the exit code. `on_ready` is given the address. Neither Kafka nor PostgreSQL has to
    be there: requests say so. Raises `OpenToAll`, `CannotListen`, `MetricsUnavailable`."""
    if not settings.api_tokens and not is_this_machine(settings.api_host):
        raise OpenToAll(settings.api_host)
    listener = _listening(settings.api_host, settings.api_port)
    with serving_metrics(settings, "api") as meter:
        async with Client(settings, patience=PATIENCE) as client:
            backend = Backend(settings, client, meter=meter)
            try:
                return await run_until_signalled(_Serving(backend, listener, on_ready))
            finally:
                backend.close()


class _Serving:
    """See `flowpilot.app.signals.Role`."""

    def __init__(self, backend: Backend, listener: socket.socket, on_ready: Callable[[str], None]) -> None:
        self._backend, self._listener = backend, listener
        config = uvicorn.Config(
            create_app(backend),
            loop="none",
            http=connection_class(backend.settings.api_connections),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE,
            timeout_keep_alive=KEEP_ALIVE,
        )
        self._server = _Server(config, lambda: on_ready(_address(listener)))

    async def run(self) -> None:
        """See the protocol."""
        await self._server.serve(sockets=[self._listener])

    def stop(self) -> None:
        """See the protocol. Who waits for an execution's end is answered at once."""
        self._backend.draining.set()
        self._server.should_exit = True
        # A thread that PostgreSQL or Kafka does not answer must not keep the process.
        end = threading.Timer(END, os._exit, (0,))
        end.daemon = True
        end.start()


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs it: after a graceful end uvicorn would end the process by the signal."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing."""
        yield


def _listening(host: str, port: int) -> socket.socket:
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Named TCP, or asyncio would not switch Nagle's delay off: 40 ms an answer.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2_048)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise CannotListen(host, port, error.strerror or str(error)) from None
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
