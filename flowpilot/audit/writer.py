"""The audit writer: what roles leave on the log (history, dead letters, …) into the store, each exactly once.

The positions live in the store and move in the transaction that stores what was read, so a crash anywhere, a
second writer or a store that went away lead to the same rows. The group's own commits are for lag displays only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import structlog

from flowpilot.audit.batches import BATCH, Definitions, batch_of, chunks, set_aside
from flowpilot.audit.observed import Observed
from flowpilot.audit.position import check_position
from flowpilot.audit.projection import project
from flowpilot.ports.audit import AuditStore, BatchRefused, Outrun, Position, StoreUnavailable
from flowpilot.ports.log import (
    Consumer,
    Fetched,
    LogUnavailable,
    Reader,
    Rebalanced,
    TopicCatalog,
    TopicPartition,
)
from flowpilot.ports.meter import OFF, Meter
from flowpilot_schemas.topics import Topics

LINGER = 0.2
IDLE_POLL = 0.25
COMMIT_INTERVAL = 1.0
CHECK_INTERVAL = 10.0
LONGEST_BACKOFF = 5.0
LOG_PATIENCE = 120.0
FIRST_CHECK = 2.0

Answer = TypeVar("Answer")

_log = structlog.get_logger("flowpilot.audit")


class ConsumerFactory(Protocol):
    """Makes the writer's group member."""

    def __call__(self, topics: Sequence[str], *, on_assigned: Rebalanced, on_revoked: Rebalanced) -> Consumer: ...


class AuditWriter:
    """`run` returns after `stop`, with the batch at hand stored.

    `linger`: the least time in seconds between two transactions while there is little to write. `patience`:
    seconds that the store may take before the group is attended to meanwhile. `on_ready` is called once, when
    the first partitions are being read. Raises `AuditStopped`, `StoreUnusable`, and `LogUnavailable` if the log
    has not answered for `LOG_PATIENCE` seconds. A store that does not answer is waited for.
    """

    def __init__(
        self,
        topics: Topics,
        *,
        store: AuditStore,
        consumer: ConsumerFactory,
        reader: Reader,
        catalog: TopicCatalog,
        linger: float = LINGER,
        patience: float = 5.0,
        on_ready: Callable[[], None] = lambda: None,
        meter: Meter = OFF,
    ) -> None:
        self._topics = topics
        self._observed = Observed(meter)
        self._store, self._reader, self._catalog = store, reader, catalog
        self._make_consumer = consumer
        self._linger, self._patience, self._on_ready = linger, patience, on_ready
        self._stopping = asyncio.Event()
        self._definitions = Definitions()
        self._waiting: set[TopicPartition] = set()  # assigned, paused, not read yet
        self._stored: dict[TopicPartition, Position] = {}  # being read: what the store has
        self._next: dict[TopicPartition, int] = {}  # being read: the next offset to take
        self._pending: list[Fetched] = []
        self._uncommitted: dict[TopicPartition, int] = {}
        self._write_due = self._commit_due = 0.0
        self._check_due = time.monotonic() + FIRST_CHECK
        self._told_missing = False
        self._troubled_since: float | None = None
        self._log_silent_since: float | None = None
        self._backoff = 0.0
        self._is_ready = False

    def stop(self) -> None:
        """End `run` after the batch at hand."""
        self._stopping.set()

    async def run(self) -> None:
        """Write until `stop`."""
        topics = self._topics
        self._names = [topics.history, topics.dead_letters, topics.definitions, topics.fates]
        self._consumer = self._make_consumer(self._names, on_assigned=self._assigned, on_revoked=self._revoked)
        try:
            while not self._stopping.is_set():
                try:
                    await self._turn()
                except Outrun:
                    _log.warning("the store is not where this writer left it; going on from the stored positions")
                    self._start_over()
                except StoreUnavailable as error:
                    self._log_silent_since = None
                    await self._trouble("PostgreSQL does not answer; executions go on, the audit catches up", error)
                except LogUnavailable as error:
                    self._log_silent_since = self._log_silent_since or time.monotonic()
                    if time.monotonic() - self._log_silent_since > LOG_PATIENCE:
                        raise
                    await self._trouble("Kafka does not answer; trying again", error)
        finally:
            await self._leave()

    async def _turn(self) -> None:
        if self._waiting:
            await self._open()
        if self._troubled_since is not None and self._stored:
            _log.warning("going on", after_seconds=round(time.monotonic() - self._troubled_since, 1))
            self._troubled_since = self._log_silent_since = None
            self._backoff = 0.0
        # What is written a little later is written together.
        await self._pause(self._write_due - time.monotonic())
        await self._take(await self._consumer.poll(BATCH, IDLE_POLL))
        if self._pending:
            self._write_due = time.monotonic() + (self._linger if len(self._pending) < BATCH // 2 else 0.0)
            pending, self._pending = self._pending, []
            for records in chunks(pending):
                await self._write(records)
            self._check_due = time.monotonic() + CHECK_INTERVAL
        elif time.monotonic() >= self._check_due:
            await (self._check_store() if self._stored else self._check_log())
        if self._uncommitted and time.monotonic() >= self._commit_due:
            await self._commit()

    async def _leave(self) -> None:
        await self._commit()
        await self._consumer.close()

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            try:
                await asyncio.wait_for(self._stopping.wait(), seconds)
            except TimeoutError:
                pass

    # Trouble

    async def _trouble(self, what: str, error: Exception) -> None:
        """Log it once, go back to the stored positions, and stay in the group until it is time to try again."""
        if self._troubled_since is None:
            self._troubled_since = time.monotonic()
            _log.warning(what, error=str(error))
        self._start_over()
        self._backoff = min(2 * self._backoff or 0.2, LONGEST_BACKOFF)
        until = time.monotonic() + self._backoff
        while (left := until - time.monotonic()) > 0 and not self._stopping.is_set():
            try:
                await self._take(await self._consumer.poll(1, min(left, IDLE_POLL)))
            except LogUnavailable:
                await self._pause(min(left, IDLE_POLL))

    def _start_over(self) -> None:
        """Whether the last transaction was done is unknown: only the store knows where to go on."""
        self._consumer.pause(self._stored)
        self._waiting.update(self._stored)
        self._stored.clear()
        self._next.clear()
        self._pending.clear()

    async def _attended(self, work: Awaitable[Answer]) -> Answer:
        """Await the store; if it takes long, poll meanwhile, so that the group does not give this member up."""
        task = asyncio.ensure_future(work)
        await asyncio.wait({task}, timeout=self._patience)
        if not task.done():
            self._consumer.pause(self._stored)
            while not task.done():
                await self._take(await self._consumer.poll(1, IDLE_POLL))
            self._consumer.resume(self._stored)
        return task.result()

    # What is read

    async def _assigned(self, partitions: Sequence[TopicPartition]) -> None:
        # The store may not answer now, and a rebalance does not wait: they are opened between two polls.
        self._consumer.pause(partitions)
        self._forget(partitions)
        self._waiting.update(partitions)

    async def _revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._forget(partitions)

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        gone = set(partitions)
        self._waiting -= gone
        for partition in gone:
            self._stored.pop(partition, None)
            self._next.pop(partition, None)
            self._uncommitted.pop(partition, None)
        self._pending = [record for record in self._pending if record[:2] not in gone]

    async def _open(self) -> None:
        """Read the waiting partitions from where the store says, or from their beginning."""
        wanted = sorted(self._waiting)
        stored = await self._attended(self._store.positions(wanted))
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
            await self._attended(self._store.begin(first))
            stored |= await self._attended(self._store.positions(first))
        for partition in wanted:
            if partition.topic == self._topics.definitions:
                before = await self._reader.read(*partition, 0, stored[partition].next_offset)
                self._definitions.learn(before)
        for partition in wanted:
            if partition in self._waiting:  # not revoked meanwhile
                self._waiting.discard(partition)
                self._stored[partition] = stored[partition]
                self._next[partition] = stored[partition].next_offset
                self._consumer.seek(partition, stored[partition].next_offset)
                self._consumer.resume([partition])
        if not self._is_ready:
            self._is_ready = True
            self._on_ready()

    async def _take(self, records: Sequence[Fetched]) -> None:
        """Keep what is next of the partitions that are being read."""
        following = self._next
        for record in records:
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
        position = self._stored.get(partition)
        if position is not None and partition.topic in ids:
            check_position(partition, position, ids[partition.topic], low, end)

    # What is written

    async def _check_store(self) -> None:
        """Nothing comes: does the store still have what it took? A standby that took over may lack the last
        transactions, and the next write that would tell may be hours away."""
        self._check_due = time.monotonic() + CHECK_INTERVAL
        stored = await self._attended(self._store.positions(list(self._stored)))
        if any(stored.get(partition) != position for partition, position in self._stored.items()):
            raise Outrun

    async def _check_log(self) -> None:
        """Nothing is assigned: others have it all, or log or topics are not there, and a consumer is silent."""
        self._check_due = time.monotonic() + CHECK_INTERVAL
        missing = set(self._names) - (await self._catalog.topic_ids(self._names)).keys()
        self._log_silent_since = None
        if missing and not self._told_missing:
            self._told_missing = True
            _log.warning("topics are not there; waiting for `flowpilot setup`", topics=sorted(missing))

    async def _write(self, records: Sequence[Fetched]) -> None:
        # A partition that was revoked meanwhile is another writer's.
        records = [record for record in records if record[:2] in self._stored]
        if not records:
            return
        batch = batch_of(records, self._stored, self._topics, self._definitions)
        began = time.monotonic()
        try:
            divergences = await self._attended(self._store.write(batch, project))
        except BatchRefused as refused:
            if len(records) > 1:
                half = len(records) // 2
                await self._write(records[:half])
                await self._write(records[half:])
                return
            _log.warning(
                "record set aside",
                topic=records[0].topic,
                partition=records[0].partition,
                offset=records[0].offset,
                error=str(refused),
            )
            batch = set_aside(records[0], self._stored, str(refused))
            divergences = await self._attended(self._store.write(batch, project))
        self._observed.batch(records, divergences, time.monotonic() - began)
        for partition, topic_id, _, next_offset in batch.advances:
            if partition in self._stored:
                self._stored[partition] = Position(topic_id, next_offset)
                self._uncommitted[partition] = next_offset

    async def _commit(self) -> None:
        """Tell the group, for whoever looks at its lag."""
        self._commit_due = time.monotonic() + COMMIT_INTERVAL
        positions, self._uncommitted = self._uncommitted, {}
        try:
            await self._consumer.commit(positions)
        except LogUnavailable as error:
            _log.info("positions not committed to the group", error=str(error))
