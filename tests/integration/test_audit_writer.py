"""The audit writer's loop: the in-memory log, whose faults can be arranged, into real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.adapters.postgres.store import PostgresAuditStore
from flowpilot.adapters.prometheus import PrometheusMeter
from flowpilot.audit import batches
from flowpilot.audit.position import AuditStopped
from flowpilot.audit.writer import AuditWriter
from flowpilot.core.dead_letters import dead_letter
from flowpilot.ports.audit import KEPT_BYTES, Batch, Divergence, Outrun, Project, StoreUnavailable
from flowpilot.ports.log import Fetched, Record, TopicPartition
from flowpilot.ports.metrics import METRICS
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.topics import Topics
from tests.audit_history import DEFINITION, Chain, interleaved, spread
from tests.audit_world import AuditWorld
from tests.waiting import eventually_async

pytestmark = pytest.mark.integration

TOPICS = Topics("t")
PARTITIONS = 4


class Flaky(PostgresAuditStore):
    """A store on PostgreSQL whose next answers can be lost, before or after the transaction."""

    def __init__(self, database_url: str) -> None:
        super().__init__(database_url)
        self.faults: list[str] = []
        self.delay = 0.0
        self.writes = self.outrun = 0

    async def write(self, batch: Batch, project: Project) -> Sequence[Divergence]:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "before":
            raise StoreUnavailable("lost on the way there")
        await asyncio.sleep(self.delay)
        try:
            divergences = await super().write(batch, project)
        except Outrun:
            self.outrun += 1
            raise
        self.writes += 1
        if fault == "after":
            raise StoreUnavailable("lost on the way back")
        return divergences


class Catalog:
    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    async def topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        await asyncio.sleep(0)
        return {name: self._log.topic_id(name) for name in names}


class World(AuditWorld):
    """The database of `AuditWorld` with a log before it."""

    def __init__(self, database_url: str) -> None:
        super().__init__(database_url)
        self.ask("DELETE FROM consumer_offset")
        self.log = MemoryLog()
        self.log.create_topic(TOPICS.history, PARTITIONS)
        self.log.create_topic(TOPICS.dead_letters, PARTITIONS)
        self.log.create_topic(TOPICS.definitions, 1, compacted=True)
        self.log.create_topic(TOPICS.fates, 1)

    async def produce(self, records: Iterable[Record]) -> None:
        await self.log.producer().send(list(records))

    def writer(self, store: PostgresAuditStore, group: str = "audit", **options: Any) -> AuditWriter:
        return AuditWriter(
            TOPICS,
            store=store,
            consumer=lambda topics, **handlers: self.log.consumer(group, topics, **handlers),
            reader=self.log.reader(),
            catalog=Catalog(self.log),
            **{"linger": 0.0, **options},
        )

    @asynccontextmanager
    async def running(self, **options: Any) -> AsyncIterator[Flaky]:
        """A running writer, as soon as it reads some partitions; gives its store."""
        store = Flaky(self.url)
        ready = asyncio.Event()
        writer = self.writer(store, on_ready=ready.set, **options)
        task = asyncio.create_task(writer.run())
        try:
            await asyncio.wait_for(ready.wait(), 20)
            yield store
            writer.stop()
            await asyncio.wait_for(task, 20)
        finally:
            task.cancel()
            await store.close()

    async def stored(self, events: int) -> None:
        """Wait until that many events are stored."""
        await eventually_async(lambda: self.one("SELECT count(*) FROM audit_event") >= events)

    def everything_is_sound(self, executions: int) -> None:
        assert self.queries.status_counts() == {"completed": executions}
        assert self.queries.divergences() == []
        assert self.differences() == []


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    made = World(database_url)
    yield made
    made.close()


def events_of(histories: list[Chain]) -> int:
    return sum(len(history.records) for history in histories)


def test_everything_is_stored_and_the_group_told(world: World) -> None:
    histories = spread(40, TOPICS.history, PARTITIONS)
    origin = Fetched("user", 0, 1, 2, b"k", b"{")

    async def go() -> None:
        definitions = LogDefinitions(world.log.producer(), world.log.reader(), TOPICS.definitions)
        await definitions.register(DEFINITION)
        await world.produce(interleaved(histories))
        letter = encode_message(dead_letter(origin, "not_json", "no", "router"))
        await world.produce([Record(TOPICS.dead_letters, b"k", letter)] * 2)
        async with world.running():
            await world.stored(events_of(histories))
            await eventually_async(lambda: world.one("SELECT count(*) FROM dead_letter"))
            await eventually_async(lambda: world.ask("SELECT name FROM workflow WHERE is_current"))
        consumer = world.log.consumer("audit", [])
        ends = _ends(world)
        assert await consumer.committed(ends) == ends

    asyncio.run(go())
    assert world.one("SELECT count(*) FROM dead_letter") == 1
    assert world.one("SELECT count(*) FROM workflow_execution WHERE workflow_id IS NULL") == 0
    world.everything_is_sound(40)


def _ends(world: World) -> dict[TopicPartition, int]:
    """The log ends of the partitions that hold something."""
    places = [
        TopicPartition(topic, partition)
        for topic in (TOPICS.history, TOPICS.dead_letters, TOPICS.definitions)
        for partition in range(world.log.partitions(topic))
    ]
    return {place: world.log.bounds(*place)[1] for place in places if world.log.bounds(*place)[1]}


@pytest.mark.parametrize("faults", [["before"], ["after"], ["after", "before", "after"]])
def test_lost_answers_lose_and_double_nothing(world: World, faults: list[str]) -> None:
    histories = spread(30, TOPICS.history, PARTITIONS)

    async def go() -> None:
        async with world.running() as store:
            store.faults = faults
            for records in _portions(list(interleaved(histories)), 50):
                await world.produce(records)
                await asyncio.sleep(0)
            await world.stored(events_of(histories))

    asyncio.run(go())
    world.everything_is_sound(30)


def _portions(records: list[Record], size: int) -> Iterator[list[Record]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]


def test_a_restarted_writer_goes_on_from_the_stored_position(world: World) -> None:
    first, second = spread(10, TOPICS.history, PARTITIONS), spread(10, TOPICS.history, PARTITIONS, first=10)

    async def go() -> None:
        await world.produce(interleaved(first))
        async with world.running():
            await world.stored(events_of(first))
        await world.produce(interleaved(second))
        world.log._groups.clear()  # the group's commits are lost, and do not matter
        async with world.running() as store:
            await world.stored(events_of(first + second))
        assert store.writes <= len(second) * 20

    asyncio.run(go())
    world.everything_is_sound(20)


def test_a_second_writer_takes_partitions_over(world: World) -> None:
    histories = spread(60, TOPICS.history, PARTITIONS)

    async def go() -> None:
        records = list(interleaved(histories))
        async with world.running():
            await world.produce(records[:300])
            await world.stored(100)
            async with world.running() as second:
                told = 300
                for portion in _portions(records[300:], 20):  # in turns: the first one alone may not take it all
                    await world.produce(portion)
                    told += len(portion)
                    await world.stored(told)
                assert second.writes > 0

    asyncio.run(go())
    world.everything_is_sound(60)


def test_a_zombie_and_its_successor(world: World) -> None:
    """Both believe that every partition is theirs: each batch is written by one of them."""
    histories = spread(60, TOPICS.history, PARTITIONS)

    async def go() -> None:
        async with world.running(group="one") as first, world.running(group="other") as second:
            first.delay = 0.05  # it has read its batch; when it comes to write it, the other one has done so
            for records in _portions(list(interleaved(histories)), 40):
                await world.produce(records)
                await asyncio.sleep(0.01)
            await world.stored(events_of(histories))
            await eventually_async(lambda: first.outrun > 0)
            assert second.writes > 0

    asyncio.run(go())
    world.everything_is_sound(60)


def test_a_slow_store_does_not_cost_the_membership(world: World) -> None:
    histories = spread(20, TOPICS.history, PARTITIONS)

    async def go() -> None:
        async with world.running(patience=0.01) as store:
            store.delay = 0.2
            for records in _portions(list(interleaved(histories)), 50):
                await world.produce(records)
                await asyncio.sleep(0.02)
            await world.stored(events_of(histories))

    asyncio.run(go())
    world.everything_is_sound(20)


def test_bad_records_are_kept_and_stop_nothing(world: World) -> None:
    history = Chain(topic=TOPICS.history)
    sound = spread(5, TOPICS.history, PARTITIONS)
    history.started(key="x" * 100_000, origin={"topic": 1})
    bad = [
        Record(TOPICS.history, b"k", b"not json", 0),
        Record(TOPICS.history, b"k\0", b'{"v":1,"x":"\\ud800"}', 1),
        Record(TOPICS.history, None, None, 2),
        Record(TOPICS.dead_letters, b"k", b"{}", 0),
        Record(TOPICS.definitions, b"what", b"{}", 0),
        *history.records,
    ]

    meter = PrometheusMeter(METRICS)

    async def go() -> None:
        records = list(interleaved(sound))
        async with world.running(meter=meter):
            await world.produce([*records[:20], *bad, *records[20:]])
            await world.stored(len(records))
            await eventually_async(lambda: len(world.queries.divergences()) == len(bad))

    asyncio.run(go())
    assert sorted(item.reason for item in world.queries.divergences()) == [
        "not_json", "not_json", "null_value", "unstorable", "wrong_key", "wrong_shape",
    ]  # fmt: skip
    counted = {
        reason: meter.registry.get_sample_value("flowpilot_audit_divergences_total", {"reason": reason})
        for reason in {item.reason for item in world.queries.divergences()}
    }
    assert counted == Counter(item.reason for item in world.queries.divergences())
    kept = {bytes(item.body) for item in world.queries.divergences() if item.body is not None}
    assert kept == {record.value[:KEPT_BYTES] for record in bad if record.value is not None}
    assert world.queries.status_counts() == {"completed": 5}
    assert world.differences() == []


def _stopped(world: World, match: str) -> None:
    async def go() -> None:
        store = PostgresAuditStore(world.url)
        try:
            with pytest.raises(AuditStopped, match=match):
                await asyncio.wait_for(world.writer(store).run(), 20)
        finally:
            await store.close()

    asyncio.run(go())


def _filled(world: World) -> None:
    histories = spread(5, TOPICS.history, PARTITIONS)

    async def go() -> None:
        await world.produce(interleaved(histories))
        async with world.running():
            await world.stored(events_of(histories))

    asyncio.run(go())


def test_another_topic_of_the_same_name_stops_it(world: World) -> None:
    _filled(world)
    world.log.delete_topic(TOPICS.history)
    world.log.create_topic(TOPICS.history, PARTITIONS)
    world.log.create_topic("filler", 1)
    _stopped(world, "is another topic .* consumer_offset")


def test_records_that_retention_took_stop_it(world: World) -> None:
    _filled(world)
    asyncio.run(world.produce(interleaved(spread(40, TOPICS.history, PARTITIONS, first=100))))
    world.log.delete_before(TOPICS.history, 1, world.one(_NEXT) + 1)
    _stopped(world, "retention removed records")


def test_a_log_that_lost_its_end_stops_it(world: World) -> None:
    _filled(world)
    world.ask(
        "UPDATE consumer_offset SET next_offset = next_offset + 1000 WHERE topic = 't.history' AND partition = 1"
    )
    _stopped(world, "the log lost records")


_NEXT = "SELECT next_offset FROM consumer_offset WHERE topic = 't.history' AND partition = 1"


def test_large_batches_are_written_in_several_transactions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_BYTES", 5_000)
    histories = spread(20, TOPICS.history, PARTITIONS)

    async def go() -> None:
        await world.produce(interleaved(histories))
        async with world.running() as store:
            await world.stored(events_of(histories))
        assert store.writes >= sum(len(record.value or b"") for record in interleaved(histories)) // 6_000

    asyncio.run(go())
    world.everything_is_sound(20)


def test_a_server_that_ends_its_sessions_is_survived(world: World) -> None:
    histories = spread(40, TOPICS.history, PARTITIONS)

    async def go() -> None:
        async with world.running():
            for records in _portions(list(interleaved(histories)), 40):
                await world.produce(records)
                with world.engine.begin() as connection:
                    connection.execute(
                        text(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                            "WHERE application_name = 'flowpilot-audit' AND datname = current_database()"
                        )
                    )
                await asyncio.sleep(0.02)
            await world.stored(events_of(histories))

    asyncio.run(go())
    world.everything_is_sound(40)
