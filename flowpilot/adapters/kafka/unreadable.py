"""Batches that librdkafka cannot read, such as one of 4 KB that decompresses to more than it is willing to hold.

It reports the batch and fetches it again, for good: nothing behind it is delivered. So the end of the batch is
looked up, and each of its records is delivered as one that is lost.
"""

from __future__ import annotations

from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicPartition

from flowpilot.adapters.kafka.config import Properties
from flowpilot.ports.log import RECORD_LOST, Fetched

UNREADABLE = frozenset({KafkaError._BAD_COMPRESSION, KafkaError._BAD_MSG})

# Records of a batch that are told at once, which may have millions: whoever reads on is told the next ones.
MOST = 10_000
_PATIENCE = 10.0  # seconds without an answer


def lost(message: Any, start: int, properties: Properties) -> list[Fetched]:
    """Records of the batch that the error `message` is about, from the offset `start` on: at most `MOST`, none if
    it cannot be told now. `properties` are those of the consumer that was told."""
    topic, partition, base = message.topic(), message.partition(), message.offset()
    first = max(base, start)
    end = _end(topic, partition, base, first, properties)
    return [Fetched(topic, partition, offset, -1, None, b"", ((RECORD_LOST, b""),)) for offset in range(first, end)]


def _end(topic: str, partition: int, base: int, first: int, properties: Properties) -> int:
    """The first offset behind the batch that begins at `base`, `MOST` behind `first` at most; `first` itself if the
    broker does not answer."""
    kept = {name: value for name, value in properties.items() if not name.startswith(("group.", "partition."))}
    consumer = Consumer(
        {**kept, "group.id": f"{properties['group.id']}-reader", "enable.partition.eof": True, "error_cb": _ignore}
    )
    try:
        inside, step, most = first, 1, first + MOST
        found: bool | None = True
        while inside + step < most:
            found = _is_inside(consumer, topic, partition, inside + step, base)
            if not found:
                break
            inside, step = inside + step, step * 2
        outside = min(inside + step, most)
        while found is not None and outside - inside > 1:
            middle = (inside + outside) // 2
            found = _is_inside(consumer, topic, partition, middle, base)
            inside, outside = (middle, outside) if found else (inside, middle)
        return first if found is None else outside
    finally:
        consumer.close()


def _is_inside(consumer: Consumer, topic: str, partition: int, offset: int, base: int) -> bool | None:
    """Whether what is fetched from `offset` is the batch at `base`; None if nothing answers."""
    _, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_PATIENCE) or (0, -1)
    if high < 0:
        return None
    if offset >= high:
        return False
    consumer.assign([TopicPartition(topic, partition, offset)])
    try:
        message = consumer.poll(_PATIENCE)
        if message is None:
            return None
        error = message.error()
        if error is None or error.code() == KafkaError._PARTITION_EOF:
            return False
        if error.code() in UNREADABLE:
            return bool(message.offset() == base)
        return None
    finally:
        consumer.unassign()


def _ignore(_: KafkaError) -> None:
    """Who called has a consumer that reports the same."""
