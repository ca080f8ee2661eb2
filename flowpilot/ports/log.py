"""The log: producing, reading ranges, and consuming as a member of a group."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from flowpilot.core.errors import FlowPilotError
from flowpilot_schemas.codec import BadRecord

Headers = tuple[tuple[str, bytes], ...]
"""A name's bytes that are not UTF-8 are lone surrogates, as PEP 383 has them. A null value is an empty one."""

NAME_LOST = "\ud800"
"""In place of a name that is not UTF-8 and that the client did not give."""

HEADERS_LOST = "\ud801"
"""The name of the only header of a record whose headers the client did not give at all."""

RECORD_LOST = "\ud802"
"""The name of the only header of a record of which the client gave nothing but its place; its value is empty."""


def is_utf8(name: str) -> bool:
    """Whether a header's name is text. FlowPilot's own names are: one that is not concerns nobody here."""
    return name.isascii() or not any("\ud800" <= char <= "\udfff" for char in name)


def as_time(timestamp: int) -> int:
    """A record's timestamp as a time (ms) that a date can hold, with room for any timeout after it: 1970 to 2248.

    Of FlowPilot's own topics the broker's clock is told. Somebody may have altered one to take the producer's word
    (`message.timestamp.type`), which `flowpilot doctor` reports.
    """
    return min(max(timestamp, 0), 2**43)


def sendable(headers: Headers) -> Headers:
    """`headers` as every client can send them: a name that is not UTF-8 is written with escapes (`caf\\udce9`)."""
    if all(is_utf8(name) for name, _ in headers):
        return headers
    return tuple((name.encode(errors="backslashreplace").decode(), value) for name, value in headers)


class TopicPartition(NamedTuple):
    """One partition of a topic."""

    topic: str
    partition: int


class Record(NamedTuple):
    """A record to be produced. Without `partition`, murmur2 of the key chooses (as Kafka's own clients do).
    `headers` are sent as `sendable` has them."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None = None
    headers: Headers = ()


class Fetched(NamedTuple):
    """A record as read. `timestamp` is in ms since the epoch: the broker's on FlowPilot's own topics; elsewhere it
    may be the producer's, who may write anything, and -1 where there is none."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


def refuse_lost(record: Fetched) -> None:
    """Raises `BadRecord` if there is nothing of the record but its place."""
    if record.headers and record.headers[0][0] == RECORD_LOST:
        sentence = "the Kafka client cannot read the record's batch: it is corrupt, or too large when decompressed"
        raise BadRecord("record_unreadable", sentence)


class Delivery(NamedTuple):
    """Where a record was acknowledged, or the permanent error that concerns it alone (`offset` is then -1).

    `timestamp`: the broker's time of the append, in ms since the epoch; None where the topic keeps the producer's.
    """

    partition: int
    offset: int
    error: str | None = None
    timestamp: int | None = None


class LogUnavailable(FlowPilotError):
    """The log did not answer, or refused for a reason that may pass. What was asked may or may not be done."""


class PartitionUnavailable(LogUnavailable):
    """One partition cannot be read for now: its topic is gone or refused, or the position is not in its log.

    Nothing of it is delivered until the next `seek`, or until it is assigned anew; the others go on.
    """

    def __init__(self, partition: TopicPartition, reason: str) -> None:
        super().__init__(f"{partition.topic}/{partition.partition}: {reason}")
        self.partition = partition


class MembershipLost(FlowPilotError):
    """Another member has this one's static name: it is out of the group for good. A new process can join."""


class Producer(Protocol):
    """Produces in order, without gaps and duplicates of its own making (an idempotent producer)."""

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        """Produce all and await every report; the deliveries are in the records' order.

        A record that can never be taken (too large, unknown topic, not authorised) has `error` set in its
        delivery. Anything else that goes wrong raises `LogUnavailable`.
        """
        ...


class Offsets(Protocol):
    """What a partition holds. Both raise `LogUnavailable`, about this partition alone."""

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """(low watermark, log end): the first offset there is and the next one to be written."""
        ...

    async def partitions(self, topic: str) -> int:
        """How many partitions the topic has now. Raises `LogUnavailable`, also if there is no such topic."""
        ...

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        """The offset of the first record whose timestamp is `timestamp` (ms) or later; if there is none, what was
        the log end when this was asked."""
        ...


class Reader(Offsets, Protocol):
    """Reads given ranges, outside any group."""

    async def read(self, topic: str, partition: int, start: int, end: int) -> list[Fetched]:
        """The records with start ≤ offset < end that compaction and retention have left, in order."""
        ...


Rebalanced = Callable[[Sequence[TopicPartition]], Awaitable[None]]


class Consumer(Protocol):
    """A member of a consumer group. `on_assigned` and `on_revoked` run to their end before anything else
    is polled; after `on_revoked` returns, another member may own the partitions."""

    async def poll(self, max_records: int, timeout: float) -> list[Fetched]:
        """Up to `max_records` that are there now; waits up to `timeout` seconds for the first.

        Raises `LogUnavailable`, and from then on always `MembershipLost` once it is out of the group for good.
        What concerns one partition is `PartitionUnavailable`, raised once; the next poll delivers the others.
        """
        ...

    async def commit(
        self, positions: Mapping[TopicPartition, int], notes: Mapping[TopicPartition, str] | None = None
    ) -> None:
        """Commit the next offsets to read, each with the note that `noted` returns. Raises `LogUnavailable`; a
        partition that is lost, or whose topic is gone, is not an error."""
        ...

    async def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int | None]:
        """The committed positions, None where there is none."""
        ...

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from `offset`; only for an assigned partition."""
        ...

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """Deliver nothing of these until `resume`, or until they are revoked."""
        ...

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """The inverse of `pause`."""
        ...

    async def close(self) -> None:
        """Leave the group."""
        ...


class Subscriber(Consumer, Protocol):
    """A group member whose topics can be replaced."""

    async def noted(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, str]]:
        """The committed positions with their notes, of those that have one. Raises `LogUnavailable`."""
        ...

    def subscribe(self, topics: Sequence[str]) -> None:
        """Read these topics from the next rebalance on."""
        ...


class TopicCatalog(Protocol):
    """Which topics there are."""

    async def topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        """The id (KIP-516) of each of `names` that exists and may be described. Raises `LogUnavailable`."""
        ...
