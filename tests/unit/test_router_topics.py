"""Topics that come and go while the router runs: each partition on its own, each record under its topic's id."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest

from flowpilot.app.rewinding import move_back
from flowpilot.ports.log import Fetched, LogUnavailable, Record
from flowpilot.router.positions import Positions
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.ids import record_execution_id
from flowpilot_schemas.triggers import PositionKey, TriggerPosition
from tests.unit.test_router_loop import TOPICS, World, run, until, workflow
from tests.unit.test_router_positions import inputs, settled


class Broken:
    """A reader that some partitions do not answer: at once, or never."""

    def __init__(self, world: World, *places: tuple[str, int], silent: bool = False) -> None:
        self._to, self.places, self._silent, self.asked = world.log.reader(), set(places), silent, 0

    async def _ask(self, topic: str, partition: int) -> None:
        if (topic, partition) in self.places:
            self.asked += 1
            if self._silent:
                await asyncio.Event().wait()
            raise LogUnavailable(f"{topic}/{partition} has no leader")

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        await self._ask(topic, partition)
        return await self._to.bounds(topic, partition)

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        await self._ask(topic, partition)
        return await self._to.offset_at(topic, partition, timestamp)

    async def read(self, topic: str, partition: int, start: int, end: int) -> list[Fetched]:
        await self._ask(topic, partition)
        return await self._to.read(topic, partition, start, end)


async def put(world: World, topic: str, partition: int, *values: Any) -> None:
    for value in values:
        await world.log.producer().send([Record(topic, None, str(value).encode(), partition)])


def position_record(world: World, topic: str, partition: int, **fields: Any) -> Record:
    """A position that anybody might write; of the workflow `plain`."""
    of = {"workflow": "plain", "topic_id": world.log.topic_id(topic), **fields}
    key = PositionKey(of.pop("workflow"), topic, partition, of.pop("topic_id"))
    return Record(TOPICS.positions, key.encode(), encode_message(TriggerPosition(**of)), 0)


def registered(world: World, name: str = "plain") -> int:
    found = world.definitions.registration(name)
    assert found is not None
    return found.at


# Each partition on its own


@pytest.mark.parametrize("silent", [False, True])
def test_partition_that_does_not_open_closes_no_other(silent: bool) -> None:
    async def test(world: World) -> None:
        world.log.create_topic("a-orders", 3)
        world.log.create_topic("b-orders", 1)
        await world.definitions.register(workflow("plain", "a-orders", "b-orders"))
        for number in range(3):
            await put(world, "a-orders", number, number)
        await put(world, "b-orders", 0, 10)
        reader = Broken(world, ("a-orders", 0), silent=silent)
        async with world.running(trigger_reader=reader):
            await until(lambda: inputs(world, "plain") == [1, 2, 10])
            await put(world, "b-orders", 0, 11)
            await until(lambda: inputs(world, "plain") == [1, 2, 10, 11])
            assert reader.asked
            if not silent:
                reader.places.clear()
                await until(lambda: inputs(world, "plain") == [0, 1, 2, 10, 11])

    run(test)


def test_partition_that_cannot_be_caught_up_with_stops_no_other() -> None:
    async def test(world: World) -> None:
        for topic in ("a-orders", "b-orders"):
            world.log.create_topic(topic, 1)
            await world.definitions.register(workflow(f"first-{topic}", topic))
            await put(world, topic, 0, 1)
        reader = Broken(world)
        async with world.running(trigger_reader=reader):
            await until(lambda: len(world.starts()) == 2)
            never = asyncio.Event()
            read = reader.read

            async def stuck(topic: str, partition: int, start: int, end: int) -> list[Fetched]:
                if topic == "a-orders" and not never.is_set():
                    await asyncio.sleep(0.02)
                    raise LogUnavailable("no leader")
                return await read(topic, partition, start, end)

            reader.read = stuck  # type: ignore[method-assign]
            for topic in ("a-orders", "b-orders"):
                await world.definitions.register(workflow(f"second-{topic}", topic, start="earliest"))
            await until(lambda: inputs(world, "second-b-orders") == [1])
            await put(world, "b-orders", 0, 2)
            await until(lambda: inputs(world, "first-b-orders") == [1, 2])
            never.set()
            await until(lambda: inputs(world, "second-a-orders") == [1])

    run(test)


def test_deleted_topic_stops_neither_others_nor_commits() -> None:
    async def test(world: World) -> None:
        for topic in ("a-orders", "b-orders"):
            world.log.create_topic(topic, 2)
        await world.definitions.register(workflow("plain", "a-orders", "b-orders"))
        async with world.running():
            await put(world, "a-orders", 0, 1)
            await put(world, "b-orders", 0, 2)
            await until(lambda: inputs(world, "plain") == [1, 2])
            world.log.delete_topic("a-orders")
            await put(world, "b-orders", 1, 3)
            await until(lambda: inputs(world, "plain") == [1, 2, 3])
            await settled(world, "plain", "b-orders", 2)
            world.log.create_topic("a-orders", 1)
            await put(world, "a-orders", 0, 4)
            await until(lambda: inputs(world, "plain") == [1, 2, 3, 4])

    run(test)


# Which topic it is


@pytest.mark.parametrize("partitions", [1, 2, 4])
def test_recreated_topic_is_served_from_its_first_record(partitions: int) -> None:
    """As on Kafka: the member is not told, and goes on at its offset in the new topic if there is one."""

    async def test(world: World) -> None:
        world.log.create_topic("orders", 2)
        await world.definitions.register(workflow("plain", "orders"))
        await world.definitions.register(workflow("evens", "orders", where="data % 2 == 0"))
        async with world.running(interval=3_600.0):
            await put(world, "orders", 0, 1, 2, 3)
            await put(world, "orders", 1, 4)
            await until(lambda: inputs(world, "plain") == [1, 2, 3, 4])
        async with world.running():
            await until(lambda: bool(world.log._groups[TOPICS.router_group].owner))
            before = world.log.topic_id("orders")
            world.log.recreate_topic("orders", partitions)
            after = world.log.topic_id("orders")
            for offset in range(6):
                await put(world, "orders", offset % partitions, 10 + offset)
            world.log.notice()
            await until(lambda: inputs(world, "plain") == [1, 2, 3, 4, *range(10, 16)])
            await settled(world, "evens", "orders", 6)
        starts = [start for start in world.starts() if start["workflow"] == "plain"]
        assert len({start["execution"] for start in starts}) == len(starts) == 10
        for start in starts:
            topic_id = before if start["input"] < 10 else after
            place = (start["origin"]["partition"], start["origin"]["offset"])
            assert start["origin"]["topic_id"] == topic_id
            assert start["execution"] == record_execution_id("plain", topic_id, *place)
        assert inputs(world, "evens") == [2, 4, 10, 12, 14]

    run(test)


def test_records_fetched_of_another_topic_are_not_routed() -> None:
    """The topic was created again after the partition was opened and before the poll: offsets go on."""

    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("plain", "orders"))
        async with world.running(interval=3_600.0):
            await put(world, "orders", 0, 1)
            await until(lambda: inputs(world, "plain") == [1])
            world.log.recreate_topic("orders", 1)
            topic_id = world.log.topic_id("orders")
            await put(world, "orders", 0, 2, 3, 4)
            await until(lambda: len(inputs(world, "plain")) == 4)
        assert inputs(world, "plain") == [1, 2, 3, 4]
        under = {start["input"]: start["origin"]["topic_id"] for start in world.starts()}
        assert {value for value, each in under.items() if each == topic_id} == {2, 3, 4}

    run(test)


def test_added_partition_is_served_from_its_first_record() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("plain", "orders"))
        async with world.running():
            await put(world, "orders", 0, 1)
            await until(lambda: inputs(world, "plain") == [1])
            world.log.add_partitions("orders", 3)
            await put(world, "orders", 2, 2, 3)
            await until(lambda: inputs(world, "plain") == [1, 2, 3])

    run(test)


def test_outcomes_before_a_recreation_are_recorded() -> None:
    """What was filtered of the old topic and not committed when it went."""

    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("plain", "orders", where="data > 100"))
        before = world.log.topic_id("orders")
        async with world.running(commit_interval=3_600.0) as router:
            await put(world, "orders", 0, 1, 2)
            await until(lambda: any(each.next.get("plain") == 2 for each in router._partitions.readings.values()))
            world.log.delete_topic("orders")
            world.log.create_topic("orders", 1)
            await put(world, "orders", 0, 3)
            readings = router._partitions.readings
            await until(
                lambda: any(each.topic_id != before and each.next.get("plain") == 1 for each in readings.values())
            )
        told = world.log.records(TOPICS.fates)
        assert any(before.encode() in (record.value or b"") for record in told)
        assert world.fates() == [
            ("orders", 0, "plain", "where", [[0, 0]]),
            ("orders", 0, "plain", "where", [[0, 1]]),
        ]

    run(test)


# What retention takes, and what a log loses


def test_what_retention_took_of_a_new_partition_is_expired() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("plain", "orders"))
        await put(world, "orders", 0, 0, 1, 2, 3)
        world.log.delete_before("orders", 0, 3)
        async with world.running():
            await until(lambda: inputs(world, "plain") == [3])
            await settled(world, "plain", "orders", 4)
        assert world.fates() == [("orders", 0, "plain", "expired", [[0, 2]])]

    run(test)


def test_retention_past_a_live_cursor_is_expired_once() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("plain", "orders"))
        async with world.running():
            await put(world, "orders", 0, 0, 1)
            await until(lambda: inputs(world, "plain") == [0, 1])
            append, low = world.log.append, 5
            for number in range(2, 7):  # nothing is polled in between: no await
                append(Record("orders", None, str(number).encode(), 0))
            world.log.delete_before("orders", 0, low)
            await until(lambda: inputs(world, "plain") == [0, 1, 5, 6])
            await settled(world, "plain", "orders", 7)
        assert world.fates() == [("orders", 0, "plain", "expired", [[2, 4]])]

    run(test)


@pytest.mark.parametrize("restarted", [False, True])
def test_log_that_lost_its_tail_stops_that_partition(restarted: bool, capsys: pytest.CaptureFixture[str]) -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 2)
        await world.definitions.register(workflow("plain", "orders", unique_by="id"))

        async def publish(partition: int, *numbers: int) -> None:
            await put(world, "orders", partition, *(json.dumps({"id": number}) for number in numbers))

        def there(*numbers: int) -> bool:
            return sorted(start["input"]["id"] for start in world.starts()) == list(numbers)

        async def stopped() -> None:
            world.log.truncate("orders", 0, 2)
            await publish(1, 20)
            await until(lambda: there(0, 1, 2, 3, 20))
            await until(lambda: "trigger rewind orders 0 2" in capsys.readouterr().out)

        async def goes_on() -> None:
            positions = Positions(world.log.producer(), world.log.reader(), TOPICS.positions)
            await world.definitions.refresh()
            topic_id = world.log.topic_id("orders")
            assert await move_back(positions, world.definitions, "orders", topic_id, 1, 5) == []
            assert await move_back(positions, world.definitions, "orders", topic_id, 0, 2) == ["plain"]
            await publish(1, 22)

        async with world.running():
            await publish(0, 0, 1, 2, 3)
            await until(lambda: there(0, 1, 2, 3))
            await settled(world, "plain", "orders", 4)
            if not restarted:
                await stopped()
                await publish(0, 4, 5, 6)  # grown beyond what was read: this process knows it still
                await publish(1, 21)
                await until(lambda: there(0, 1, 2, 3, 20, 21))
                await goes_on()
                await until(lambda: there(0, 1, 2, 3, 4, 5, 6, 20, 21, 22))
        if restarted:
            async with world.running():
                await stopped()
                await goes_on()
                await publish(0, 4)
                await until(lambda: there(0, 1, 2, 3, 4, 20, 22))

    run(test)


# Positions that somebody else wrote


@pytest.mark.parametrize(
    ("next_offset", "later"), [(1_000, 0), (2**62, 0), (3, 10**9), (1_000, 10**9), (3, 2**62 - 2**41)]
)
def test_position_that_cannot_be_true_is_ignored(next_offset: int, later: int) -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("plain", "orders"))
        async with world.running():
            await put(world, "orders", 0, 0, 1)
            await settled(world, "plain", "orders", 2)
        await put(world, "orders", 0, 2, 3, 4)
        forged = position_record(world, "orders", 0, next_offset=next_offset, registered=registered(world) + later)
        await world.log.producer().send([forged])
        async with world.running():
            await until(lambda: inputs(world, "plain") == [0, 1, 2, 3, 4])

    run(test)


def test_forged_position_does_not_outlive_a_running_router() -> None:
    """Compaction keeps the last record of a key: the router's own."""

    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("plain", "orders"))
        key = PositionKey("plain", "orders", 0, world.log.topic_id("orders"))
        positions = Positions(world.log.producer(), world.log.reader(), TOPICS.positions)
        async with world.running():
            await put(world, "orders", 0, 0, 1)
            await settled(world, "plain", "orders", 2)
            forged = position_record(world, "orders", 0, next_offset=1_000, registered=registered(world))
            await world.log.producer().send([forged])
            async with asyncio.timeout(20):
                while [each.next_offset for each in positions.of(key)] != [2]:
                    await asyncio.sleep(0.005)
                    await positions.refresh()
        world.log.compact(TOPICS.positions)
        await put(world, "orders", 0, 2)
        async with world.running():
            await until(lambda: inputs(world, "plain") == [0, 1, 2])

    run(test)


def test_positions_of_others_change_nothing_and_are_not_kept() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("plain", "orders"))
        at = registered(world)
        strange: list[dict[str, Any]] = [
            {"topic_id": "other"},
            {"workflow": "nobody"},
            *({"topic_id": f"id-{number}"} for number in range(2_000)),
        ]
        records = [
            position_record(world, "orders", number % 3, next_offset=1, registered=at, **fields)
            for number, fields in enumerate(strange)
        ]
        await world.log.producer().send(records)
        await put(world, "orders", 0, 0)
        async with world.running() as router:
            await until(lambda: inputs(world, "plain") == [0])
            await settled(world, "plain", "orders", 1)
            await asyncio.sleep(0)
            assert len(router._positions.known()) < 20

    run(test)


def test_topic_that_may_not_be_described_stops_no_other() -> None:
    async def test(world: World) -> None:
        for topic in ("a-orders", "b-orders"):
            world.log.create_topic(topic, 1)
            await put(world, topic, 0, int(topic == "b-orders"))
        await world.definitions.register(workflow("plain", "a-orders", "b-orders", start="earliest"))
        allowed, topic_ids = False, world.topic_ids

        async def described(names: Iterable[str]) -> dict[str, str]:
            found = await topic_ids(names)
            return found if allowed else {name: topic_id for name, topic_id in found.items() if name[0] != "a"}

        world.topic_ids = described  # type: ignore[method-assign]
        async with world.running():
            await until(lambda: inputs(world, "plain") == [1])
            allowed = True
            await until(lambda: inputs(world, "plain") == [0, 1])

    run(test)
