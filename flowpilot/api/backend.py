"""What the endpoints stand on: one client and one pool of database connections for the whole process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from flowpilot.api.observed import Observed
from flowpilot.app.database import Database, DatabaseUnreachable
from flowpilot.client.client import ConnectedClient
from flowpilot.client.handle import Handle
from flowpilot.ports.definitions import Definitions
from flowpilot.ports.log import LogUnavailable
from flowpilot.ports.meter import OFF, Meter
from flowpilot.settings import Settings
from flowpilot_schemas.messages import ExecutionEnded

# Seconds: of a wait for an execution's end, of a question to PostgreSQL, of one to Kafka.
LONGEST_WAIT, ANSWER, PATIENCE = 60.0, 15.0, 10.0
CONNECTIONS = 8

Found = TypeVar("Found")


class Backend:
    """Used on the loop that serves. `longest_wait`: seconds that a request may wait for an execution's end."""

    def __init__(
        self,
        settings: Settings,
        client: ConnectedClient,
        *,
        longest_wait: float = LONGEST_WAIT,
        meter: Meter = OFF,
    ) -> None:
        self.settings = settings
        self.client = client
        self.longest_wait = longest_wait
        self.observed = Observed(meter)
        self.draining = asyncio.Event()
        self._database = Database(settings, application="flowpilot-api", connections=CONNECTIONS)
        self._probes: dict[str, asyncio.Task[bool]] = {}
        self._threads = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="flowpilot-api")

    async def ask(self, question: Callable[[Database], Found]) -> Found:
        """What PostgreSQL answers; `question` runs in a thread. Raises `DatabaseUnreachable`, `DatabaseRefused`."""
        try:
            async with asyncio.timeout(ANSWER):
                return await asyncio.get_running_loop().run_in_executor(self._threads, question, self._database)
        except TimeoutError:
            raise DatabaseUnreachable(f"PostgreSQL did not answer within {ANSWER:g} s") from None

    async def once(self, name: str, probe: Callable[[Backend], Coroutine[Any, Any, bool]]) -> bool:
        """What `probe` finds; requests that come while it looks share the answer."""
        running = self._probes.get(name)
        if running is None:
            running = self._probes[name] = asyncio.create_task(probe(self))
            running.add_done_callback(lambda _: self._probes.pop(name, None))
        return await asyncio.shield(running)

    async def definitions(self) -> Definitions:
        """What is registered now. Raises `LogUnavailable`."""
        definitions = self.client.connection.definitions
        try:
            async with asyncio.timeout(PATIENCE):
                await definitions.refresh()
        except TimeoutError:
            raise LogUnavailable(f"no answer within {PATIENCE:g} s") from None
        return definitions

    async def ended(self, handle: Handle, seconds: float) -> ExecutionEnded | None:
        """How the execution ended; None if it did not within `seconds`, or before the process has to stop."""
        waiting = asyncio.create_task(handle.ended())
        stopping = asyncio.create_task(self.draining.wait())
        try:
            with self.observed.waiting():
                await asyncio.wait(
                    {waiting, stopping},
                    timeout=min(seconds, self.longest_wait),
                    return_when=asyncio.FIRST_COMPLETED,
                )
            return waiting.result() if waiting.done() else None
        finally:
            waiting.cancel()
            stopping.cancel()

    def close(self) -> None:
        """Let go of PostgreSQL. The client is its owner's."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._database.close()


def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


Served = Annotated[Backend, Depends(_backend)]
