"""The consumer port on confluent-kafka: one thread polls, rebalance handlers run on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from confluent_kafka import Consumer as ConfluentConsumer
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as ConfluentPartition

from flowpilot.adapters.kafka.config import Properties
from flowpilot.ports.log import Fetched, LogUnavailable, Rebalanced, TopicPartition

# The member lost the partition meanwhile: whoever has it now reads the records again.
_LOST = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError._ASSIGNMENT_LOST,
        KafkaError._NO_OFFSET,
        KafkaError._STATE,
    }
)


async def _nothing(_: Sequence[TopicPartition]) -> None:
    return None


class KafkaConsumer:
    """See `flowpilot.ports.log.Consumer`. Made and used on one event loop."""

    def __init__(
        self,
        properties: Properties,
        topics: Sequence[str],
        *,
        on_assigned: Rebalanced = _nothing,
        on_revoked: Rebalanced = _nothing,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._consumer = ConfluentConsumer(properties)
        self._polling = ThreadPoolExecutor(1, thread_name_prefix="flowpilot-consumer")
        self._on_assigned, self._on_revoked = on_assigned, on_revoked
        self._rebalancing = False
        self._moved: set[TopicPartition] = set()  # by a rebalance: revoked, or sought in its handler
        self._seeks: dict[TopicPartition, int] = {}
        self._closed = False
        self._under_way: asyncio.Future[list[Fetched]] | None = None
        self._failed: BaseException | None = None  # by a handler: for good
        self._error: LogUnavailable | None = None
        self.subscribe(topics)

    def subscribe(self, topics: Sequence[str]) -> None:
        """Replace the topics that are read; takes effect with the next rebalance."""
        self._consumer.subscribe(
            list(topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
        )

    def _assigned(self, consumer: ConfluentConsumer, partitions: list[ConfluentPartition]) -> None:
        # Assigned here, so that the handler may already seek and pause.
        consumer.incremental_assign(partitions)
        self._handle(self._on_assigned, partitions)

    def _revoked(self, consumer: ConfluentConsumer, partitions: list[ConfluentPartition]) -> None:
        self._moved.update(TopicPartition(item.topic, item.partition) for item in partitions)
        self._handle(self._on_revoked, partitions)

    def _handle(self, handler: Rebalanced, partitions: list[ConfluentPartition]) -> None:
        named = [TopicPartition(item.topic, item.partition) for item in partitions]
        running = cast(Coroutine[Any, Any, None], handler(named))
        self._rebalancing = True
        try:
            asyncio.run_coroutine_threadsafe(running, self._loop).result()
        except BaseException as error:  # noqa: BLE001 - librdkafka would swallow it; `poll` raises it
            self._failed = error
        finally:
            self._rebalancing = False

    async def poll(self, max_records: int, timeout: float) -> list[Fetched]:
        """See the port. A poll that is cancelled loses nothing: the next one returns what it had fetched."""
        if self._under_way is None:
            seeks, self._seeks = self._seeks, {}
            self._under_way = self._loop.run_in_executor(self._polling, self._poll, max_records, timeout, seeks)
        await asyncio.wait([self._under_way])
        found, self._under_way = self._under_way.result(), None
        if self._failed is not None:
            raise self._failed
        if self._error is not None and not found:  # what was fetched with it goes first
            error, self._error = self._error, None
            raise error
        if self._seeks:  # came meanwhile: what was fetched there is from before
            found = [record for record in found if record[:2] not in self._seeks]
        return found

    def _poll(self, max_records: int, timeout: float, seeks: Mapping[TopicPartition, int]) -> list[Fetched]:
        if self._failed is not None or self._error is not None:
            return []
        for partition, offset in seeks.items():
            try:
                self._seek(partition, offset)
            except KafkaException:
                continue  # it was revoked meanwhile
        # consume(n, timeout) waits for n or for the whole time: wait for the first alone, take the rest as it is.
        first = self._consumer.poll(timeout)
        if first is None:
            return []
        self._moved.clear()
        rest = self._consumer.consume(max_records - 1, 0) if max_records > 1 else []
        # If a rebalance ran just now, librdkafka took back what it concerns, but for the first message.
        moved = (first.topic(), first.partition()) in self._moved
        found = []
        for message in rest if moved else (first, *rest):
            error = message.error()
            if error is None:
                found.append(fetched(message))
            elif error.fatal() or not (error.retriable() or error.code() in PASSING):
                self._error = LogUnavailable(f"{error.name()}: {error.str()}")
        return found

    async def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """See the port."""
        if not positions:
            return
        offsets = [ConfluentPartition(tp.topic, tp.partition, offset) for tp, offset in positions.items()]
        await asyncio.to_thread(self._commit, offsets)

    def _commit(self, offsets: list[ConfluentPartition]) -> None:
        try:
            answered = self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            refused = [error.args[0]]
        except RuntimeError:
            return  # closed meanwhile
        else:
            refused = [item.error for item in answered if item.error is not None]
        for reason in refused:
            if reason.code() not in _LOST:
                raise LogUnavailable(f"{reason.name()}: {reason.str()}")

    async def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int | None]:
        """See the port."""
        wanted = [ConfluentPartition(*tp) for tp in partitions]
        try:
            found = await asyncio.to_thread(self._consumer.committed, wanted, 10)
        except KafkaException as error:
            raise LogUnavailable(str(error)) from None
        return {
            TopicPartition(item.topic, item.partition): item.offset if item.offset >= 0 else None for item in found
        }

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """See the port. Within a rebalance handler at once, else before the next poll."""
        if self._rebalancing:
            self._moved.add(partition)
            self._seek(partition, offset)
        else:
            self._seeks[partition] = offset

    def _seek(self, partition: TopicPartition, offset: int) -> None:
        # incremental_assign of a partition that is assigned already fails; seek fails before the first fetch.
        self._consumer.incremental_unassign([ConfluentPartition(*partition)])
        self._consumer.incremental_assign([ConfluentPartition(*partition, offset)])

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """See the port. A poll under way may still return what it had taken."""
        self._consumer.pause([ConfluentPartition(*tp) for tp in partitions])

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """See the port."""
        self._consumer.resume([ConfluentPartition(*tp) for tp in partitions])

    async def close(self) -> None:
        """See the port. `on_revoked` is called for what it had; a poll under way ends first."""
        if not self._closed:
            self._closed = True
            await self._loop.run_in_executor(self._polling, self._consumer.close)
            self._polling.shutdown()
            if self._failed is not None:
                raise self._failed


# Reported while a broker is away or a topic is not there yet; librdkafka goes on trying.
PASSING = frozenset(
    {
        KafkaError._PARTITION_EOF,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._RESOLVE,
        KafkaError._MAX_POLL_EXCEEDED,
    }
)


def fetched(message: Any) -> Fetched:
    """confluent-kafka's message as the port's record."""
    headers = message.headers()
    return Fetched(
        message.topic(),
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        tuple((name, value or b"") for name, value in headers) if headers else (),
    )
