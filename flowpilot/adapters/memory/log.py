"""A broker in memory behind the log ports: one event loop, no threads, the same order on every run.

It keeps what FlowPilot relies on of Kafka: dense offsets a partition, broker time, murmur2, permanent errors of
single records, compaction, and cooperative groups whose handlers run before anything else is polled.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from flowpilot.adapters.memory.group import Group, MemoryConsumer, ignore_rebalance
from flowpilot.core.murmur2 import partition_of
from flowpilot.ports.log import (
    Delivery,
    Fetched,
    LogUnavailable,
    Rebalanced,
    Record,
    TopicPartition,
    sendable,
)
from flowpilot_schemas.topics import MIB

# What Kafka adds to key, value and headers of a record that is alone in its batch.
_OVERHEAD = 76


def _now() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class _Partition:
    records: list[Fetched] = field(default_factory=list)  # ascending offsets; with gaps once compacted
    low: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class _Topic:
    topic_id: str
    partitions: list[_Partition]
    max_message_bytes: int
    compacted: bool


class MemoryLog:
    """The broker. `clock` gives its time in ms since the epoch."""

    def __init__(self, clock: Callable[[], int] = _now) -> None:
        self._clock = clock
        self._topics: dict[str, _Topic] = {}
        self._groups: dict[str, Group] = {}
        self._spread = 0
        self._created = 0

    def create_topic(
        self, name: str, partitions: int, *, max_message_bytes: int = MIB, compacted: bool = False
    ) -> None:
        """Create a topic; ValueError if there is one of that name. A `compacted` one refuses null keys."""
        if name in self._topics:
            raise ValueError(f"topic {name} exists")
        self._created += 1
        topic_id = f"memory-{self._created}"
        self._topics[name] = _Topic(
            topic_id, [_Partition() for _ in range(partitions)], max_message_bytes, compacted
        )
        for group in self._groups.values():
            group.rebalance()

    def producer(self) -> MemoryProducer:
        """A producer on this broker."""
        return MemoryProducer(self)

    def reader(self) -> MemoryReader:
        """A reader on this broker."""
        return MemoryReader(self)

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        *,
        on_assigned: Rebalanced = ignore_rebalance,
        on_revoked: Rebalanced = ignore_rebalance,
        strict: bool = False,
    ) -> MemoryConsumer:
        """A new member of `group`; it is given partitions while it polls. `strict`: a position that is not in the
        log is `PartitionUnavailable`, as with Kafka's `auto.offset.reset=error`; else it goes on with the first
        record there is."""
        if group not in self._groups:
            self._groups[group] = Group(self)
        return MemoryConsumer(self, self._groups[group], topics, on_assigned, on_revoked, strict=strict)

    def partitions(self, topic: str) -> int:
        """The number of partitions; 0 if there is no such topic."""
        return len(self._topics[topic].partitions) if topic in self._topics else 0

    def topic_id(self, topic: str) -> str:
        """What tells this topic from a later one of the same name. Raises `LogUnavailable`."""
        return self._topic(topic).topic_id

    def records(self, topic: str) -> list[Fetched]:
        """All records there are, partition by partition, for inspection."""
        return [record for partition in self._topic(topic).partitions for record in partition.records]

    def compact(self, topic: str, *, tombstones: bool = False) -> None:
        """Keep each key's last record; with `tombstones` remove null values too, as after delete.retention.ms."""
        for partition in self._topic(topic).partitions:
            last = {record.key: record.offset for record in partition.records}
            partition.records = [
                record
                for record in partition.records
                if last[record.key] == record.offset and not (tombstones and record.value is None)
            ]

    def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Raise the low watermark to `offset`, as retention does."""
        place = self._topic(topic).partitions[partition]
        place.low = max(place.low, min(offset, place.end))
        place.records = [record for record in place.records if record.offset >= place.low]

    def truncate(self, topic: str, partition: int, end: int) -> None:
        """Lose the records from `end` on, as an unclean leader election does."""
        place = self._topic(topic).partitions[partition]
        place.records = [record for record in place.records if record.offset < end]
        place.end = min(place.end, end)

    def add_partitions(self, topic: str, count: int) -> None:
        """Let the topic have `count` partitions; it never has fewer than before."""
        partitions = self._topic(topic).partitions
        partitions += [_Partition() for _ in range(count - len(partitions))]
        for group in self._groups.values():
            group.rebalance()

    def delete_topic(self, topic: str) -> None:
        """Forget the topic with its records and positions; one created under the name again has another id."""
        del self._topics[topic]
        for group in self._groups.values():
            group.committed = {tp: offset for tp, offset in group.committed.items() if tp.topic != topic}
            group.notes = {tp: note for tp, note in group.notes.items() if tp.topic != topic}
            group.rebalance()

    def recreate_topic(self, name: str, partitions: int) -> None:
        """Delete the topic and create it again under another id, and no group notices until `notice`: as Kafka's
        members, who look at the partitions from time to time and go on at their offsets meanwhile."""
        before = self._topic(name)
        self._created += 1
        self._topics[name] = _Topic(
            f"memory-{self._created}",
            [_Partition() for _ in range(partitions)],
            before.max_message_bytes,
            before.compacted,
        )
        for group in self._groups.values():
            group.committed = {tp: offset for tp, offset in group.committed.items() if tp.topic != name}
            group.notes = {tp: note for tp, note in group.notes.items() if tp.topic != name}

    def notice(self) -> None:
        """Let every group look at the partitions that there are."""
        for group in self._groups.values():
            group.rebalance()

    def append(self, record: Record) -> Delivery:
        """Write one record, or say why it can never be taken."""
        topic = self._topics.get(record.topic)
        if topic is None:
            return Delivery(-1, -1, f"unknown topic {record.topic}")
        if record.partition is not None:
            number = record.partition
        elif record.key is None:
            self._spread += 1
            number = self._spread % len(topic.partitions)
        else:
            number = partition_of(record.key, len(topic.partitions))
        if not 0 <= number < len(topic.partitions):
            return Delivery(number, -1, f"unknown partition {number} of {record.topic}")
        if _size(record) > topic.max_message_bytes:
            return Delivery(number, -1, f"the record is larger than {topic.max_message_bytes} bytes")
        if topic.compacted and record.key is None:
            return Delivery(number, -1, f"{record.topic} is compacted and takes no record without a key")
        place = topic.partitions[number]
        offset, place.end = place.end, place.end + 1
        now = self._clock()
        place.records.append(
            Fetched(record.topic, number, offset, now, record.key, record.value, tuple(record.headers))
        )
        for group in self._groups.values():
            group.wake(record.topic)
        return Delivery(number, offset, timestamp=now)

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """(low watermark, log end). Raises `LogUnavailable` for what does not exist."""
        place = self._place(topic, partition)
        return place.low, place.end

    def fetch(self, partition: TopicPartition, start: int, limit: int) -> Iterable[Fetched]:
        """Up to `limit` records from `start` on."""
        place = self._place(*partition)
        first = _first_at(place.records, start)
        return place.records[first : first + limit]

    def _topic(self, name: str) -> _Topic:
        if name not in self._topics:
            raise LogUnavailable(f"unknown topic {name}")
        return self._topics[name]

    def _place(self, topic: str, partition: int) -> _Partition:
        partitions = self._topic(topic).partitions
        if not 0 <= partition < len(partitions):
            raise LogUnavailable(f"unknown partition {partition} of {topic}")
        return partitions[partition]


class MemoryProducer:
    """See `flowpilot.ports.log.Producer`."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        """See the port. Everything is written before this first yields to the loop."""
        deliveries = [self._log.append(record._replace(headers=sendable(record.headers))) for record in records]
        await _next_turn()
        return deliveries

    def close(self, timeout: float = 0.0) -> None:
        """Nothing is ever under way."""


class MemoryReader:
    """See `flowpilot.ports.log.Reader`."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """See the port."""
        await _next_turn()
        return self._log.bounds(topic, partition)

    async def partitions(self, topic: str) -> int:
        """See the port."""
        await _next_turn()
        self._log.topic_id(topic)  # raises if there is none
        return self._log.partitions(topic)

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        """See the port."""
        await _next_turn()
        low, end = self._log.bounds(topic, partition)
        found = self._log.fetch(TopicPartition(topic, partition), low, end - low)
        return next((record.offset for record in found if record.timestamp >= timestamp), end)

    async def read(self, topic: str, partition: int, start: int, end: int) -> list[Fetched]:
        """See the port."""
        await _next_turn()
        found = self._log.fetch(TopicPartition(topic, partition), start, max(0, end - start))
        return [record for record in found if record.offset < end]

    def close(self) -> None:
        """Nothing is held."""


async def _next_turn() -> None:
    """What goes to a real broker lets the other tasks run meanwhile: so does this."""
    await asyncio.sleep(0)


def _size(record: Record) -> int:
    headers = sum(len(name) + len(value) for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers + _OVERHEAD


def _first_at(records: Sequence[Fetched], offset: int) -> int:
    """The index of the first record at `offset` or later."""
    if not records:
        return 0
    if records[-1].offset - records[0].offset == len(records) - 1:  # no gap: the place is known
        return max(0, min(len(records), offset - records[0].offset))
    return bisect_left(records, offset, key=lambda record: record.offset)
