"""The producer port on confluent-kafka: a batch is produced, then awaited with one wake-up of the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaError, KafkaException
from confluent_kafka import Producer as ConfluentProducer

from flowpilot.adapters.kafka.config import Properties
from flowpilot.ports.log import Delivery, LogUnavailable, Record, sendable

# librdkafka's RD_KAFKA_PARTITION_UA: its partitioner chooses.
_ANY_PARTITION = -1

# Errors of one record that no repetition mends.
_PERMANENT = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError._INVALID_ARG,
        KafkaError.INVALID_RECORD,
        KafkaError.TOPIC_EXCEPTION,
    }
)


class _Batch:
    """Counts a batch's delivery reports down, on librdkafka's polling thread, and wakes the loop once."""

    __slots__ = ("deliveries", "done", "failure", "left", "lock", "loop", "served")

    def __init__(self, size: int, loop: asyncio.AbstractEventLoop, served: Callable[[], None]) -> None:
        self.deliveries: list[Delivery | None] = [None] * size
        self.left = size
        self.lock = threading.Lock()
        self.loop = loop
        self.done: asyncio.Future[None] = loop.create_future()
        self.failure: str | None = None
        self.served = served

    def report(self, index: int, error: Any, message: Any) -> None:
        """librdkafka's delivery report of the record at `index`."""
        if error is None:
            kind, timestamp = message.timestamp()
            appended = timestamp if kind == TIMESTAMP_LOG_APPEND_TIME else None
            self.deliveries[index] = Delivery(message.partition(), message.offset(), timestamp=appended)
        else:
            self._fail(index, error, -1 if message is None else message.partition())
        self._count()

    def refuse(self, index: int, error: Any) -> None:
        """The record was not even queued."""
        self._fail(index, error, -1)
        self._count()

    def _fail(self, index: int, error: Any, partition: int) -> None:
        self.deliveries[index] = Delivery(partition, -1, error.str())
        if error.code() not in _PERMANENT:
            self.failure = f"{error.name()}: {error.str()}"

    def _count(self) -> None:
        with self.lock:  # refusals come on the loop's thread
            self.left -= 1
            finished = self.left == 0
        if finished:
            try:
                self.loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the loop is closed: nobody waits any more
                pass

    def _wake(self) -> None:
        self.served()
        if not self.done.done():
            self.done.set_result(None)


class KafkaProducer:
    """One idempotent producer and the thread that serves its delivery reports.

    `send` may be called by several tasks of one event loop; `close` waits for what is under way.
    """

    def __init__(self, properties: Properties) -> None:
        self._producer = ConfluentProducer(properties)
        self._batches = 0
        self._expecting = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="flowpilot-producer", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        # Reports are served once a batch is queued whole: before, every report would fight the producing
        # thread for the interpreter (a fifth more CPU a record).
        while not self._closing.is_set():
            if self._expecting.wait(1.0):
                self._producer.poll(0.1)

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        """See `flowpilot.ports.log.Producer`."""
        if not records:
            return []
        batch = _Batch(len(records), asyncio.get_running_loop(), self._served)
        self._batches += 1
        produce, report = self._producer.produce, batch.report
        for index, (topic, key, value, partition, headers) in enumerate(records):
            while True:
                try:
                    produce(
                        topic,
                        value,
                        key,
                        _ANY_PARTITION if partition is None else partition,
                        partial(report, index),
                        # The binding dereferences NULL, and the process dies, for a name that cannot be encoded.
                        headers=list(sendable(headers)) if headers else None,
                    )
                except BufferError:
                    self._expecting.set()
                    await asyncio.sleep(0.005)  # librdkafka's queue is full, and drains on its own threads
                    continue
                except KafkaException as error:
                    batch.refuse(index, error.args[0])
                break
        self._expecting.set()
        await batch.done
        if batch.failure is not None:
            raise LogUnavailable(batch.failure)
        return batch.deliveries  # type: ignore[return-value]  # every report has come: none is None

    def _served(self) -> None:
        self._batches -= 1
        if self._batches == 0:
            self._expecting.clear()

    def close(self, timeout: float = 10.0) -> None:
        """Flush for up to `timeout` seconds and stop the thread."""
        self._producer.flush(timeout)
        self._closing.set()
        self._expecting.set()
        self._thread.join(timeout)


class DeferredProducer:
    """Made when something is sent: an idempotent producer needs write permission to begin with (KIP-679), which
    commands that only read may lack."""

    def __init__(self, properties: Properties) -> None:
        self._properties = properties
        self._producer: KafkaProducer | None = None

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        """See the port."""
        if self._producer is None:
            self._producer = KafkaProducer(self._properties)
        return await self._producer.send(records)

    def close(self) -> None:
        """As `KafkaProducer.close`."""
        if self._producer is not None:
            self._producer.close()
