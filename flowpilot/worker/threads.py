"""Threads for plain handlers. A thread whose handler hangs is simply not counted on any more."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class HandlerThreads:
    """Runs jobs in daemon threads, so that a handler that hangs does not keep the process.

    There are as many threads as jobs have been under way at once. `done(job, result)` is called on the event
    loop; the loop is woken once for whatever ended meanwhile.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, done: Callable[[Any, Any], None]) -> None:
        self._loop = loop
        self._done = done
        self._jobs: SimpleQueue[tuple[Any, Callable[[], Any]] | None] = SimpleQueue()
        self._ended: deque[tuple[Any, Any]] = deque()
        self._waking = False
        self._under_way = 0
        self._threads = 0

    def run(self, job: Any, function: Callable[[], Any]) -> None:
        """Call `function`, which does not raise, in a thread."""
        self._under_way += 1
        if self._under_way > self._threads:
            self._threads += 1
            name = f"flowpilot-handler-{self._threads}"
            threading.Thread(target=self._serve, name=name, daemon=True).start()
        self._jobs.put((job, function))

    def close(self) -> None:
        """Let the idle threads end."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _serve(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, function = item
            self._ended.append((job, function()))
            del job, function, item  # nothing of a finished job stays alive while waiting
            if not self._waking:
                self._waking = True
                try:
                    self._loop.call_soon_threadsafe(self._collect)
                except RuntimeError:  # the loop is closed: nobody asks any more
                    return

    def _collect(self) -> None:
        self._waking = False  # before the look: whatever ends from now on wakes the loop again
        while self._ended:
            job, result = self._ended.popleft()
            self._under_way -= 1
            self._done(job, result)
