"""The partitions that the audit writer reads: each from where the store says, and none given up while that is slow.

A record goes from `poll` to `taken` if it is the next of its partition; what became of it comes back by `advance`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Protocol, TypeVar

import structlog

from flowpilot.audit.batches import Definitions
from flowpilot.audit.position import check_position
from flowpilot.ports.audit import AuditStore, Outrun, Position
from flowpilot.ports.log import (
    Consumer,
    Fetched,
    LogUnavailable,
    Reader,
    Rebalanced,
    TopicCatalog,
    TopicPartition,
)
from flowpilot_schemas.topics import Topics

IDLE_POLL = 0.25  # seconds

Answer = TypeVar("Answer")

_log = structlog.get_logger("flowpilot.audit")


class ConsumerFactory(Protocol):
    """Makes the writer's group member."""

    def __call__(self, topics: Sequence[str], *, on_assigned: Rebalanced, on_revoked: Rebalanced) -> Consumer: ...


class Reading:
    """One member of the group, made on the event loop. `patience`: seconds that the store may take before the group
    is attended to meanwhile. What asks the store raises what that raises, and `LogUnavailable`."""

    def __init__(
        self,
        topics: Topics,
        *,
        store: AuditStore,
        consumer: ConsumerFactory,
        reader: Reader,
        catalog: TopicCatalog,
        definitions: Definitions,
        patience: float,
    ) -> None:
        self._topics = topics
        self._store, self._reader, self._catalog = store, reader, catalog
        self._definitions = definitions
        self._patience = patience
        self.waiting: set[TopicPartition] = set()
        """Assigned, paused, not read yet."""
        self.stored: dict[TopicPartition, Position] = {}
        """Being read: what the store has."""
        self._next: dict[TopicPartition, int] = {}  # being read: the next offset to take
        self._pending: list[Fetched] = []
        self.uncommitted: dict[TopicPartition, int] = {}
        """What the group has not been told yet."""
        self._names = [topics.history, topics.dead_letters, topics.definitions, topics.fates]
        self._consumer = consumer(self._names, on_assigned=self._assigned, on_revoked=self._revoked)

    # Which partitions

    async def _assigned(self, partitions: Sequence[TopicPartition]) -> None:
        # The store may not answer now, and a rebalance does not wait: they are opened between two polls.
        self._consumer.pause(partitions)
        self._forget(partitions)
        self.waiting.update(partitions)

    async def _revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._forget(partitions)

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        gone = set(partitions)
        self.waiting -= gone
        for partition in gone:
            self.stored.pop(partition, None)
            self._next.pop(partition, None)
            self.uncommitted.pop(partition, None)
        self._pending = [record for record in self._pending if record[:2] not in gone]

    async def open(self) -> None:
        """Read the waiting partitions from where the store says, or from their beginning. Raises `AuditStopped`."""
        wanted = sorted(self.waiting)
        stored = await self.attended(self._store.positions(wanted))
        ids = await self._catalog.topic_ids({partition.topic for partition in wanted})
        first = {}
        for partition in wanted:
            if partition.topic not in ids:
                raise LogUnavailable(f"the topic {partition.topic} has no id at present")
            low, end = await self._reader.bounds(*partition)
            if partition in stored:
                check_position(partition, stored[partition], ids[partition.topic], low, end)
            else:
                first[partition] = Position(ids[partition.topic], low)
        if first:
            await self.attended(self._store.begin(first))
            stored |= await self.attended(self._store.positions(first))
        for partition in wanted:
            if partition.topic == self._topics.definitions:
                before = await self._reader.read(*partition, 0, stored[partition].next_offset)
                self._definitions.learn(before)
        for partition in wanted:
            if partition in self.waiting:  # not revoked meanwhile
                self.waiting.discard(partition)
                self.stored[partition] = stored[partition]
                self._next[partition] = stored[partition].next_offset
                self._consumer.seek(partition, stored[partition].next_offset)
                self._consumer.resume([partition])

    def start_over(self) -> None:
        """Whether the last transaction was done is unknown: only the store knows where to go on."""
        self._consumer.pause(self.stored)
        self.waiting.update(self.stored)
        self.stored.clear()
        self._next.clear()
        self._pending.clear()

    # What is read

    async def poll(self, most: int, timeout: float) -> None:
        """Up to `most` records, from a poll of at most `timeout` seconds; kept is what is next of the partitions
        that are being read. Raises `AuditStopped`."""
        following = self._next
        for record in await self._consumer.poll(most, timeout):
            partition = TopicPartition(record.topic, record.partition)
            expected = following.get(partition)
            if expected is None:
                continue
            if record.offset != expected:
                if record.topic != self._topics.definitions:  # compaction leaves gaps there
                    await self._check_again(partition)
                if record.offset < expected:
                    continue
            following[partition] = record.offset + 1
            self._pending.append(record)

    async def _check_again(self, partition: TopicPartition) -> None:
        """An offset was left out: retention may have overtaken the reader, or the topic is another one."""
        ids = await self._catalog.topic_ids([partition.topic])
        low, end = await self._reader.bounds(*partition)
        position = self.stored.get(partition)
        if position is not None and partition.topic in ids:
            check_position(partition, position, ids[partition.topic], low, end)

    def taken(self) -> list[Fetched]:
        """What was kept since the last call, in the order of each partition."""
        taken, self._pending = self._pending, []
        return taken

    # What the store has

    async def attended(self, work: Awaitable[Answer]) -> Answer:
        """Await the store; if it takes long, poll meanwhile, so that the group does not give this member up."""
        task = asyncio.ensure_future(work)
        await asyncio.wait({task}, timeout=self._patience)
        if not task.done():
            self._consumer.pause(self.stored)
            while not task.done():
                await self.poll(1, IDLE_POLL)
            self._consumer.resume(self.stored)
        return task.result()

    def advance(self, partition: TopicPartition, position: Position) -> None:
        """The store has what lies before `position`."""
        if partition in self.stored:
            self.stored[partition] = position
            self.uncommitted[partition] = position.next_offset

    async def check_store(self) -> None:
        """Nothing comes: does the store still have what it took? A standby that took over may lack the last
        transactions, and the next write that would tell may be hours away. Raises `Outrun`."""
        stored = await self.attended(self._store.positions(list(self.stored)))
        if any(stored.get(partition) != position for partition, position in self.stored.items()):
            raise Outrun

    async def missing_topics(self) -> list[str]:
        """Which of the topics are not there. Raises `LogUnavailable`, where a consumer would wait in silence."""
        return sorted(set(self._names) - (await self._catalog.topic_ids(self._names)).keys())

    async def commit(self) -> None:
        """Tell the group, for whoever looks at its lag."""
        positions, self.uncommitted = self.uncommitted, {}
        try:
            await self._consumer.commit(positions)
        except LogUnavailable as error:
            _log.info("positions not committed to the group", error=str(error))

    async def close(self) -> None:
        """Tell the group what is stored, and leave it."""
        await self.commit()
        await self._consumer.close()
