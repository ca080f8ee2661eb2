"""The consumer port on confluent-kafka: one thread makes all its calls, handlers run on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, cast

from confluent_kafka import Consumer as ConfluentConsumer
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as ConfluentPartition

from flowpilot.adapters.kafka.config import Properties
from flowpilot.adapters.kafka.fetched import PASSING, fetched
from flowpilot.adapters.kafka.unreadable import UNREADABLE, lost
from flowpilot.ports.log import (
    Fetched,
    LogUnavailable,
    MembershipLost,
    PartitionUnavailable,
    Rebalanced,
    TopicPartition,
)

# The group is between two generations. A member that goes on belongs to the next one in a moment, and keeps its
# partitions until `on_revoked` is over, which no call of this thread overtakes.
_UNSETTLED = frozenset({KafkaError.ILLEGAL_GENERATION, KafkaError.REBALANCE_IN_PROGRESS})

# The member lost the partition meanwhile: whoever has it now reads the records again.
_LOST = _UNSETTLED | frozenset(
    {
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError._ASSIGNMENT_LOST,
        KafkaError._NO_OFFSET,
        KafkaError._STATE,
    }
)

# Another owner of these may commit, or nobody any more; the other partitions of the request are committed.
_GONE = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED})

# Seconds: how long a commit or a seek may have to wait for a poll that finds nothing.
_SLICE = 0.05

# Seconds: how long a commit waits for the group to settle, and how often it asks.
_SETTLES_WITHIN = 1.0
_ASKS_EVERY = 0.02


async def _nothing(_: Sequence[TopicPartition]) -> None:
    return None


class KafkaConsumer:
    """See `flowpilot.ports.log.Consumer`. Made and used on one event loop.

    confluent-kafka lets one call in at a time, and a poll or a rebalance callback counts as one: a call from
    another thread blocks until it is over. So one thread of this consumer's own makes all calls; a poll is cut
    into short ones, and what else is asked is done between them, or within a callback while its handler runs.
    """

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
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flowpilot-consumer")
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._on_assigned, self._on_revoked = on_assigned, on_revoked
        self._moved: set[TopicPartition] = set()  # revoked since the last poll began
        self._seeks: dict[TopicPartition, int] = {}  # to be done before anything else is fetched
        self._paused: set[TopicPartition] = set()
        self._under_way: asyncio.Future[list[Fetched]] | None = None
        self._failed: BaseException | None = None  # by a handler: for good
        self._errors: deque[LogUnavailable] = deque()
        self._lost: MembershipLost | None = None  # for good
        self._properties, self._group = properties, properties["group.id"]
        self._begun: dict[TopicPartition, int] = {}  # where reading was told to begin
        self._closing = self._closed = self._handling = False
        self._subscribe(topics)

    def subscribe(self, topics: Sequence[str]) -> None:
        """Replace the topics that are read; takes effect with the next rebalance."""
        self._do(lambda: self._subscribe(topics))

    def _subscribe(self, topics: Sequence[str]) -> None:
        self._consumer.subscribe(
            list(topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
        )

    def _do(self, job: Callable[[], Any]) -> Future[Any]:
        """Have the thread do the job as soon as it can; jobs keep their order."""
        done: Future[Any] = Future()

        def run() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(job())
            except BaseException as error:  # noqa: BLE001 - it is raised where the job is awaited
                done.set_exception(error)

        self._jobs.put(run)
        if not self._closed:
            self._thread.submit(self._serve)
        return done

    def _serve(self) -> None:
        while not self._jobs.empty():
            self._jobs.get()()

    def _assigned(self, consumer: ConfluentConsumer, partitions: list[ConfluentPartition]) -> None:
        # The handler goes first, so that what it sought and paused holds from the first fetch on.
        self._handle(self._on_assigned, partitions)
        for item in partitions:
            item.offset = self._seeks.pop(TopicPartition(item.topic, item.partition), item.offset)
            self._begun[TopicPartition(item.topic, item.partition)] = item.offset
        consumer.incremental_assign(partitions)
        # librdkafka remembers a pause from an earlier assignment, and would never deliver the partition again.
        consumer.resume(partitions)
        held = [item for item in partitions if (item.topic, item.partition) in self._paused]
        if held:
            consumer.pause(held)

    def _revoked(self, consumer: ConfluentConsumer, partitions: list[ConfluentPartition]) -> None:
        gone = {TopicPartition(item.topic, item.partition) for item in partitions}
        self._moved |= gone
        self._handle(self._on_revoked, partitions)
        self._paused -= gone

    def _handle(self, handler: Rebalanced, partitions: list[ConfluentPartition]) -> None:
        named = [TopicPartition(item.topic, item.partition) for item in partitions]
        running = cast(Coroutine[Any, Any, None], handler(named))
        handled = asyncio.run_coroutine_threadsafe(running, self._loop)
        handled.add_done_callback(lambda _: self._jobs.put(lambda: None))
        self._handling = True
        while not handled.done():
            self._jobs.get()()  # the handler's own commits, and whatever else it waits for
        self._handling = False
        try:
            handled.result()
        except BaseException as error:  # noqa: BLE001 - librdkafka would swallow it; `poll` raises it
            self._failed = error

    async def poll(self, max_records: int, timeout: float) -> list[Fetched]:
        """See the port. A poll that is cancelled loses nothing: the next one returns what it had fetched."""
        if self._under_way is None:
            self._under_way = self._loop.run_in_executor(self._thread, self._poll, max_records, timeout)
        await asyncio.wait([self._under_way])
        found, self._under_way = self._under_way.result(), None
        if (ended := self._failed or self._lost) is not None:
            raise ended
        if self._errors and not found:  # what was fetched with them goes first
            raise self._errors.popleft()
        if self._seeks:  # came meanwhile: what was fetched there is from before
            found = [record for record in found if record[:2] not in self._seeks]
        return found

    def _poll(self, max_records: int, timeout: float) -> list[Fetched]:
        # consume(n, timeout) waits for n or for the whole time: wait for the first alone, take the rest as it is.
        first = self._first(time.monotonic() + timeout)
        if first is None:
            return []
        self._moved.clear()
        rest = self._consumer.consume(max_records - 1, 0) if max_records > 1 else []
        # If a rebalance ran just now, librdkafka took back what it concerns, but for the first message.
        moved = (first.topic(), first.partition()) in self._moved
        found, skipped = [], set[tuple[str | None, int | None]]()
        for message in rest if moved else (first, *rest):
            error = message.error()
            if error is None:
                found.append(fetched(message))
            elif error.code() in UNREADABLE:
                if (message.topic(), message.partition()) not in skipped:
                    skipped.add((message.topic(), message.partition()))
                    found += self._skip(message)
            elif _is_final(error):
                self._lose(error)
            elif not (error.retriable() or error.code() in PASSING):
                self._errors.append(_unavailable(message, error))
        return found

    def _first(self, deadline: float) -> Any:
        while self._failed is None and not self._errors:
            self._serve()
            if self._lost is not None:  # by a commit just now
                break
            while self._seeks:
                self._seek(*self._seeks.popitem())
            left = deadline - time.monotonic()
            message = self._consumer.poll(min(max(left, 0.0), _SLICE))
            if message is not None:
                return message
            if left <= _SLICE or self._closing:
                break
        return None

    def _skip(self, message: Any) -> list[Fetched]:
        """The records of a batch that cannot be read; what is behind it is read next."""
        place = TopicPartition(message.topic(), message.partition())
        [position] = self._consumer.position([ConfluentPartition(*place)])
        records = lost(message, max(position.offset, self._begun.get(place, 0)), self._properties)
        if records:
            self._seek(place, records[-1].offset + 1)
        return records

    async def commit(
        self, positions: Mapping[TopicPartition, int], notes: Mapping[TopicPartition, str] | None = None
    ) -> None:
        """See the port."""
        if positions and not self._closed:
            notes = notes or {}
            offsets = [ConfluentPartition(*tp, offset, notes.get(tp, "")) for tp, offset in positions.items()]
            await asyncio.wrap_future(self._do(lambda: self._commit(offsets)))

    def _commit(self, offsets: list[ConfluentPartition]) -> None:
        deadline = time.monotonic() + _SETTLES_WITHIN
        refused = self._refused(offsets)
        # Within a handler waiting is in vain: the rebalance waits for the handler.
        while not self._handling and _UNSETTLED & {e.code() for e in refused} and time.monotonic() < deadline:
            time.sleep(_ASKS_EVERY)
            refused = self._refused(offsets)
        for reason in refused:
            if _is_final(reason):
                self._lose(reason)
            elif reason.code() not in _LOST | _GONE:
                raise LogUnavailable(f"{reason.name()}: {reason.str()}")

    def _refused(self, offsets: list[ConfluentPartition]) -> list[KafkaError]:
        """Commit; the errors of the request or of its partitions."""
        try:
            answered = self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            return [error.args[0]]
        return [item.error for item in answered if item.error is not None]

    def _lose(self, error: KafkaError) -> None:
        # librdkafka reports it once, and from then on polls find nothing. It comes from a name that two processes
        # share, and also from a member that commits while it joins again at a new coordinator.
        self._lost = MembershipLost(
            f"another member of the group {self._group} has this process's name ({error.str()}): start it again; "
            "if that repeats, two processes have the same FLOWPILOT_MEMBER_ID"
        )

    async def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int | None]:
        """See the port."""
        return {
            TopicPartition(item.topic, item.partition): item.offset if item.offset >= 0 else None
            for item in await self._stored(partitions)
        }

    async def noted(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, str]]:
        """See the port."""
        return {
            TopicPartition(item.topic, item.partition): (item.offset, item.metadata)
            for item in await self._stored(partitions)
            if item.offset >= 0 and item.metadata
        }

    async def _stored(self, partitions: Iterable[TopicPartition]) -> list[Any]:
        wanted = [ConfluentPartition(*tp) for tp in partitions]
        try:
            found: list[Any] = await asyncio.wrap_future(self._do(lambda: self._consumer.committed(wanted, 10)))
        except KafkaException as error:
            raise LogUnavailable(str(error)) from None
        return found

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """See the port. What a poll under way has taken of the partition is not delivered."""
        self._seeks[partition] = offset
        for error in list(self._errors):  # of before
            if isinstance(error, PartitionUnavailable) and error.partition == partition:
                self._errors.remove(error)

    def _seek(self, partition: TopicPartition, offset: int) -> None:
        # incremental_assign of a partition that is assigned already fails; seek fails before the first fetch.
        try:
            self._consumer.incremental_unassign([ConfluentPartition(*partition)])
        except KafkaException:
            return  # it was revoked meanwhile
        self._begun[partition] = offset
        self._consumer.incremental_assign([ConfluentPartition(*partition, offset)])
        if partition in self._paused:
            self._consumer.pause([ConfluentPartition(*partition)])

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """See the port. A poll under way may still return what it has taken."""
        wanted = set(partitions)
        self._paused |= wanted
        self._do(lambda: self._consumer.pause([ConfluentPartition(*tp) for tp in wanted]))

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """See the port."""
        wanted = set(partitions)
        self._paused -= wanted
        self._do(lambda: self._consumer.resume([ConfluentPartition(*tp) for tp in wanted]))

    async def close(self) -> None:
        """See the port. `on_revoked` is called for what it had; a poll under way ends first."""
        if self._closing:
            return
        self._closing = True
        await self._loop.run_in_executor(self._thread, self._leave)
        self._closed = True  # until now handlers may have committed
        self._thread.shutdown()
        if self._failed is not None:
            raise self._failed

    def _leave(self) -> None:
        self._serve()
        self._consumer.close()


def _unavailable(message: Any, error: KafkaError) -> LogUnavailable:
    reason = f"{error.name()}: {error.str()}"
    topic, partition = message.topic(), message.partition()
    if topic is None or partition is None:
        return LogUnavailable(reason)
    return PartitionUnavailable(TopicPartition(topic, partition), reason)


def _is_final(error: KafkaError) -> bool:
    return error.fatal() or error.code() in (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID)
