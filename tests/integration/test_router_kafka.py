"""The router on real Kafka: topics that come late, hand-over, a topic made again, a crash before the commit."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from confluent_kafka import TopicPartition as ConfluentPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.kafka.catalog import KafkaTopicCatalog
from flowpilot.adapters.kafka.config import consumer_properties, producer_properties, reader_properties
from flowpilot.adapters.kafka.consumer import KafkaConsumer
from flowpilot.adapters.kafka.offsets import KafkaTriggerReader
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.app.doctor import examine
from flowpilot.ports.log import Delivery, Record
from flowpilot.router import backfill
from flowpilot.router.positions import Positions
from flowpilot.router.router import Router
from flowpilot.settings import Settings
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.definition import StepDefinition, TriggerDefinition, WorkflowDefinition
from flowpilot_schemas.ids import keyed_execution_id, record_execution_id
from flowpilot_schemas.triggers import PositionKey, TriggerPosition
from tests.waiting import eventually_async

pytestmark = pytest.mark.integration


class World:
    """User topics of this test's own, and routers over real adapters."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.topics = settings, settings.topics
        self.admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
        self.producer = KafkaProducer(producer_properties(settings))
        self.reader = KafkaReader(reader_properties(settings))
        self.trigger_reader = KafkaTriggerReader(settings, reader_properties(settings))
        self.definitions = LogDefinitions(self.producer, self.reader, self.topics.definitions)
        self.catalog = KafkaTopicCatalog(settings)

    def create(self, topic: str, partitions: int = 2) -> None:
        for made in self.admin.create_topics([NewTopic(topic, partitions, 1)]).values():
            made.result(10)

    def delete(self, topic: str) -> None:
        for deleted in self.admin.delete_topics([topic]).values():
            deleted.result(10)

    async def publish(self, topic: str, *values: Any) -> None:
        raw = [value if isinstance(value, bytes | None) else json.dumps(value).encode() for value in values]
        deliveries = await self.producer.send([Record(topic, None, value) for value in raw])
        assert [delivery.error for delivery in deliveries] == [None] * len(values)

    async def read(self, topic: str, partitions: int) -> list[dict[str, Any]]:
        found = []
        for number in range(partitions):
            _, end = await self.reader.bounds(topic, number)
            found += await self.reader.read(topic, number, 0, end)
        return [json.loads(record.value or b"") for record in found]

    async def starts(self) -> list[dict[str, Any]]:
        return await self.read(self.topics.events, self.settings.event_partitions)

    async def inputs(self, workflow: str) -> set[Any]:
        """What was started of it."""
        return {start["input"] for start in await self.starts() if start["workflow"] == workflow}

    async def letters(self) -> list[dict[str, Any]]:
        return await self.read(self.topics.dead_letters, self.settings.event_partitions)

    async def await_starts(self, count: int) -> None:
        async def there() -> bool:
            return len(await self.starts()) >= count

        await eventually_async(there, 60)

    async def await_inputs(self, workflow: str, wanted: set[Any]) -> None:
        async def there() -> bool:
            return await self.inputs(workflow) == wanted

        await eventually_async(there, 60)

    async def put(self, topic: str, partition: int, value: Any) -> None:
        """Publish there, as soon as the topic takes it; by a producer that does not know what was there before."""
        producer = KafkaProducer(producer_properties(self.settings))

        async def taken() -> bool:
            [delivery] = await producer.send([Record(topic, None, json.dumps(value).encode(), partition)])
            return delivery.error is None

        try:
            await eventually_async(taken, 60)
        finally:
            producer.close()

    async def await_letters(self, count: int) -> None:
        async def there() -> bool:
            return len(await self.letters()) >= count

        await eventually_async(there, 60)

    async def await_gone(self, topic: str) -> None:
        async def gone() -> bool:
            return not await self.catalog.topic_ids([topic])

        await eventually_async(gone, 60)

    async def served(self, workflow: str, topic: str, partitions: int = 2) -> int:
        """How many records of `topic` the committed positions of the workflow say are served."""
        positions = Positions(self.producer, self.reader, self.topics.positions)
        await positions.refresh()
        topic_id = (await self.catalog.topic_ids([topic]))[topic]
        keys = [PositionKey(workflow, topic, number, topic_id) for number in range(partitions)]
        return sum(found.next_offset for key in keys if (found := positions.get(key)) is not None)

    def router(self, producer: Any = None, commit_interval: float = 0.1) -> Router:
        def consumer(topics: Sequence[str], **handlers: Any) -> KafkaConsumer:
            properties = consumer_properties(self.settings, self.topics.router_group)
            refreshed = {"topic.metadata.refresh.interval.ms": 2_000, "auto.offset.reset": "error"}
            return KafkaConsumer({**properties, **refreshed}, topics, **handlers)

        return Router(
            self.topics,
            self.settings.limits,
            consumer=consumer,
            producer=producer or self.producer,
            reader=self.reader,
            trigger_reader=self.trigger_reader,
            definitions=LogDefinitions(self.producer, self.reader, self.topics.definitions),
            catalog=self.catalog,
            interval=0.1,
            commit_interval=commit_interval,
        )

    @asynccontextmanager
    async def running(self, commit_interval: float = 0.1) -> AsyncIterator[Router]:
        router = self.router(commit_interval=commit_interval)
        task = asyncio.create_task(router.run())
        try:
            yield router
        finally:
            router.stop()
            await asyncio.wait_for(task, 20)


@pytest.fixture
def name() -> str:
    return f"user-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def world(kafka_settings: Settings, name: str) -> Iterator[World]:
    made = World(kafka_settings)
    yield made
    there = made.admin.list_topics(timeout=10).topics
    for topic in (name, f"{name}-late"):
        if topic in there:
            made.delete(topic)
    made.producer.close()
    made.reader.close()
    made.trigger_reader.close()


def workflow(name: str, topic: str, unique_by: str | None = None, **trigger_options: Any) -> WorkflowDefinition:
    step = StepDefinition(name="only", queue=name)
    trigger = TriggerDefinition(topic=topic, unique_by=unique_by, **trigger_options)
    return WorkflowDefinition(name=name, version="1", triggers=(trigger,), steps=(step,))


def test_several_topics_and_workflows_with_their_dead_letters(world: World, name: str) -> None:
    async def test() -> None:
        world.create(name)
        await world.definitions.register(workflow("keyed", name, "id"))
        await world.definitions.register(workflow("plain", name))
        await world.definitions.register(workflow("late", f"{name}-late"))
        values = [{"id": f"p-{number}"} for number in range(30)]
        await world.publish(name, *values, b"\xff", None)
        await world.publish(world.topics.triggers, {"v": 1, "workflow": "plain", "key": "k"}, {"v": 1})
        async with world.running():
            await world.await_starts(61)
            await world.await_letters(2)
            world.create(f"{name}-late")
            await world.publish(f"{name}-late", 1, 2, 3)
            await world.await_starts(64)
        ids = {start["execution"] for start in await world.starts()}
        assert len(ids) == 64
        assert keyed_execution_id("keyed", "p-7") in ids
        topic_id = (await world.catalog.topic_ids([name]))[name]
        assert record_execution_id("plain", topic_id, 0, 0) in ids
        assert {letter["reason"] for letter in await world.letters()} == {"not_utf8", "wrong_shape"}
        assert await world.served("plain", name) == 32

    asyncio.run(test())


class Stuck:
    """Sends what `topic` gets and, `after` some, never hears of it: as in a process killed between the two."""

    def __init__(self, to: KafkaProducer, topic: str, after: int = 0) -> None:
        self._to, self._topic, self._after, self.sent = to, topic, after, asyncio.Event()

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        deliveries = await self._to.send(records)
        if all(record.topic != self._topic for record in records):
            return deliveries
        self._after -= 1
        if self._after >= 0:
            return deliveries
        self.sent.set()
        await asyncio.Event().wait()
        raise AssertionError


def test_a_crash_between_send_and_commit_starts_nothing_new(world: World, name: str) -> None:
    async def test() -> None:
        world.create(name)
        await world.definitions.register(workflow("plain", name))
        await world.publish(name, *range(20))
        stuck = Stuck(world.producer, world.topics.events)
        task = asyncio.create_task(world.router(stuck).run())
        await asyncio.wait_for(stuck.sent.wait(), 20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        before = {start["execution"] for start in await world.starts()}
        assert before
        assert await world.served("plain", name) == 0
        async with world.running():
            await world.await_starts(20 + len(before))
        after = [start["execution"] for start in await world.starts()]
        assert len(set(after)) == 20
        assert before < set(after) or before == set(after)
        assert await world.served("plain", name) == 20

    asyncio.run(test())


def test_a_hand_over_commits_what_was_acknowledged(world: World, name: str) -> None:
    async def test() -> None:
        world.create(name)
        await world.definitions.register(workflow("plain", name))
        async with world.running(commit_interval=3_600.0):  # only the hand-over and the end commit
            await world.publish(name, *range(20))
            await world.await_starts(20)
            async with world.running():
                await world.publish(name, *range(20))
                await world.await_starts(40)
        found = [start["execution"] for start in await world.starts()]
        assert len(set(found)) == 40 == len(found)
        assert await world.served("plain", name) == 40

    asyncio.run(test())


def test_a_topic_made_again_under_its_name_starts_other_executions(world: World, name: str) -> None:
    async def test() -> None:
        world.create(name, 1)
        await world.definitions.register(workflow("plain", name))
        async with world.running():
            await world.publish(name, 1, 2)
            await world.await_starts(2)
        world.delete(name)
        await world.await_gone(name)
        world.create(name, 1)
        await world.publish(name, 3, 4)
        async with world.running():
            await world.await_starts(4)
        assert len({start["execution"] for start in await world.starts()}) == 4

    asyncio.run(test())


def test_a_workflow_goes_back_while_others_live_on_and_a_router_is_killed(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "SLICE", 25)

    async def test() -> None:
        world.create(name)
        await world.definitions.register(workflow("first", name))
        await world.publish(name, *range(400))
        async with world.running():
            await world.await_starts(400)
        await world.definitions.register(workflow("second", name, start="earliest", where="data % 2 == 0"))
        stuck = Stuck(world.producer, world.topics.events, after=5)
        task = asyncio.create_task(world.router(stuck, commit_interval=0.0).run())
        await asyncio.wait_for(stuck.sent.wait(), 60)
        done = await world.served("second", name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert 0 < done < 400
        async with world.running(), world.running():
            await world.publish(name, *range(400, 420))

            async def all_there() -> bool:
                return len(await world.inputs("second")) == 210 and len(await world.inputs("first")) == 420

            await eventually_async(all_there, 60)
        assert await world.inputs("first") == set(range(420))
        assert await world.inputs("second") == set(range(0, 420, 2))
        assert await world.served("second", name) == await world.served("first", name) == 420
        filtered = [part for each in await world.read(world.topics.fates, 1) for part in each["filtered"]]
        ranges = [tuple(each) for part in filtered for each in part["ranges"]]
        assert {(part["workflow"], part["reason"]) for part in filtered} == {("second", "where")}
        assert sum(last - first + 1 for first, last in ranges) >= 210

    asyncio.run(test())


def test_a_position_outlives_the_groups_own(world: World, name: str) -> None:
    """As after a week in which no router ran: Kafka has forgotten the group's offsets."""

    async def test() -> None:
        world.create(name)
        await world.definitions.register(workflow("plain", name, start="earliest"))
        await world.publish(name, *range(10))
        async with world.running():
            await world.await_starts(10)
        [deleted] = world.admin.delete_consumer_groups([world.topics.router_group]).values()
        deleted.result(10)
        async with world.running():
            await world.publish(name, 10)
            await world.await_starts(11)
        assert len(await world.starts()) == 11

    asyncio.run(test())


def checks(settings: Settings) -> list[tuple[str, str]]:
    """What `doctor` says of trigger topics: status and sentence."""
    made = examine(settings)
    return [(check.status, check.detail) for check in made if check.check == "trigger topics"]


def test_recreated_topic_with_fewer_partitions_stops_no_other(world: World, name: str) -> None:
    """While records are published, and a router is killed in between."""
    other = f"{name}-late"

    async def test() -> None:
        world.create(name, 4)
        world.create(other, 1)
        await world.definitions.register(workflow("plain", name))
        await world.definitions.register(workflow("other", other))
        async with world.running():
            await world.publish(name, *range(20))
            await world.publish(other, 0)
            await world.await_starts(21)
            before = (await world.catalog.topic_ids([name]))[name]
            world.delete(name)
            await world.await_gone(name)
            await world.publish(other, 1)
            await world.await_inputs("other", {0, 1})
            world.create(name, 2)
            for number in range(100, 110):
                await world.put(name, number % 2, number)
            await world.publish(other, 2)
            await world.await_inputs("other", {0, 1, 2})
            await world.await_inputs("plain", {*range(20), *range(100, 110)})
            assert [status for status, _ in await asyncio.to_thread(checks, world.settings)] == ["ok"]
        async with world.running(commit_interval=3_600.0):
            world.delete(name)
            await world.await_gone(name)
            world.create(name, 1)
            for number in range(200, 240):  # offsets go on where the old topic's ended
                await world.put(name, 0, number)
            await world.publish(other, 3)
            await world.await_inputs("other", {0, 1, 2, 3})
        async with world.running():
            await world.await_inputs("plain", {*range(20), *range(100, 110), *range(200, 240)})
        last = (await world.catalog.topic_ids([name]))[name]
        for start in await world.starts():
            if start["workflow"] == "plain":
                origin, value = start["origin"], start["input"]
                assert (origin["topic_id"] == before) == (value < 20)
                assert (origin["topic_id"] == last) == (value >= 200)

    asyncio.run(test())


def test_added_partition_and_topic_of_fewer_records_are_read(world: World, name: str) -> None:
    async def test() -> None:
        world.create(name, 1)
        await world.definitions.register(workflow("plain", name))
        async with world.running():
            await world.publish(name, 0)
            await world.await_starts(1)
            world.admin.create_partitions([NewPartitions(name, 3)])[name].result(10)
            await world.put(name, 2, 1)
            await world.await_inputs("plain", {0, 1})
            world.delete(name)
            await world.await_gone(name)
            world.create(name, 1)
            await world.put(name, 0, 2)
            await world.await_inputs("plain", {0, 1, 2})

    asyncio.run(test())


def test_retention_past_a_paused_cursor_is_expired(world: World, name: str) -> None:
    async def test() -> None:
        world.create(name, 1)
        await world.definitions.register(workflow("plain", name))
        async with world.running():
            await world.publish(name, 0, 1)
            await world.await_starts(2)
        await world.publish(name, *range(2, 10))
        removed = world.admin.delete_records([ConfluentPartition(name, 0, 6)])
        for future in removed.values():
            future.result(10)
        async with world.running():
            await world.await_inputs("plain", {0, 1, 6, 7, 8, 9})
        filtered = [part for each in await world.read(world.topics.fates, 1) for part in each["filtered"]]
        assert [(part["reason"], part["ranges"]) for part in filtered] == [("expired", [[2, 5]])]

    asyncio.run(test())


def test_forged_position_is_ignored_and_doctor_says_so(world: World, name: str) -> None:
    async def test() -> None:
        world.create(name, 1)
        await world.definitions.register(workflow("plain", name))
        async with world.running():
            await world.publish(name, 0, 1)
            await world.await_starts(2)
        topic_id = (await world.catalog.topic_ids([name]))[name]
        registration = world.definitions.registration("plain")
        assert registration is not None
        forged = TriggerPosition(next_offset=100, registered=registration.at)
        key = PositionKey("plain", name, 0, topic_id).encode()
        await world.producer.send([Record(world.topics.positions, key, encode_message(forged), 0)])
        await world.publish(name, 2, 3)
        [(status, detail)] = await asyncio.to_thread(checks, world.settings)
        assert status == "warn"
        assert f"{name}/0" in detail
        async with world.running():
            await world.await_inputs("plain", {0, 1, 2, 3})

    asyncio.run(test())


def test_doctor_is_red_while_a_partition_is_not_read(world: World, name: str) -> None:
    async def test() -> None:
        world.create(name, 1)
        await world.definitions.register(workflow("plain", name))
        router = world.router()

        async def never(partition: Any) -> Any:
            await asyncio.Event().wait()

        whole = router._partitions._open
        router._partitions._open = lambda each: never(each) if each.topic == name else whole(each)  # type: ignore[method-assign]
        task = asyncio.create_task(router.run())
        await world.publish(world.topics.triggers, {"v": 1, "workflow": "plain", "key": "k"})
        await world.await_starts(1)
        [(status, detail)] = await asyncio.to_thread(checks, world.settings)
        assert (status, detail) == ("fail", f"{name}/0: a router has it and has not opened it for plain")
        router.stop()
        await asyncio.wait_for(task, 20)

    asyncio.run(test())
