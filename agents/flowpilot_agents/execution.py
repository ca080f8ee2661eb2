"""The execution agent's work: batches to the engine one at a time, and what it finished to the commit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from flowpilot.ports.log import Fetched
from flowpilot.ports.meter import OFF, Meter
from flowpilot.ports.metrics import ENGINE_RECOVERY
from flowpilot_agents.contract import Engine
from flowpilot_agents.watch import Pulse, end_process, log


class Delivered(NamedTuple):
    """What one fetch brought, and the assignment (counted) under which it was fetched."""

    assignment: int
    records: Sequence[Fetched]


class Inbox(Protocol):
    """The queue of the agent's channel. Faust empties it in a rebalance."""

    async def get(self) -> Delivered: ...
    def get_nowait(self) -> Delivered: ...
    def empty(self) -> bool: ...
    def put_nowait(self, item: Delivered) -> None: ...


class Executions:
    """Calls the engine, never twice at once, and keeps the positions that may be committed.

    Anything that goes wrong in a call ends the process: Faust would acknowledge and carry on.
    """

    def __init__(self, engine: Engine, pulse: Pulse, batch_size: int, meter: Meter = OFF) -> None:
        self.engine = engine
        self.pulse = pulse
        self.assignment = 0
        """Counts the assignments, up when one begins to be given back. What was fetched before is dropped."""
        self.term = 0
        """Counts them too, up when one is given back: what is finished after that is not acknowledged."""
        self.serving = False
        """Whether the partitions of this assignment are claimed and not yet being given back."""
        self.acknowledged: dict[int, int] = {}
        """By partition, the next offset: everything before it is finished."""
        self.inbox: Inbox | None = None
        self.on_room: Callable[[], None] = lambda: None
        self.on_stopped: Callable[[Sequence[int]], None] = lambda partitions: None
        self._batch_size = batch_size
        self._waiting: list[Fetched] = []
        self._turn = asyncio.Lock()
        self._stopped: set[int] = set()
        self._meter = meter
        self._idle_since = time.monotonic()

    async def run(self, inbox: Inbox) -> None:
        """The agent's body: batch by batch until Faust stops it."""
        self.inbox = inbox
        while True:
            if not self._waiting:
                try:
                    self._take(await inbox.get())
                except StopAsyncIteration:
                    return  # Faust's way to say that the agent is stopped
            while not inbox.empty() and len(self._waiting) < self._batch_size:
                self._take(inbox.get_nowait())
            self.on_room()
            async with self._turn:
                await self._process()

    def _take(self, delivered: Delivered) -> None:
        if delivered.assignment == self.assignment:
            self._waiting.extend(delivered.records)

    async def _process(self) -> None:
        if not self.serving:
            self._waiting.clear()  # they are read again, by whoever owns the partition then
            return
        batch, self._waiting = self._waiting[: self._batch_size], self._waiting[self._batch_size :]
        if not batch:
            return
        term = self.term
        self.pulse.check()
        try:
            finished = await self.engine.process(batch)
            positions = self._positions(batch, finished)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing is known of the batch
            end_process(f"a batch of {len(batch)} events failed", error)
        if term == self.term:
            self.acknowledged.update(positions)
            self._report_stopped()

    def _positions(self, batch: Sequence[Fetched], finished: Sequence[Fetched]) -> dict[int, int]:
        """The next offsets after `finished`. Raises ValueError if an unfinished record lies before a finished."""
        if len(finished) != len(batch):
            done = {(record.partition, record.offset) for record in finished}
            unfinished: set[int] = set()
            for record in batch:
                if (record.partition, record.offset) not in done:
                    unfinished.add(record.partition)
                elif record.partition in unfinished:
                    raise ValueError(f"partition {record.partition} is finished beyond an unfinished record")
            if self.serving and (alive := unfinished - self.engine.stopped.keys()):
                raise ValueError(f"partitions {sorted(alive)} are neither finished nor stopped")
        return {record.partition: record.offset + 1 for record in finished}

    async def tick(self) -> None:
        """The timer's body: between two batches, never during one."""
        async with self._turn:
            if not self.serving:
                return
            try:
                await self.engine.tick()
            except Exception as error:  # noqa: BLE001 - any doubt ends the process
                end_process("a timer failed", error)
            self._report_stopped()

    def suspend(self) -> None:
        """Begin no further batch or tick: the partitions are being given back."""
        if self.serving:
            self._idle_since = time.monotonic()
        self.serving = False
        self.assignment += 1
        self._waiting.clear()
        self.engine.cut_short()

    async def idle(self, timeout: float) -> bool:
        """Wait for the batch under way; False if it takes longer than `timeout` seconds."""
        try:
            await asyncio.wait_for(self._turn.acquire(), timeout)
        except TimeoutError:
            return False
        self._turn.release()
        return True

    def give_back(self) -> None:
        """The partitions may have another owner from now on."""
        self.term += 1
        self.acknowledged.clear()

    async def revoke(self, partitions: Sequence[int]) -> None:
        """Partitions that did not come back in the new assignment."""
        async with self._turn:
            for partition in partitions:
                self.engine.revoke(partition)
                self._stopped.discard(partition)

    async def claim(self, committed: Mapping[int, int | None]) -> dict[int, int]:
        """After recovery: the offsets at which to read on. Leaves out partitions that stopped."""
        assignment = self.assignment
        starts: dict[int, int] = {}
        async with self._turn:
            for partition in sorted(committed):
                if assignment != self.assignment:
                    return {}
                try:
                    starts[partition] = await self.engine.assign(partition, committed[partition])
                except Exception as error:  # noqa: BLE001 - any doubt ends the process
                    end_process(f"partition {partition} could not be taken over", error)
            self._stopped &= self.engine.stopped.keys()
            self._report_stopped()
            return {partition: start for partition, start in starts.items() if partition not in self._stopped}

    def serve(self) -> None:
        """All is claimed and read from the right place: batches and ticks may begin."""
        if not self.serving:
            self._meter.set(ENGINE_RECOVERY, time.monotonic() - self._idle_since)
        self.serving = True

    def _report_stopped(self) -> None:
        stopped = self.engine.stopped
        if stopped.keys() - self._stopped:
            fresh = sorted(stopped.keys() - self._stopped)
            for partition in fresh:
                log.error(f"Partition {partition} is stopped: {stopped[partition]}")
            self._stopped.update(fresh)
            self.on_stopped(fresh)
