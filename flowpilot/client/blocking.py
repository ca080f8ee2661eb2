"""The client without async: the same one, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

from flowpilot.client.client import ConnectedClient, IfExists
from flowpilot.client.handle import Handle
from flowpilot.client.workflows import Defined

T = TypeVar("T")


class BlockingHandle:
    """An execution: its `id`, and its result when there is one. See `Handle`."""

    def __init__(self, handle: Handle, client: BlockingClient) -> None:
        self._handle, self._client = handle, client

    @property
    def id(self) -> str:
        """The execution's id."""
        return self._handle.id

    def __repr__(self) -> str:
        return f"BlockingHandle({self.id!r})"

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the execution's output, at most `timeout` seconds. See `Handle.result`."""
        return self._client.call(lambda: self._handle.result(timeout))

    def cancel(self, reason: str = "") -> None:
        """Ask for the execution to be cancelled. See `Handle.cancel`."""
        self._client.call(lambda: self._handle.cancel(reason))


class BlockingClient:
    """A client without async. Several threads may use it. Close it, or use `with`.

    It is the client that `make`, called on the loop, makes.
    """

    def __init__(self, make: Callable[[], ConnectedClient]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="flowpilot-client", daemon=True)
        self._thread.start()
        self._closed = False
        try:
            self._client = self.call(lambda: _entered(make))
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of connections. Executions go on. Closing twice is no error."""
        if self._closed:
            return
        try:
            self.call(lambda: self._client.__aexit__(None, None, None))
        finally:
            self._stop()

    def _stop(self) -> None:
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `ask()` on the client's loop and wait for it."""
        if self._closed:
            raise RuntimeError("this client is closed")
        running = asyncio.run_coroutine_threadsafe(ask(), self._loop)
        try:
            return running.result()
        except BaseException:  # Ctrl-C while waiting: what was asked is not left behind
            running.cancel()
            raise

    def start(
        self,
        workflow: Defined | str,
        input: Any = None,
        *,
        key: str | None = None,
        version: str | None = None,
        if_exists: IfExists = "return",
        actor: str | None = None,
        traceparent: str | None = None,
    ) -> BlockingHandle:
        """Start an execution and return its handle. See `Client.start`."""
        handle = self.call(
            lambda: self._client.start(
                *(workflow, input),
                key=key,
                version=version,
                if_exists=if_exists,
                actor=actor,
                traceparent=traceparent,
            )
        )
        return BlockingHandle(handle, self)

    def handle(self, execution: str) -> BlockingHandle:
        """A handle to an execution started elsewhere. See `Client.handle`."""
        return BlockingHandle(self.call(lambda: self._client.handle(execution)), self)

    def cancel(self, execution: str, reason: str = "", *, actor: str | None = None) -> None:
        """Ask for an execution to be cancelled. See `Client.cancel`."""
        self.call(lambda: self._client.cancel(execution, reason, actor=actor))

    def retry(
        self,
        execution: str,
        reason: str = "",
        *,
        from_start: bool = False,
        version: str | None = None,
        actor: str | None = None,
        timeout: float = 30.0,
    ) -> BlockingHandle:
        """Retry an execution that failed or was cancelled; the handle is to the retry. See `Client.retry`."""
        handle = self.call(
            lambda: self._client.retry(
                execution, reason, from_start=from_start, version=version, actor=actor, timeout=timeout
            )
        )
        return BlockingHandle(handle, self)

    def register(self, workflow: Defined, *, move_pointer: bool = False) -> bool:
        """Register a workflow's definition; False if it was there. See `Client.register`."""
        return self.call(lambda: self._client.register(workflow, move_pointer=move_pointer))


async def _entered(make: Callable[[], ConnectedClient]) -> ConnectedClient:
    return await make().__aenter__()
