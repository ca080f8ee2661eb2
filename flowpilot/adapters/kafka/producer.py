"""The producer port on confluent-kafka: a batch is produced, then awaited with one wake-up of the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Producer as ConfluentProducer

from flowpilot.adapters.kafka.config import Properties
from flowpilot.ports.log import Delivery, LogUnavailable, Record

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

    __slots__ = ("deliveries", "done", "failure", "left", "loop")

    def __init__(self, size: int, loop: asyncio.AbstractEventLoop) -> None:
        self.deliveries: list[Delivery | None] = [None] * size
        self.left = size
        self.loop = loop
        self.done: asyncio.Future[None] = loop.create_future()
        self.failure: str | None = None

    def report(self, index: int, error: Any, message: Any) -> None:
        if error is None:
            self.deliveries[index] = Delivery(message.partition(), message.offset())
        else:
            self.fail(index, error, message.partition() if message is not None else -1)
        self._count()

    def fail(self, index: int, error: Any, partition: int) -> None:
        self.deliveries[index] = Delivery(partition, -1, error.str())
        if error.code() not in _PERMANENT:
            self.failure = f"{error.name()}: {error.str()}"

    def refuse(self, index: int, error: Any) -> None:
        """The record was not even queued."""
        self.fail(index, error, -1)
        self._count()

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            try:
                self.loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the loop is closed: nobody waits any more
                pass

    def _wake(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class KafkaProducer:
    """One idempotent producer and the thread that serves its delivery reports.

    `send` may be called by several tasks of one event loop; `close` waits for what is under way.
    """

    def __init__(self, properties: Properties) -> None:
        self._producer = ConfluentProducer(properties)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="flowpilot-producer", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(0.1)

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        """See `flowpilot.ports.log.Producer`."""
        if not records:
            return []
        batch = _Batch(len(records), asyncio.get_running_loop())
        produce, report = self._producer.produce, batch.report
        for index, record in enumerate(records):
            await self._produce(produce, report, batch, index, record)
        await batch.done
        if batch.failure is not None:
            raise LogUnavailable(batch.failure)
        return batch.deliveries  # type: ignore[return-value]  # every report has come: none is None

    async def _produce(self, produce: Any, report: Any, batch: _Batch, index: int, record: Record) -> None:
        def delivered(error: Any, message: Any) -> None:
            report(index, error, message)

        where = {} if record.partition is None else {"partition": record.partition}
        headers = list(record.headers) or None
        while True:
            try:
                produce(record.topic, record.value, record.key, on_delivery=delivered, headers=headers, **where)
                return
            except BufferError:
                await asyncio.sleep(0.005)  # the queue is full: librdkafka drains it on its own threads
            except KafkaException as error:
                batch.refuse(index, error.args[0])
                return

    def close(self, timeout: float = 10.0) -> None:
        """Flush for up to `timeout` seconds and stop the thread."""
        self._producer.flush(timeout)
        self._closing.set()
        self._thread.join(timeout)
