"""The router: reads trigger records, produces what they start, and only then commits their offsets.

A crash between the two reads the same records again; their executions have the same ids, so the engine answers
the second start with the first execution. One router feeds every workflow; several share the partitions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import structlog

from flowpilot.core.dead_letters import dead_letter_key
from flowpilot.ports.definitions import Definitions
from flowpilot.ports.log import Consumer, Fetched, LogUnavailable, Producer, Rebalanced, Record, TopicPartition
from flowpilot.router.errors import RouterStopped
from flowpilot.router.routing import Omitted, Routes, route, routes
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.ids import root_id
from flowpilot_schemas.limits import Limits
from flowpilot_schemas.messages import DeadLetter, StartExecution
from flowpilot_schemas.topics import Topics

BATCH = 1_000
IDLE_POLL = 0.25
PATIENCE = 120.0

_log = structlog.get_logger("flowpilot.router")


class TopicCatalog(Protocol):
    """Which topics there are."""

    async def topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        """The id (KIP-516) of each of `names` that exists. Raises `LogUnavailable`."""
        ...


class Subscriber(Consumer, Protocol):
    """A group member whose topics can be replaced."""

    def subscribe(self, topics: Sequence[str]) -> None:
        """Read these topics from the next rebalance on."""
        ...


class ConsumerFactory(Protocol):
    """Makes the router's group member, which reads from the earliest record where nothing is committed."""

    def __call__(self, topics: Sequence[str], *, on_assigned: Rebalanced, on_revoked: Rebalanced) -> Subscriber: ...


class Router:
    """`run` returns after `stop`, with everything acknowledged committed.

    `interval`: seconds between looks for new definitions and topics. `commit_interval`: how long a commit may be
    put off; what is not committed at a crash is routed again, to the same executions.
    `on_ready` is called once, with the topics, when the group has given this member its partitions.
    Raises `LogUnavailable` or `RouterStopped` if it cannot go on; starting it again is always right.
    """

    def __init__(
        self,
        topics: Topics,
        limits: Limits,
        *,
        consumer: ConsumerFactory,
        producer: Producer,
        definitions: Definitions,
        catalog: TopicCatalog,
        interval: float = 1.0,
        commit_interval: float = 1.0,
        on_ready: Callable[[frozenset[str]], None] = lambda topics: None,
    ) -> None:
        self._topics, self._limits = topics, limits
        self._make_consumer, self._producer = consumer, producer
        self._definitions, self._catalog = definitions, catalog
        self._interval, self._commit_interval, self._on_ready = interval, commit_interval, on_ready
        self._stopping = asyncio.Event()
        self._consumer: Subscriber | None = None
        self._subscribed: frozenset[str] = frozenset()
        self._topic_ids: dict[str, str] = {}
        self._positions: dict[TopicPartition, int] = {}
        self._uncommitted: set[TopicPartition] = set()
        self._commit_due = 0.0
        self._is_ready = False

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
                records = await self._consumer.poll(BATCH, IDLE_POLL)
                if records:
                    await self._patiently(lambda batch=records: self._take(batch))  # type: ignore[misc]
                if self._uncommitted and time.monotonic() >= self._commit_due:
                    await self._commit(self._uncommitted)
        finally:
            if self._consumer is not None:
                await self._leave(self._consumer)

    async def _leave(self, consumer: Subscriber) -> None:
        try:
            await self._commit(self._uncommitted)
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
        """Subscribe to every topic that a current definition names and that exists; wait for the others."""
        await self._definitions.refresh()
        wanted = self._routes().topics
        self._topic_ids = await self._catalog.topic_ids(wanted)
        there = frozenset(self._topic_ids)
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

    def _routes(self) -> Routes:
        return routes(self._definitions, self._topics, self._limits)

    async def _assigned(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            self._positions.pop(partition, None)
            self._uncommitted.discard(partition)
        if not self._is_ready:
            self._is_ready = True
            self._on_ready(self._subscribed)

    async def _revoked(self, partitions: Sequence[TopicPartition]) -> None:
        # Runs inside `poll`: whatever was polled before is produced and acknowledged.
        mine = self._uncommitted.intersection(partitions)
        try:
            await self._commit(mine)
        except LogUnavailable as error:
            _log.warning("positions not committed; the next owner reads again", error=str(error))
            self._uncommitted -= mine

    # What is done with it

    async def _take(self, records: Sequence[Fetched]) -> None:
        # A definition registered before a record was published is known before the record is routed.
        await self._definitions.refresh()
        await self._refresh_topic_ids(records)
        where = self._routes()
        produced: list[Record] = []
        for record in records:
            for outcome in route(where, record, self._topic_ids[record.topic]):
                if not isinstance(outcome, Omitted):
                    produced.append(self._record_of(record, outcome))
        for sent, delivery in zip(produced, await self._producer.send(produced), strict=True):
            if delivery.error is not None:
                raise RouterStopped(f"the topic {sent.topic} refused a record for good: {delivery.error}")
        if not self._uncommitted:
            self._commit_due = time.monotonic() + self._commit_interval
        for record in records:
            partition = TopicPartition(record.topic, record.partition)
            self._positions[partition] = record.offset + 1
            self._uncommitted.add(partition)

    async def _refresh_topic_ids(self, records: Sequence[Fetched]) -> None:
        """A topic that was deleted and made again has another id and counts from 0 again: ids of records of
        the old one must not be given to records of the new one."""
        unsure = {
            record.topic
            for record in records
            if record.topic not in self._topic_ids
            or record.offset < self._positions.get(TopicPartition(record.topic, record.partition), 0)
        }
        if unsure:
            self._topic_ids |= await self._catalog.topic_ids(unsure)
            missing = unsure.difference(self._topic_ids)
            if missing:
                raise LogUnavailable(f"the topic {min(missing)} has no id at present")

    def _record_of(self, record: Fetched, outcome: StartExecution | DeadLetter) -> Record:
        if isinstance(outcome, StartExecution):
            key = root_id(outcome.execution).encode()
            return Record(self._topics.events, key, encode_message(outcome))
        return self._dead(record, outcome)

    def _dead(self, record: Fetched, letter: DeadLetter) -> Record:
        _log.warning(
            "dead letter",
            reason=letter.reason,
            detail=letter.detail,
            topic=letter.topic,
            partition=letter.partition,
            offset=letter.offset,
        )
        return Record(self._topics.dead_letters, dead_letter_key(record), encode_message(letter))

    async def _commit(self, partitions: Iterable[TopicPartition]) -> None:
        ready = set(partitions)
        if not ready or self._consumer is None:
            return
        await self._consumer.commit({partition: self._positions[partition] for partition in ready})
        self._uncommitted -= ready
