"""The router: reads trigger records, produces what they start, and only then commits their positions.

A crash between the two reads the same records again; their executions have the same ids, so the engine answers
the second start with the first execution. One read of a topic feeds every workflow on it; several routers share
the partitions. What a workflow has yet to catch up with is read beside that, slice by slice.

One partition's trouble is its own (`flowpilot.router.partitions`), and no record is routed under the id of another
topic than it was read from (`flowpilot.router.identity`).
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
    PartitionUnavailable,
    Producer,
    Reader,
    Rebalanced,
    Subscriber,
    TopicCatalog,
    TopicPartition,
)
from flowpilot.ports.meter import Meter
from flowpilot.ports.tracer import Tracer
from flowpilot.router.backfill import Backfill
from flowpilot.router.beginning import Beginnings
from flowpilot.router.fates import MANY
from flowpilot.router.identity import Shared, TopicIds, gone
from flowpilot.router.observed import Observed
from flowpilot.router.output import Output
from flowpilot.router.partitions import Partitions
from flowpilot.router.positions import Positions
from flowpilot.router.reading import Reading, serve
from flowpilot.router.routing import Routes, routes
from flowpilot_schemas.limits import Limits
from flowpilot_schemas.topics import Topics

BATCH = 1_000  # records
IDLE_POLL = 0.25  # seconds
ASKING_POLL = 0.01  # seconds: while the answer to a question is awaited
PATIENCE = 120.0  # seconds

_log = structlog.get_logger("flowpilot.router")


class ConsumerFactory(Protocol):
    """Makes the router's group member. A position that is not in the log is `PartitionUnavailable`: the member must
    not go on elsewhere by itself (`auto.offset.reset=error`)."""

    def __call__(self, topics: Sequence[str], *, on_assigned: Rebalanced, on_revoked: Rebalanced) -> Subscriber: ...


class Router:
    """`run` returns after `stop`, with everything acknowledged committed.

    `interval`: seconds between looks for new definitions and topics. `commit_interval`: how long a commit may be
    put off; what is not committed at a crash is routed again, to the same executions.
    `reader` reads FlowPilot's own topics, `trigger_reader` the users' (default: the same): there, a partition that
    does not answer must not keep the bounds of another waiting.
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
        trigger_reader: Reader | None = None,
        interval: float = 1.0,
        commit_interval: float = 1.0,
        on_ready: Callable[[frozenset[str]], None] = lambda topics: None,
        meter: Meter = meters.OFF,
        tracer: Tracer = tracers.OFF,
    ) -> None:
        self._topics, self._limits = topics, limits
        self._make_consumer, trigger_reader = consumer, trigger_reader or reader
        self._definitions, self._ids = definitions, TopicIds(catalog)
        self._observed = Observed(meter)
        self._positions = Positions(producer, reader, topics.positions)
        self._output = Output(producer, topics, self._positions, tracer)
        self._known = Shared(self._read_own_topics)
        beginnings = Beginnings(trigger_reader, definitions, self._positions, self._read_to)
        self._partitions = partitions = Partitions(self._ids, beginnings, self._known, self._routes)
        self._backfill = Backfill(trigger_reader, self._ids, partitions, self._refresh, self._routes)
        self._interval, self._commit_interval, self._on_ready = interval, commit_interval, on_ready
        self._stopping = asyncio.Event()
        self._consumer: Subscriber | None = None
        self._subscribed: frozenset[str] = frozenset()
        self._current: dict[str, str] = {}  # the ids of topics, as of the last look
        self._where = routes(definitions, topics, limits)
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
        partitions = self._partitions
        if partitions.retired:  # before they are opened again, from what is committed now
            await self._patiently(self._commit)
        for reading in partitions.admit():
            consumer.seek(reading.partition, reading.cursor)
            consumer.resume([reading.partition])
        partitions.begin()
        if self._is_member and not self._is_ready and partitions.all_tried:
            self._is_ready = True
            self._on_ready(self._subscribed)
        readings = partitions.readings.values()
        behind = self._backfill.due()
        records = await self._poll(consumer, 0.0 if behind else IDLE_POLL)
        if records:
            await self._patiently(lambda: self._take(records))
        if behind or self._backfill.is_reading:
            await self._catch_up(behind)
        if any(reading.omissions.size > MANY for reading in readings):
            self._commit_due = 0.0
        if time.monotonic() >= self._commit_due:
            await self._patiently(self._commit)
            self._commit_due = time.monotonic() + self._commit_interval

    async def _poll(self, consumer: Subscriber, timeout: float) -> list[Fetched]:
        if timeout and (self._partitions.is_asking or self._backfill.is_reading):
            timeout = ASKING_POLL
        try:
            return await consumer.poll(BATCH, timeout)
        except PartitionUnavailable as trouble:
            self._close(trouble.partition, str(trouble))
            return []

    async def _leave(self, consumer: Subscriber) -> None:
        try:
            await self._commit()
        except LogUnavailable as error:
            _log.warning("positions not committed; the records will be read again", error=str(error))
        await self._partitions.stop()
        self._backfill.stop()
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
        to topics that were made again, and to positions that somebody else wrote."""
        await self._refresh()
        readings = self._partitions.readings
        wanted = self._where.topics
        found = await self._ids.of(wanted | {partition.topic for partition in readings})
        self._close_others(found, list(readings))
        # A topic that was made again is left for one look: only so the group looks at its partitions at once.
        renewed = {topic for topic, known in self._current.items() if found.get(topic, known) != known}
        self._current = found
        await self._known()
        for reading in readings.values():
            for name in [name for name in reading.saved if not self._is_mine(reading, name)]:
                del reading.saved[name]  # the next commit writes it again
        self._partitions.join(readings.values())
        there = frozenset(found) & wanted - renewed
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

    def _is_mine(self, reading: Reading, name: str) -> bool:
        """Whether the last position of the key is this router's own: compaction keeps the last."""
        key, saved = reading.key(name), reading.saved[name]
        last = self._positions.last(key)
        if last == saved:
            return True
        if self._positions.get(key) != saved:
            # Forged, or of a router that lost the partition: what this one serves is served, and no more is.
            reading.disputed.add(name)
        return False

    async def _read_own_topics(self) -> None:
        # Positions first: the registration that an honest one belongs to is known then.
        scope = frozenset(
            (name, topic, self._current[topic])
            for topic, readers in self._where.readers.items()
            for name in readers
            if topic in self._current
        )
        await self._positions.refresh(scope)
        await self._refresh()

    async def _read_to(self, partition: TopicPartition, topic_id: str) -> int:
        """How far the topic with this id is known to have been read: here, or by what the group committed."""
        known = self._partitions.read_to.get((partition, topic_id), 0)
        noted = {} if self._consumer is None else await self._consumer.noted([partition])
        offset, of = noted.get(partition, (0, topic_id))
        return max(known, offset if of == topic_id else 0)

    def _routes(self) -> Routes:
        return self._where

    async def _refresh(self) -> None:
        await self._definitions.refresh()
        self._where = routes(self._definitions, self._topics, self._limits)

    async def _assigned(self, partitions: Sequence[TopicPartition]) -> None:
        # The log may not answer now, and a rebalance does not wait: they are opened between two polls.
        if self._consumer is not None:
            self._consumer.pause(partitions)
        self._partitions.assigned(partitions)
        self._is_member = True

    async def _revoked(self, partitions: Sequence[TopicPartition]) -> None:
        # Runs inside `poll`: whatever was polled before is produced and acknowledged.
        readings = self._partitions.readings
        try:
            await self._commit_these([readings[each] for each in partitions if each in readings])
        except LogUnavailable as error:
            _log.warning("positions not committed; the next owner reads again", error=str(error))
        self._partitions.revoked(partitions)

    def _close(self, partition: TopicPartition, reason: str) -> None:
        """It cannot be read as it is: begin again with what is committed."""
        if self._consumer is not None and partition in self._partitions.readings:
            self._consumer.pause([partition])
        self._partitions.close(partition, reason)

    def _close_others(self, found: dict[str, str], partitions: Iterable[TopicPartition]) -> None:
        """Close those of `partitions` whose topic is not the one that they are read as."""
        for partition in partitions:
            topic, reading = partition.topic, self._partitions.readings.get(partition)
            if reading is not None and found.get(topic) != reading.topic_id:
                self._close(partition, f"topic {topic} was created again" if topic in found else gone(topic))

    # What is done with it

    async def _take(self, records: Sequence[Fetched]) -> None:
        """Serve the workflows that are live with what the group delivers."""
        # A definition registered before a record was published is known before the record is routed.
        await self._refresh()
        arrived = _by_partition(records)
        readings = self._partitions.readings
        # Asked after they were fetched, so that they are of the topic that they are routed under.
        found = await self._ids.of({partition.topic for partition in arrived if partition in readings})
        self._close_others(found, list(arrived))
        self._partitions.join([readings[each] for each in arrived if each in readings])
        batch, ends = [], {}
        for partition, fetched in arrived.items():
            reading = readings.get(partition)
            if reading is None:
                continue
            if fetched[0].offset < reading.cursor:
                self._close(partition, f"the log went back from offset {reading.cursor} to {fetched[0].offset}")
                continue
            newcomers = self._partitions.newcomers(reading)
            live = [
                name
                for name in reading.readers(self._where)
                if name not in newcomers and reading.next[name] >= reading.cursor
            ]
            ends[partition] = fetched[-1].offset + 1
            batch.append(serve(self._where, reading, live, fetched, ends[partition]))
        await self._output.produce(batch)
        for served in batch:
            served.reading.cursor = served.end
            served.done()
            if served.end < ends[served.reading.partition] and self._consumer is not None:
                self._consumer.seek(served.reading.partition, served.end)
        self._observed.arrived(records)
        self._observed.served(batch)

    async def _catch_up(self, behind: list[Reading]) -> None:
        served = await self._backfill.next(behind)
        if served is None:
            return
        try:
            await self._output.produce([served])
        except LogUnavailable as error:
            self._backfill.put_off(served.reading, error)
        else:
            served.done()
            self._observed.served([served])

    async def _commit(self) -> None:
        partitions = self._partitions
        retired = list(partitions.retired)
        await self._commit_these([*retired, *partitions.readings.values()])
        partitions.retired = [each for each in partitions.retired if each not in retired]
        self._observed.closed(partitions.closed)

    async def _commit_these(self, readings: Sequence[Reading]) -> None:
        await self._output.commit(readings)
        for reading in readings:
            reading.keep_only(reading.readers(self._where))
        # The group's own offsets tell its lag, and what a partition was read to whose log has lost its tail.
        moved = {each.partition: each for each in readings if each.committed != each.cursor}
        if moved and self._consumer is not None:
            try:
                await self._consumer.commit(
                    {partition: each.cursor for partition, each in moved.items()},
                    {partition: each.topic_id for partition, each in moved.items()},
                )
            except PartitionUnavailable as error:
                _log.info("a group offset was not committed", error=str(error))
        for reading in readings:
            reading.committed = reading.cursor


def _by_partition(records: Iterable[Fetched]) -> dict[TopicPartition, list[Fetched]]:
    found: dict[TopicPartition, list[Fetched]] = {}
    for record in records:
        found.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
    return found
