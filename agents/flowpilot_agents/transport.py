"""Faust's `kafka://` transport with three parts replaced: producing, delivery to the agent, and committing.

Faust's consumer still holds the group membership, the assignment, the positions and the fetching (aiokafka, in
its own thread). Each override names what it works around; the canary tests show it against the pinned version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, cast

from aiokafka.errors import CommitFailedError, IllegalStateError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport import producer as faust_producer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, RecordMetadata

from flowpilot.ports.log import Fetched, Producer, Record, as_time
from flowpilot_agents.execution import Delivered, Executions
from flowpilot_agents.records import read_leniently
from flowpilot_agents.table import BulkRecovery, EngineTables
from flowpilot_agents.watch import end_process

# Faust's 1500 makes a partition that was just resumed wait for the long poll in flight.
FETCH_MAX_WAIT_MS = 50
# The longest that a seek waits for a fetch in flight; also how often an idle loop wakes.
FETCH_TIMEOUT = 0.25
# Deliveries that may wait for the agent before fetching pauses.
DELIVERIES_AHEAD = 2


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """The thread with the aiokafka client."""

    def _create_worker_consumer(self, transport: driver.Transport) -> Any:
        read_leniently()
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_MAX_WAIT_MS
        return consumer

    async def committed(self, partitions: Iterable[TP]) -> dict[TP, int | None]:
        """The group's positions as the broker has them, None where there is none."""
        tps = list(partitions)
        consumer = self._ensure_consumer()

        async def fetch() -> list[int | None]:
            return list(await asyncio.gather(*(consumer.committed(TopicPartition(*tp)) for tp in tps)))

        return dict(zip(tps, await self.call_thread(fetch), strict=True))

    async def positions(self, partitions: Iterable[TP]) -> dict[TP, int]:
        """The next offsets that aiokafka would return."""
        tps = list(partitions)
        consumer = self._ensure_consumer()

        async def fetch() -> list[int]:
            return list(await asyncio.gather(*(consumer.position(TopicPartition(*tp)) for tp in tps)))

        return dict(zip(tps, await self.call_thread(fetch), strict=True))

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        # Faust's own swallows some errors and then crashes in order, committing once more on its way out.
        wanted = {TopicPartition(*tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items()}
        try:
            await self._ensure_consumer().commit(wanted)
        except (CommitFailedError, IllegalStateError):
            return False  # rebalanced meanwhile: whoever has the partition reads the records again
        return True

    def show_activity(self) -> None:
        """A member that has nothing to fetch would leave the group as if it were stuck, and not come back."""
        self.thread_loop.call_soon_threadsafe(self._show_activity)

    def _show_activity(self) -> None:
        with self._ensure_consumer()._subscription.fetch_context():
            pass

    def pause_fetching(self, partitions: Iterable[TP], *, paused: bool) -> None:
        """Pause or resume in aiokafka itself, in the order of the calls."""
        self.thread_loop.call_soon_threadsafe(self._pause_fetching, set(partitions), paused)

    def _pause_fetching(self, partitions: set[TP], paused: bool) -> None:
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        found = [tp for tp in (TopicPartition(*tp) for tp in partitions) if tp in assigned]
        (consumer.pause if paused else consumer.resume)(*found)


class Consumer(driver.Consumer):
    """Faust's consumer; acknowledgement and commit are ours, batches go to the agent whole."""

    _thread: ConsumerThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._executions: Executions = self.app.executions  # type: ignore[attr-defined]
        self._events: str = self.app.events_topic  # type: ignore[attr-defined]
        self._fetching = asyncio.Lock()
        self._committing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._stored: dict[int, int] = {}
        self._executions.on_room = self._changed.set
        self._executions.on_stopped = self._pause_stopped

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # -- delivery -------------------------------------------------------------------------------------------

    async def _drain_messages(self, fetcher: Any) -> None:
        # Faust's makes four tasks a record, and an event that it decodes; the agent gets lists instead.
        try:
            while not (self.should_stop or fetcher.should_stop):
                await self._until_fetchable()
                await self._fetch()
        except asyncio.CancelledError:
            # Faust's fetcher would take it for a crash if the app is stopped during a rebalance.
            if not self.app.should_stop:
                raise
        except self.consumer_stopped_errors as error:
            if not self.app.should_stop:
                end_process("the consumer was closed", error)
        except Exception as error:  # noqa: BLE001 - Faust would restart the fetcher somewhere else
            end_process("reading from Kafka failed", error)

    async def _until_fetchable(self) -> None:
        # Faust's looks every second.
        while not (self.flow_active and self._get_active_partitions() and self._has_room()):
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), self.app.conf.broker_max_poll_interval / 4)
            except TimeoutError:
                if self._has_room():  # else the engine is stuck, and the group should know
                    self._thread.show_activity()

    def _has_room(self) -> bool:
        inbox = cast(Any, self._executions.inbox)
        return inbox is None or inbox.qsize() < DELIVERIES_AHEAD

    async def _fetch(self) -> None:
        async with self._fetching:
            assignment = self._executions.assignment
            active = set(self._get_active_partitions())
            found = await self._getmany(active, FETCH_TIMEOUT)
            if assignment != self._executions.assignment or not self.flow_active:
                return  # dropped: after every change of the assignment all positions are set anew
            events: list[Fetched] = []
            for tp, records in found.items():
                if tp.topic == self._events:
                    events += map(fetched, records)
                else:
                    self._recovery.load(tp, map(fetched, records))
            if events and self._executions.inbox is not None:
                self._executions.inbox.put_nowait(Delivered(assignment, events))
            if not found and self.app.in_recovery:
                recovering = active & self._recovery.active_tps
                self._recovery.read_until(await self._thread.positions(recovering))

    @property
    def _recovery(self) -> BulkRecovery:
        return cast(EngineTables, self.app.tables).recovery

    async def read_from(self, starts: Mapping[int, int], committed: Mapping[int, int | None]) -> None:
        """Deliver the events of these partitions from these offsets on, unless they are being given back."""
        tps = {TP(self._events, partition): offset for partition, offset in starts.items()}
        assignment = self._executions.assignment
        async with self._fetching:  # nothing fetched before may be returned after
            await self._thread.seek_wait(tps)
            if assignment != self._executions.assignment:
                return
            self._executions.serve()
            self._stored = {partition: offset for partition, offset in committed.items() if offset is not None}
            self.resume_partitions(tps)

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """A fetch under way when the assignment changed is dropped: it must not take from the new position."""
        async with self._fetching:
            await super().seek_wait(partitions)

    async def committed(self) -> dict[int, int | None]:
        """The group's positions of the assigned event partitions."""
        events = [tp for tp in self.assignment() if tp.topic == self._events]
        found = await self._thread.committed(events)
        return {tp.partition: offset for tp, offset in found.items()}

    def pause_partitions(self, tps: Iterable[TP]) -> None:
        """Faust only filters what aiokafka goes on to fetch; unread results hold up all other partitions."""
        tps = set(tps)
        super().pause_partitions(tps)
        self._thread.pause_fetching(tps, paused=True)

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """The inverse of `pause_partitions`."""
        tps = set(tps)
        super().resume_partitions(tps)
        self._thread.pause_fetching(tps, paused=False)
        self._changed.set()

    def _pause_stopped(self, partitions: Iterable[int]) -> None:
        self.pause_partitions({TP(self._events, partition) for partition in partitions})

    def resume_flow(self) -> None:
        super().resume_flow()
        self._changed.set()

    def stop_flow(self) -> None:
        super().stop_flow()
        self._executions.suspend()

    # -- acknowledgement ------------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Finish the batch under way and commit it, before anybody else may own the partitions."""
        self._executions.suspend()
        await super().on_partitions_revoked(revoked)
        self._executions.give_back()
        self._stored.clear()

    async def wait_empty(self) -> None:
        """Faust's counts messages that it tracked; here it is the one batch under way."""
        limit = self.app.conf.broker_rebalance_timeout / 2
        await self._executions.idle(limit)
        try:
            await asyncio.wait_for(self.force_commit(), limit)
        except TimeoutError:
            pass  # what is not committed is read again

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit what is acknowledged. Faust's may pass over an unacknowledged record, and forgets failures."""
        async with self._committing:
            executions, term = self._executions, self._executions.term
            due = {p: n for p, n in executions.acknowledged.items() if n > self._stored.get(p, -1)}
            if not due:
                return False
            try:
                done = await self._thread.commit({TP(self._events, p): n for p, n in due.items()})
            except Exception as error:  # noqa: BLE001 - Faust would take the commit for done
                end_process("the positions could not be committed", error)
            if not done or term != executions.term:
                return False
            self._stored.update(due)
            return True

    async def verify_all_partitions_active(self) -> None:
        """Faust judges by counters that only its own delivery keeps."""


class FaustProducer(faust_producer.Producer):
    """What Faust produces goes through the engine's producer. The engine's own records do not come this way."""

    @property
    def _log(self) -> Producer:
        return cast(Producer, self.app.log_producer)  # type: ignore[attr-defined]

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Any,
        *,
        transactional_id: str | None = None,
    ) -> Awaitable[RecordMetadata]:
        pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
        record = Record(topic, key, value, partition, tuple(pairs))
        return asyncio.ensure_future(self._sent(record))

    async def _sent(self, record: Record) -> RecordMetadata:
        [delivery] = await self._log.send([record])
        if delivery.error is not None:
            raise ValueError(f"a record for {record.topic} was refused: {delivery.error}")
        tp = TP(record.topic, delivery.partition)
        return RecordMetadata(record.topic, delivery.partition, tp, delivery.offset)

    async def send_and_wait(self, *args: Any, **kwargs: Any) -> RecordMetadata:
        return await (await self.send(*args, **kwargs))

    async def flush(self) -> None:
        await self.buffer.flush()

    def supports_headers(self) -> bool:
        return True


class Transport(driver.Transport):
    """`kafka://`, with the classes above."""

    Consumer = Consumer
    Producer = FaustProducer


def fetched(record: Any) -> Fetched:
    """aiokafka's record as the log ports have it; events and changelog are of FlowPilot's own topics."""
    headers = record.headers
    return Fetched(
        record.topic,
        record.partition,
        record.offset,
        as_time(record.timestamp),
        record.key,
        record.value,
        tuple((name, value or b"") for name, value in headers) if headers else (),
    )
