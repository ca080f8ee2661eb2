"""The router's loop on the memory broker: what it reads, produces and commits, and what a crash leaves."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.ports.log import Delivery, Fetched, Headers, LogUnavailable, Producer, Record
from flowpilot.router.errors import RouterStopped
from flowpilot.router.positions import Positions
from flowpilot.router.router import Router
from flowpilot_schemas.definition import StepDefinition, TriggerDefinition, WorkflowDefinition
from flowpilot_schemas.ids import keyed_execution_id, record_execution_id
from flowpilot_schemas.limits import Limits
from flowpilot_schemas.topics import Topics
from flowpilot_schemas.triggers import PositionKey

TOPICS = Topics()


def workflow(name: str, *topics: str, version: str = "1", **trigger: Any) -> WorkflowDefinition:
    return WorkflowDefinition(
        name=name,
        version=version,
        triggers=tuple(TriggerDefinition(topic=topic, **trigger) for topic in topics),
        steps=(StepDefinition(name="only", queue=name),),
    )


class World:
    """A broker with FlowPilot's topics, and routers on it."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.polled: Counter[str] = Counter()
        for topic in TOPICS.core():
            self.log.create_topic(topic.name, topic.partitions or 4, max_message_bytes=10 << 20)
        self.definitions = LogDefinitions(self.log.producer(), self.log.reader(), TOPICS.definitions)

    async def topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        return {name: self.log.topic_id(name) for name in names if self.log.partitions(name)}

    async def publish(self, topic: str, *values: Any, key: bytes | None = None, headers: Headers = ()) -> None:
        raw = [value if isinstance(value, bytes | None) else json.dumps(value).encode() for value in values]
        await self.log.producer().send([Record(topic, key, value, headers=headers) for value in raw])

    def router(self, producer: Producer | None = None, **options: Any) -> Router:
        def consumer(topics: Sequence[str], **handlers: Any) -> Any:
            made = self.log.consumer(TOPICS.router_group, topics, strict=True, **handlers)
            poll = made.poll

            async def counted(max_records: int, timeout: float) -> list[Fetched]:
                found = await poll(max_records, timeout)
                self.polled.update(record.topic for record in found)
                return found

            made.poll = counted  # type: ignore[method-assign]
            return made

        return Router(
            TOPICS,
            Limits(),
            consumer=consumer,
            producer=producer or self.log.producer(),
            definitions=LogDefinitions(self.log.producer(), self.log.reader(), TOPICS.definitions),
            catalog=self,
            **{"reader": self.log.reader(), "interval": 0.02, "commit_interval": 0.02, **options},
        )

    @asynccontextmanager
    async def running(self, producer: Producer | None = None, **options: Any) -> AsyncIterator[Router]:
        router = self.router(producer, **options)
        task = asyncio.create_task(router.run())
        try:
            yield router
        finally:
            router.stop()
            await asyncio.wait_for(task, 5)

    def starts(self) -> list[dict[str, Any]]:
        return [json.loads(record.value or b"") for record in self.log.records(TOPICS.events)]

    def fates(self) -> list[tuple[str, int, str | None, str, list[list[int]]]]:
        """What was filtered: topic, partition, workflow, reason, ranges."""
        told = [json.loads(record.value or b"") for record in self.log.records(TOPICS.fates)]
        return sorted(
            (each["topic"], each["partition"], part.get("workflow"), part["reason"], part["ranges"])
            for each in told
            for part in each["filtered"]
        )

    def letters(self) -> list[dict[str, Any]]:
        return [json.loads(record.value or b"") for record in self.log.records(TOPICS.dead_letters)]

    async def served(self, workflow: str, topic: str) -> int:
        """How many records of `topic` the committed positions of the workflow say are served."""
        positions = Positions(self.log.producer(), self.log.reader(), TOPICS.positions)
        await positions.refresh()
        keys = [
            PositionKey(workflow, topic, number, self.log.topic_id(topic))
            for number in range(self.log.partitions(topic))
        ]
        return sum(found.next_offset for key in keys if (found := positions.get(key)) is not None)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the broker in memory tells nobody
            await asyncio.sleep(0.005)


def run(test: Callable[[World], Any]) -> None:
    async def go() -> None:
        await test(World())

    asyncio.run(go())


def test_records_of_several_topics_start_several_workflows() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("patients", 3)
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("onboarding", "patients", unique_by="id"))
        await world.definitions.register(workflow("billing", "patients", "orders"))
        await world.publish("patients", *({"id": f"p-{n}"} for n in range(20)))
        await world.publish("orders", {"sum": 1}, b"{", None)
        await world.publish(TOPICS.triggers, {"v": 1, "workflow": "billing", "input": 5, "key": "k"})
        async with world.running():
            await until(lambda: len(world.starts()) == 42 and len(world.letters()) == 1)
        by_workflow = [start["workflow"] for start in world.starts()]
        assert (by_workflow.count("onboarding"), by_workflow.count("billing")) == (20, 22)
        ids = {start["execution"] for start in world.starts()}
        assert len(ids) == 42
        assert keyed_execution_id("onboarding", "p-7") in ids
        assert keyed_execution_id("billing", "k") in ids
        assert record_execution_id("billing", world.log.topic_id("orders"), 0, 0) in ids
        assert {record.key for record in world.log.records(TOPICS.events)} == {known.encode() for known in ids}
        assert (world.letters()[0]["topic"], world.letters()[0]["offset"]) == ("orders", 1)
        places = [
            ("onboarding", "patients"),
            ("billing", "patients"),
            ("billing", "orders"),
            ("*", TOPICS.triggers),
        ]
        assert [await world.served(*place) for place in places] == [20, 20, 3, 1]

    run(test)


def test_topics_are_waited_for_and_new_definitions_are_read() -> None:
    async def test(world: World) -> None:
        await world.definitions.register(workflow("late", "not-there-yet"))
        ready: list[frozenset[str]] = []
        async with world.running(on_ready=ready.append):
            await until(lambda: bool(ready))
            assert ready == [frozenset({TOPICS.triggers})]
            world.log.create_topic("not-there-yet", 2)
            await world.publish("not-there-yet", 1, 2, 3)
            await until(lambda: len(world.starts()) == 3)
            world.log.create_topic("more", 1)
            await world.publish("more", 4)
            await world.definitions.register(workflow("later", "more", start="earliest"))
            await until(lambda: len(world.starts()) == 4)
        assert len(ready) == 1

    run(test)


def test_the_triggers_of_a_deleted_workflow_end() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("shared", 1)
        for name in ("kept", "deleted"):
            await world.definitions.register(workflow(name, "shared"))
        async with world.running(interval=3_600.0):
            await world.publish("shared", 1)
            await until(lambda: len(world.starts()) == 2)
            await world.definitions.delete("deleted")
            await world.publish("shared", 2)
            await world.publish(
                TOPICS.triggers, *({"v": 1, "workflow": "deleted", "version": v} for v in (None, "1"))
            )
            await until(lambda: len(world.starts()) == 3 and len(world.letters()) == 2)
        assert sorted(start["workflow"] for start in world.starts()) == ["deleted", "kept", "kept"]
        assert {letter["reason"] for letter in world.letters()} == {"unknown_workflow"}

    run(test)


def test_a_definition_registered_before_its_record_is_known_in_time() -> None:
    """However seldom the router looks: what was registered before a record was published routes it."""

    async def test(world: World) -> None:
        world.log.create_topic("shared", 1)
        await world.definitions.register(workflow("first", "shared"))
        async with world.running(interval=3_600.0):
            await world.publish("shared", 1)
            await until(lambda: len(world.starts()) == 1)
            await world.definitions.register(workflow("second", "shared"))
            await world.publish("shared", 2)
            await world.publish(TOPICS.triggers, {"v": 1, "workflow": "second"})
            await until(lambda: len(world.starts()) == 4)
        assert world.letters() == []

    run(test)


class Faulty:
    """A producer that does what the real one may: write a part and fail, or write all and not return."""

    def __init__(self, log: MemoryLog, faults: list[str]) -> None:
        self._to, self.faults = log.producer(), faults
        self.stuck = asyncio.Event()

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        routed = any(record.topic in (TOPICS.events, TOPICS.dead_letters) for record in records)
        fault = self.faults.pop(0) if self.faults and routed else "none"
        if fault == "part":
            await self._to.send(records[: len(records) // 2])
            raise LogUnavailable("the broker went away")
        if fault == "refused":
            return [Delivery(-1, -1, "not authorised") for _ in records]
        deliveries = await self._to.send(records)
        if fault == "stuck":
            self.stuck.set()
            await asyncio.Event().wait()
        return deliveries


def test_a_crash_after_the_send_starts_the_same_executions_again() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("patients", 2)
        await world.definitions.register(workflow("keyed", "patients", unique_by="id"))
        await world.definitions.register(workflow("plain", "patients"))
        await world.publish("patients", *({"id": n} for n in range(10)), b"{")
        producer = Faulty(world.log, ["stuck"])
        crashed = world.router(producer)
        task = asyncio.create_task(crashed.run())
        await producer.stuck.wait()
        task.cancel()  # its `finally` commits what is acknowledged: nothing
        await asyncio.gather(task, return_exceptions=True)
        sent, letters = world.starts(), world.letters()
        assert (len(sent), len(letters)) == (20, 1)
        assert await world.served("plain", "patients") == 0
        async with world.running():
            await until(lambda: len(world.starts()) == 40)
        again = world.starts()
        assert sorted(start["execution"] for start in again) == sorted(2 * [start["execution"] for start in sent])
        assert world.letters() == 2 * letters
        assert await world.served("plain", "patients") == 11

    run(test)


def test_a_failed_send_is_repeated_and_nothing_is_committed_before() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("patients", 1)
        await world.definitions.register(workflow("plain", "patients"))
        await world.publish("patients", *range(10))
        async with world.running(Faulty(world.log, ["part", "part"])):
            await until(lambda: len({start["execution"] for start in world.starts()}) == 5)
            assert await world.served("plain", "patients") == 0
            await until(lambda: len({start["execution"] for start in world.starts()}) == 10)
        assert len(world.starts()) == 20
        assert await world.served("plain", "patients") == 10

    run(test)


def test_a_refusal_for_good_stops_the_router_without_a_commit() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("patients", 1)
        await world.definitions.register(workflow("plain", "patients"))
        await world.publish("patients", 1)
        with pytest.raises(RouterStopped, match="not authorised"):
            await asyncio.wait_for(world.router(Faulty(world.log, ["refused"])).run(), 5)
        assert await world.served("plain", "patients") == 0
        async with world.running():
            await until(lambda: len(world.starts()) == 1)

    run(test)


def test_two_routers_share_the_partitions_and_hand_over_without_repeating() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("patients", 4)
        await world.definitions.register(workflow("plain", "patients"))
        async with world.running(commit_interval=3_600.0):  # so that only the hand-over commits
            await world.publish("patients", *range(40))
            await until(lambda: len(world.starts()) == 40)
            async with world.running():
                await world.publish("patients", *range(40))
                await until(lambda: len(world.starts()) >= 80)
            await world.publish("patients", *range(40))
            await until(lambda: len(world.starts()) >= 120)
        assert len({start["execution"] for start in world.starts()}) == 120 == len(world.starts())
        assert await world.served("plain", "patients") == 120

    run(test)


def test_a_topic_made_again_under_its_name_starts_other_executions() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("patients", 1)
        await world.definitions.register(workflow("plain", "patients"))
        async with world.running():
            await world.publish("patients", 1, 2)
            await until(lambda: len(world.starts()) == 2)
        world.log.delete_topic("patients")
        world.log.create_topic("patients", 1)
        await world.publish("patients", 3, 4)
        async with world.running():
            await until(lambda: len(world.starts()) == 4)
        assert len({start["execution"] for start in world.starts()}) == 4

    run(test)
