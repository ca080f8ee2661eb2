"""One thread, one clock that only the loop moves, and processes that may stand still or die at any await.

Every handle carries, in its context, the process it belongs to. A process that was killed never runs another
one: no `finally` of its coroutines has an effect. One that is paused keeps its handles until it is resumed.
Within a process handles run in the order in which they were made, as asyncio has it; between processes that are
ready at the same moment chance decides (`shuffled`), or their order.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

BEGIN = 1_700_000_000.0
"""What the clocks show at the loop's time 0: seconds since the epoch."""


class Process:
    """A simulated process. `skew`: how far its wall clock is ahead, in seconds."""

    def __init__(self, name: str, role: str = "world", skew: float = 0.0) -> None:
        self.name = name
        self.role = role
        self.skew = self.furthest = skew
        """And the furthest that it ever was ahead."""
        self.dead = self.paused = False
        self.silent_since: float | None = None
        """Since when it gives no sign of life: killed, or paused."""
        self.ready: deque[asyncio.Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []
        """Kept, so that no coroutine of a dead process is ever closed by the garbage collector."""
        self.on_silence: list[Callable[[bool], None]] = []
        """Called when it is killed (True) or paused (False): what it had under way lands, waits, or is lost."""
        self.on_resumed: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return self.name


class Ended(BaseException):
    """Raised where a process ended itself: nothing catches it."""


WORLD = Process("world")
PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process", default=WORLD)
OUTSIDE = contextvars.Context()


class Loop(asyncio.BaseEventLoop):
    """See the module. `failures` has what callbacks raised."""

    def __init__(self, chance: random.Random, *, shuffled: bool) -> None:
        super().__init__()
        self._now = 0.0
        self._chance, self._shuffled = chance, shuffled
        self._turns: deque[Process] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._made = 0
        self.turns_taken = 0
        self.failures: list[str] = []

    # ---- asyncio's side

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._add(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._made += 1
        heapq.heappush(self._timers, (when, self._made, handle))
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name="task", context=context)
        PROCESS.get().tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and not isinstance(error, Ended) and "never retrieved" not in context["message"]:
            self.failures.append(f"{context['message']}: {type(error).__name__}: {error}")

    def _process_events(self, event_list: Any) -> None: ...

    def _write_to_self(self) -> None: ...

    # ---- the simulation's side

    def later(self, delay: float, callback: Any, *args: Any) -> asyncio.TimerHandle:
        """Call it on behalf of the world, whatever becomes of the process that asks."""
        return self.call_at(self._now + delay, callback, *args, context=OUTSIDE)

    def spawn(self, process: Process, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run the coroutine as that process."""
        context = contextvars.Context()
        context.run(PROCESS.set, process)
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=self, name="task", context=context)
        process.tasks.append(task)
        return task

    def kill(self, process: Process) -> None:
        """It runs nothing any more, from now on."""
        if not process.dead:
            process.dead = True
            process.silent_since = self._now if process.silent_since is None else process.silent_since
            process.ready.clear()
            for note in process.on_silence:
                note(True)

    def pause(self, process: Process) -> None:
        """It stands still."""
        if not (process.dead or process.paused):
            process.paused, process.silent_since = True, self._now
            for note in process.on_silence:
                note(False)

    def resume(self, process: Process) -> None:
        """It goes on and does not know that it stood still."""
        if process.paused and not process.dead:
            process.paused, process.silent_since = False, None
            self._turns.extend([process] * len(process.ready))
            for note in process.on_resumed:
                note()

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        """Run the world until `main` is done."""
        asyncio._set_running_loop(self)
        try:
            task = self.spawn(WORLD, main)
            while not task.done():
                self._turn()
            return task.result()
        finally:
            asyncio._set_running_loop(None)

    def _add(self, handle: asyncio.Handle) -> None:
        process = handle._context.get(PROCESS, WORLD)  # type: ignore[attr-defined]
        if not process.dead:
            process.ready.append(handle)
            if not process.paused:
                self._turns.append(process)

    def _turn(self) -> None:
        turns = self._turns
        if not turns:
            self._advance()
            return
        if self._shuffled and len(turns) > 1:
            place = int(self._chance.random() * len(turns))
            turns[place], turns[0] = turns[0], turns[place]
        process = turns.popleft()
        if process.paused or not process.ready:
            return
        handle = process.ready.popleft()
        if not handle._cancelled:  # type: ignore[attr-defined]
            self.turns_taken += 1
            handle._run()

    def _advance(self) -> None:
        timers = self._timers
        while timers and timers[0][2]._cancelled:  # type: ignore[attr-defined]
            heapq.heappop(timers)
        if not timers:
            raise RuntimeError("the simulation stands still: nothing is ready and nothing will be")
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            _, _, handle = heapq.heappop(timers)
            if not handle._cancelled:  # type: ignore[attr-defined]
                self._add(handle)

    def dispose(self, processes: list[Process]) -> None:
        """Close what is left of the coroutines, without a word and without effect."""
        for process in processes:
            process.dead = True
            process.ready.clear()
        self._turns.clear()
        self._timers.clear()
        for process in processes:
            for task in process.tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                task._log_traceback = False  # type: ignore[attr-defined]
                if not task.done():
                    _close(task.get_coro())
            process.tasks.clear()
        WORLD.dead = False
        self.close()


def _close(coroutine: Any) -> None:
    for _ in range(20):
        try:
            coroutine.close()
            return
        except BaseException:  # noqa: BLE001 - a `finally` that awaits again, or finds no loop
            continue
