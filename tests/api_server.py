"""The HTTP API on a real port, within the test's process: its bounds are the test's, and it can be looked into."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from flowpilot.api.application import create_app
from flowpilot.api.backend import Backend
from flowpilot.app.client import Client
from flowpilot.local.ports import free_ports
from flowpilot.settings import Settings
from tests.waiting import eventually


@contextmanager
def serving(settings: Settings, *, longest_wait: float, patience: float = 10.0) -> Iterator[str]:
    """The API's address while it serves, on a loop of its own."""
    [port] = free_ports(1)
    servers: list[uvicorn.Server] = []

    async def serve() -> None:
        async with Client(settings, patience=patience) as client:
            backend = Backend(settings, client, longest_wait=longest_wait)
            config = uvicorn.Config(
                create_app(backend), port=port, lifespan="off", log_config=None, access_log=False
            )
            servers.append(uvicorn.Server(config))
            try:
                await servers[0].serve()
            finally:
                backend.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="api")
    thread.start()
    try:
        eventually(lambda: not thread.is_alive() or (bool(servers) and servers[0].started), 20, what="the API")
        assert thread.is_alive()
        yield f"http://127.0.0.1:{port}"
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
