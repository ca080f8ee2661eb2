"""The router: reads trigger records, produces what they start, and only then commits their positions.

A crash between the two reads the same records again; their executions have the same ids, so the engine answers
the second start with the first execution. One read of a topic feeds every workflow on it; several routers share
the partitions. What a workflow has yet to catch up with is read beside that, slice by slice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import structlog

from flowpilot.ports import meter as meters
from flowpilot.ports import tracer as tracers
from flowpilot.ports.definitions import Definitions
from flowpilot.ports.log import (
    Fetched,
    LogUnavailable,
    Producer,
    Reader,
    Rebalanced,
    Subscriber,
    TopicCatalog,
    TopicPartition,
)
from flowpilot.ports.meter import Meter
from flowpilot.ports.tracer import Tracer
from flowpilot.router.backfill import next_slice
from flowpilot.router.fates import MANY
from flowpilot.router.observed import Observed
from flowpilot.router.opening import Opening
from flowpilot.router.output import Output
from flowpilot.router.positions import Positions
from flowpilot.router.reading import Reading, serve
from flowpilot.router.routing import routes
from flowpilot_schemas.limits import Limits
from flowpilot_schemas.topics import Topics

BATCH = 1_000  # records
IDLE_POLL = 0.25  # seconds
PATIENCE = 120.0  # seconds

_log = structlog.get_logger("flowpilot.router")


class ConsumerFactory(Protocol):
    """Makes the router's group member, which reads from the earliest record where nothing is committed."""

    def __call__(self, topics: Sequence[str], *, on_assigned: Rebalanced, on_revoked: Rebalanced) -> Subscriber: ...


class Router:
    """`run` returns after `stop`, with everything acknowledged committed.

    `interval`: seconds between looks for new definitions and topics. `commit_interval`: how long a commit may be
    put off; what is not committed at a crash is routed again, to the same executions.
    `on_ready` is called once, with the topics, when the partitions that the group gave this member are open.
    Raises `LogUnavailable` or `RouterStopped` if it cannot go on; starting it again is always right.
    """

    def __init__(
        self,
        topics: Topics,
        limits: Limits,
        *,
        consumer: ConsumerFactory,
        producer: Producer,
        reader: Reader,
        definitions: Definitions,
        catalog: TopicCatalog,
        interval: float = 1.0,
        commit_interval: float = 1.0,
        on_ready: Callable[[frozenset[str]], None] = lambda topics: None,
        meter: Meter = meters.OFF,
        tracer: Tracer = tracers.OFF,
    ) -> None:
        self._topics, self._limits = topics, limits
        self._make_consumer, self._reader = consumer, reader
        self._definitions, self._catalog = definitions, catalog
        self._observed = Observed(meter)
        self._positions = Positions(producer, reader, topics.positions)
        self._output = Output(producer, topics, self._positions, tracer)
        self._opening = Opening(reader, definitions, self._positions)
        self._interval, self._commit_interval, self._on_ready = interval, commit_interval, on_ready
        self._stopping = asyncio.Event()
        self._consumer: Subscriber | None = None
        self._subscribed: frozenset[str] = frozenset()
        self._where = routes(definitions, topics, limits)
        self._waiting: set[TopicPartition] = set()  # assigned, paused, not open yet
        self._readings: dict[TopicPartition, Reading] = {}
        self._commit_due = time.monotonic() + commit_interval
        self._is_member = self._is_ready = False

    def stop(self) -> None:
        """End `run` after the batch at hand."""
        self._stopping.set()

    async def run(self) -> None:
        """Route until `stop`."""
        look_due = 0.0
        try:
            while not self._stopping.is_set():
                if time.monotonic() >= look_due:
                    await self._patiently(self._look)
                    look_due = time.monotonic() + self._interval
                if self._consumer is None:
                    await self._pause(self._interval)
                    continue
                await self._turn(self._consumer)
        finally:
            if self._consumer is not None:
                await self._leave(self._consumer)

    async def _turn(self, consumer: Subscriber) -> None:
        if self._waiting:
            await self._open(consumer)
        if self._is_member and not self._is_ready and (self._readings or not self._waiting):
            self._is_ready = True
            self._on_ready(self._subscribed)
        behind = [each for each in self._readings.values() if each.behind(self._where)]
        records = await consumer.poll(BATCH, 0.0 if behind else IDLE_POLL)
        if records:
            await self._patiently(lambda: self._take(records))
        if behind:
            await self._catch_up(behind)
        if any(reading.omissions.size > MANY for reading in self._readings.values()):
            self._commit_due = 0.0
        if time.monotonic() >= self._commit_due:
            await self._patiently(lambda: self._commit(self._readings.values()))
            self._commit_due = time.monotonic() + self._commit_interval

    async def _leave(self, consumer: Subscriber) -> None:
        try:
            await self._commit(self._readings.values())
        except LogUnavailable as error:
            _log.warning("positions not committed; the records will be read again", error=str(error))
        await consumer.close()

    async def _patiently(self, ask: Callable[[], Awaitable[None]]) -> None:
        """`ask` until it is answered or `PATIENCE` is over: asking again for the same batch is harmless, but a
        client that is broken for good is mended by a new process only."""
        delay, given_up = 0.1, time.monotonic() + PATIENCE
        while not self._stopping.is_set():
            try:
                return await ask()
            except LogUnavailable as error:
                if time.monotonic() > given_up:
                    raise
                _log.warning("the log did not answer; trying again", error=str(error))
                await self._pause(delay)
                delay = min(2 * delay, 5.0)
        return None

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    # What is read

    async def _look(self) -> None:
        """Subscribe to every topic that a current definition names and that exists; wait for the others. See
        to positions that somebody else moved, and to topics that were made again."""
        await self._refresh()
        await self._positions.refresh()
        wanted = self._where.topics
        ids = await self._catalog.topic_ids(wanted)
        for reading in list(self._readings.values()):
            if ids.get(reading.partition.topic) != reading.topic_id:
                self._reopen(reading)
            for name in [name for name in reading.saved if self._positions.is_outdated(reading.key(name))]:
                del reading.saved[name]  # the next commit writes it again
        for reading in self._readings.values():
            await self._opening.join(self._where, reading)
        there = frozenset(ids)
        if there == self._subscribed or not there:
            return
        if self._consumer is None:
            self._consumer = self._make_consumer(
                sorted(there), on_assigned=self._assigned, on_revoked=self._revoked
            )
        else:
            self._consumer.subscribe(sorted(there))
        self._subscribed = there
        _log.info("reading", topics=sorted(there), awaited=sorted(wanted - there))

    async def _refresh(self) -> None:
        await self._definitions.refresh()
        self._where = routes(self._definitions, self._topics, self._limits)

    async def _assigned(self, partitions: Sequence[TopicPartition]) -> None:
        # The log may not answer now, and a rebalance does not wait: they are opened between two polls.
        if self._consumer is not None:
            self._consumer.pause(partitions)
        self._forget(partitions)
        self._waiting.update(partitions)
        self._is_member = True

    async def _revoked(self, partitions: Sequence[TopicPartition]) -> None:
        # Runs inside `poll`: whatever was polled before is produced and acknowledged.
        try:
            await self._commit([self._readings[each] for each in partitions if each in self._readings])
        except LogUnavailable as error:
            _log.warning("positions not committed; the next owner reads again", error=str(error))
        self._forget(partitions)

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            self._waiting.discard(partition)
            self._readings.pop(partition, None)

    def _reopen(self, reading: Reading) -> None:
        """It is not what it was: begin again with what is committed."""
        if self._consumer is not None:
            self._consumer.pause([reading.partition])
        self._forget([reading.partition])
        self._waiting.add(reading.partition)

    async def _open(self, consumer: Subscriber) -> None:
        """Open what is waiting, each from its positions. What does not answer, or is not there any more, waits
        for another turn."""
        try:
            await self._positions.refresh()
            ids = await self._catalog.topic_ids({partition.topic for partition in self._waiting})
            for partition in sorted(self._waiting):
                if partition.topic in ids and partition.topic in self._where.readers:
                    reading = await self._opening.open(self._where, partition, ids[partition.topic])
                    self._waiting.discard(partition)
                    self._readings[partition] = reading
                    consumer.seek(partition, reading.cursor)
                    consumer.resume([partition])
        except LogUnavailable as error:
            _log.warning("a partition cannot be read yet", error=str(error))

    # What is done with it

    async def _take(self, records: Sequence[Fetched]) -> None:
        """Serve the workflows that are live with what the group delivers."""
        # A definition registered before a record was published is known before the record is routed.
        await self._refresh()
        batch, ends = [], {}
        for partition, arrived in _by_partition(records).items():
            reading = self._readings.get(partition)
            if reading is None:
                continue
            if arrived[0].offset < reading.cursor:
                self._reopen(reading)  # a topic that was made again counts from 0 again
                continue
            await self._opening.join(self._where, reading)
            live = [name for name in reading.readers(self._where) if reading.next[name] >= reading.cursor]
            ends[partition] = arrived[-1].offset + 1
            batch.append(serve(self._where, reading, live, arrived, ends[partition]))
        await self._output.produce(batch)
        for served in batch:
            served.reading.cursor = served.end
            served.done()
            if served.end < ends[served.reading.partition] and self._consumer is not None:
                self._consumer.seek(served.reading.partition, served.end)
        self._observed.arrived(records)
        self._observed.served(batch)

    async def _catch_up(self, behind: Sequence[Reading]) -> None:
        """One slice of one partition, the least recently served first."""
        reading = min(behind, key=lambda each: each.caught_up_at)
        reading.caught_up_at = time.monotonic()
        if reading is not self._readings.get(reading.partition):
            return  # it was revoked or reopened meanwhile
        try:
            # Another router may have brought the cursor here, past records that are newer than what this one knows.
            await self._refresh()
            served = await next_slice(self._where, self._reader, reading)
            await self._output.produce([served])
        except LogUnavailable as error:
            _log.warning("a slice cannot be read yet", partition=reading.partition, error=str(error))
        else:
            served.done()
            self._observed.served([served])

    async def _commit(self, readings: Iterable[Reading]) -> None:
        readings = list(readings)
        await self._output.commit(readings)
        for reading in readings:
            reading.keep_only(reading.readers(self._where))
        # The group's own offsets only tell its lag.
        moved = {each.partition: each.cursor for each in readings if each.committed != each.cursor}
        if moved and self._consumer is not None:
            await self._consumer.commit(moved)
        for reading in readings:
            reading.committed = reading.cursor


def _by_partition(records: Iterable[Fetched]) -> dict[TopicPartition, list[Fetched]]:
    found: dict[TopicPartition, list[Fetched]] = {}
    for record in records:
        found.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
    return found
