"""The reader port on confluent-kafka: one consumer outside any group, one thread, one range at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from confluent_kafka import Consumer as ConfluentConsumer
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as ConfluentPartition

from flowpilot.adapters.kafka.config import Properties
from flowpilot.adapters.kafka.fetched import PASSING, fetched
from flowpilot.adapters.kafka.unreadable import UNREADABLE, lost
from flowpilot.ports.log import Fetched, LogUnavailable

Result = TypeVar("Result")

_MOST_AT_ONCE = 5_000
_NO_LEADER_YET = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_PARTITION,
    }
)


class KafkaReader:
    """See `flowpilot.ports.log.Reader`. `timeout`: seconds without progress before `LogUnavailable`."""

    def __init__(self, properties: Properties, *, timeout: float = 10.0) -> None:
        self._properties = properties
        self._consumer = ConfluentConsumer(properties)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flowpilot-reader")
        self._timeout = timeout
        self._known: set[tuple[str, int]] = set()

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """See the port."""
        return await self._run(lambda: self._bounds(topic, partition))

    async def partitions(self, topic: str) -> int:
        """See the port."""
        return await self._run(lambda: self._partitions(topic))

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        """See the port."""
        return await self._run(lambda: self._offset_at(topic, partition, timestamp))

    async def read(self, topic: str, partition: int, start: int, end: int) -> list[Fetched]:
        """See the port."""
        if start >= end:
            return []
        return await self._run(lambda: self._read(topic, partition, start, end))

    async def _run(self, work: Callable[[], Result]) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except KafkaException as error:
            reason = error.args[0]
            raise LogUnavailable(f"{reason.name()}: {reason.str()}") from None

    def _partitions(self, topic: str) -> int:
        found = self._consumer.list_topics(topic, timeout=self._timeout).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        return len(found.partitions)

    def _bounds(self, topic: str, partition: int) -> tuple[int, int]:
        if (topic, partition) not in self._known:
            # Without it librdkafka's first assignment of a topic waits for its next metadata refresh (~1 s).
            found = self._consumer.list_topics(topic, timeout=self._timeout).topics[topic]
            if found.error is not None:
                raise KafkaException(found.error)
            if partition not in found.partitions:
                raise LogUnavailable(f"unknown partition {partition} of {topic}")
            self._known.add((topic, partition))
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                bounds = self._consumer.get_watermark_offsets(
                    ConfluentPartition(topic, partition), timeout=self._timeout
                )
            except KafkaException as error:
                if error.args[0].code() not in _NO_LEADER_YET or time.monotonic() > deadline:
                    raise
                # Electing: soon after the topic was made, or its leader died. The list brings the new leader.
                self._consumer.list_topics(topic, timeout=self._timeout)
                time.sleep(0.05)
                continue
            if bounds is None:
                raise LogUnavailable(f"{topic}/{partition} did not answer within {self._timeout} s")
            low, high = bounds
            return low, high

    def _offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        # The end first: a record that is written between the two questions must not be stepped over.
        _, end = self._bounds(topic, partition)
        # Below 0 lie questions of another kind (-1: the latest), and beyond 63 bits none can be asked.
        asked = ConfluentPartition(topic, partition, min(max(timestamp, 0), 2**63 - 1))
        [found] = self._consumer.offsets_for_times([asked], timeout=self._timeout)
        if found.error is not None:
            raise KafkaException(found.error)
        return found.offset if found.offset >= 0 else end

    def _read(self, topic: str, partition: int, start: int, end: int) -> list[Fetched]:
        low, high = self._bounds(topic, partition)
        # Retention may have removed the head; nothing is waited for that is not written yet.
        start, end = max(start, low), min(end, high)
        if start >= end:
            return []
        self._consumer.assign([ConfluentPartition(topic, partition, start)])
        try:
            return self._collect(topic, partition, start, end)
        finally:
            self._consumer.unassign()

    def _collect(self, topic: str, partition: int, start: int, end: int) -> list[Fetched]:
        found: list[Fetched] = []
        deadline = time.monotonic() + self._timeout
        while True:
            first = self._consumer.poll(0.5)
            if first is None:
                if time.monotonic() > deadline:
                    raise LogUnavailable(f"{topic}/{partition} sent nothing for {self._timeout} s")
                continue
            progress = False
            for message in (first, *self._consumer.consume(_MOST_AT_ONCE, 0)):
                error = message.error()
                if error is None:
                    record = fetched(message)
                    if record.offset < end:
                        found.append(record)
                    if record.offset >= end - 1:
                        return found
                    progress = True
                elif error.code() in UNREADABLE:
                    missed = lost(message, found[-1].offset + 1 if found else start, self._properties)
                    found += [record for record in missed if record.offset < end]
                    if missed and missed[-1].offset >= end - 1:
                        return found
                    if missed:
                        self._consumer.assign([ConfluentPartition(topic, partition, missed[-1].offset + 1)])
                        progress = True
                    break  # of what came with it there is only the same again
                elif error.code() == KafkaError._PARTITION_EOF:
                    return found  # compaction took the range's last records: no message says so, the end does
                elif error.code() not in PASSING and not error.retriable():
                    raise KafkaException(error)
            if progress:
                deadline = time.monotonic() + self._timeout

    def close(self) -> None:
        """Waits for a read under way."""
        self._thread.submit(self._consumer.close).result()
        self._thread.shutdown()
