"""One queue's consumer: polls as there is room, commits what is finished, hands over what is revoked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from flowpilot.ports.log import Consumer, Fetched, LogUnavailable, Reader, Rebalanced, TopicPartition
from flowpilot.worker.partition import AssignedPartition

_log = structlog.get_logger("flowpilot.worker")

# All in seconds. A commit waits for the poll before it: so long at most.
_POLL = 0.05
_COMMIT_INTERVAL = 0.2
_SHORTEST_COMMIT_INTERVAL = 0.005
_PATIENCE = 0.5  # without room for so long, partitions are paused, and polling goes on for the group's sake
_HAND_OVER = 10.0


class ConsumerFactory(Protocol):
    """Makes a member of `group` that reads `topics`; called on the event loop."""

    def __call__(
        self, group: str, topics: Sequence[str], *, on_assigned: Rebalanced, on_revoked: Rebalanced
    ) -> Consumer: ...


class Events(Protocol):
    """What the worker does about an intake's news; all called on the event loop."""

    def arrived(self, partition: AssignedPartition) -> None:
        """The partition has records that wait."""
        ...

    def committed(self, partition: AssignedPartition, position: int) -> None:
        """What lies before `position` will not be delivered again."""
        ...

    def revoked(self, partition: AssignedPartition) -> None:
        """Another member gets the partition: nothing of it is begun any more; say of what runs that it does."""
        ...

    def gone(self, partition: AssignedPartition) -> None:
        """Another member may have the partition now, and reads again what is not committed."""
        ...


class Intake:
    """See the module. `window`: records of a partition that may be taken beyond its committed position.

    `on_change` is called when the assigned partitions have changed.
    """

    def __init__(
        self,
        group: str,
        topic: str,
        consumer: ConsumerFactory,
        reader: Reader,
        events: Events,
        *,
        window: int,
        room: int,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._topic = topic
        self._reader = reader
        self._events = events
        self._window = window
        self._room = room
        self._on_change = on_change
        self._partitions: dict[TopicPartition, AssignedPartition] = {}
        self._waiting = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._commit_now = asyncio.Event()
        self._commit_at = 0.0
        self._committing = asyncio.Lock()
        self._progress = asyncio.Event()
        self._draining = False
        self._pausing = False
        self._closing = False
        self._consumer = consumer(group, [topic], on_assigned=self._on_assigned, on_revoked=self._on_revoked)

    @property
    def partitions(self) -> list[int]:
        """The numbers of the assigned partitions, ascending."""
        return sorted(tp.partition for tp in self._partitions)

    def taken(self, count: int = 1) -> None:
        """So many records wait no longer."""
        self._waiting -= count
        if self._waiting <= self._room // 2:
            self._has_room.set()

    def commit_soon(self) -> None:
        """Somebody waits for the next commit."""
        self._commit_now.set()

    def progressed(self) -> None:
        """A record is finished."""
        self._progress.set()

    def drain(self) -> None:
        """Fetch nothing more; go on polling."""
        self._draining = True
        self._has_room.set()

    async def run(self) -> None:
        """Poll and commit until cancelled; one after the other, because a client does not do both at once."""
        while True:
            try:
                if self._draining or not self._has_room.is_set():
                    await self._poll_paused()
                else:
                    self._add(await self._consumer.poll(max(1, self._room - self._waiting), _POLL))
                    await self._commit_if_due()
            except LogUnavailable as error:
                _log.warning("the queue cannot be read or committed", topic=self._topic, error=str(error))
                await asyncio.sleep(1.0)

    async def _commit_if_due(self) -> None:
        now = time.monotonic()
        interval = _SHORTEST_COMMIT_INTERVAL if self._commit_now.is_set() else _COMMIT_INTERVAL
        if now - self._commit_at >= interval:
            self._commit_at = now
            self._commit_now.clear()
            await self.commit()

    def _add(self, records: list[Fetched]) -> None:
        touched: dict[TopicPartition, AssignedPartition] = {}
        for record in records:
            tp = TopicPartition(record.topic, record.partition)
            partition = self._partitions.get(tp)
            if partition is not None:
                partition.waiting.append(record)
                self._waiting += 1
                touched[tp] = partition
        if self._waiting >= self._room:
            self._has_room.clear()
        for partition in touched.values():
            self._events.arrived(partition)

    async def _poll_paused(self) -> None:
        """Without room: commit, which may make some; then pause, and go on polling for the group's sake."""
        patience = time.monotonic() + _PATIENCE
        while not self._draining and not self._has_room.is_set() and time.monotonic() < patience:
            await self._commit_if_due()
            await _set_within(self._has_room, _SHORTEST_COMMIT_INTERVAL)
        if not self._draining and self._has_room.is_set():
            return
        self._pausing = True  # also what is assigned meanwhile
        self._consumer.pause(list(self._partitions))
        try:
            while self._draining or not self._has_room.is_set():
                self._add(await self._consumer.poll(1, _POLL))
                await self._commit_if_due()
        finally:
            self._pausing = False
            self._consumer.resume(list(self._partitions))

    async def commit(self) -> None:
        """Commit what is finished. Raises `LogUnavailable`."""
        async with self._committing:
            due = [(p, marked) for p in self._partitions.values() if (marked := p.to_commit) is not None]
            if not due:
                return
            await self._consumer.commit({partition.tp: offset for partition, (offset, _) in due})
            await self._verify([partition.tp for partition, _ in due if partition.suspects], due)

    async def _verify(
        self, suspects: list[TopicPartition], due: list[tuple[AssignedPartition, tuple[int, int]]]
    ) -> None:
        """A commit during a rebalance may go nowhere without an error; a suspect must not run before it is in."""
        known = await self._consumer.committed(suspects) if suspects else {}
        for partition, (offset, mark) in due:
            if partition.tp in known and (known[partition.tp] or 0) < offset:
                self._commit_now.set()
                continue
            partition.committed(mark)
            self._events.committed(partition, offset)

    async def _on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        ends = await asyncio.gather(*(self._end(tp) for tp in partitions))
        for tp, end in zip(partitions, ends, strict=True):
            self._partitions[tp] = AssignedPartition(tp, self._window, end)
        if self._pausing:
            self._consumer.pause(partitions)
        self._on_change()

    async def _end(self, tp: TopicPartition) -> int | None:
        try:
            _, end = await self._reader.bounds(tp.topic, tp.partition)
        except LogUnavailable:
            return None
        return end

    async def _on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        gone = [self._partitions[tp] for tp in partitions if tp in self._partitions]
        for partition in gone:
            partition.alive = False
            self.taken(len(partition.waiting))
            partition.waiting.clear()
            self._events.revoked(partition)
        try:
            await asyncio.wait_for(self._handed_over(gone), _HAND_OVER)
        except (TimeoutError, LogUnavailable) as error:
            # The next owner runs again what is not committed: at least once, never lost.
            _log.warning("partitions given away before all was committed", topic=self._topic, error=str(error))
        for partition in gone:
            del self._partitions[partition.tp]
            self._events.gone(partition)
        self._on_change()

    async def _handed_over(self, gone: list[AssignedPartition]) -> None:
        # Once closing, nothing more is on its way: what is not finished is handed back.
        while not self._closing and any(partition.oldest() is not None for partition in gone):
            self._progress.clear()
            await self._progress.wait()
        await self.commit()

    async def close(self) -> None:
        """Leave the group."""
        self._closing = True
        await self._consumer.close()


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, `seconds` at most."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
