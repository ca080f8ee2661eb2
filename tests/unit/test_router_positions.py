"""Positions: start points, catching up without disturbing others, and what a crash or a zombie leaves."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

from flowpilot.ports.log import LogUnavailable, Record
from flowpilot.router import backfill
from flowpilot.router.fates import Omissions
from flowpilot.router.routing import Omitted
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.definition import pointer_key
from flowpilot_schemas.history import iso
from flowpilot_schemas.ids import record_execution_id
from flowpilot_schemas.triggers import PositionKey, TriggerPosition
from tests.unit.test_router_loop import TOPICS, World, run, until, workflow


def inputs(world: World, name: str) -> list[Any]:
    """What was started of a workflow, sorted."""
    return sorted((start["input"] for start in world.starts() if start["workflow"] == name), key=_numbers_first)


def _numbers_first(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


async def tick(world: World) -> int:
    """A broker time that is later than all before."""
    now = world.log._clock()
    await until(lambda: world.log._clock() > now)
    return world.log._clock()


async def settled(world: World, name: str, topic: str, count: int) -> None:
    """Wait until the committed position says so."""
    async with asyncio.timeout(20):
        while await world.served(name, topic) < count:  # noqa: ASYNC110 - as in `until`
            await asyncio.sleep(0.005)


# Where a workflow begins


def test_a_workflow_begins_with_what_came_since_it_was_registered() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.publish("orders", "old", "older")
        await tick(world)
        await world.definitions.register(workflow("late", "orders"))
        await world.publish("orders", "new")
        await world.definitions.register(workflow("late", "orders", version="2"), move_pointer=True)
        await world.publish("orders", "newer")
        async with world.running():
            await until(lambda: len(world.starts()) == 2)
        assert inputs(world, "late") == ["new", "newer"]
        assert world.fates() == [("orders", 0, "late", "before_start", [[0, 1]])]

    run(test)


def test_earliest_and_a_time() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.publish("orders", 0, 1)
        middle = await tick(world)
        await world.publish("orders", 2, 3)
        later = world.log._clock() + 3_600_000
        await tick(world)
        await world.definitions.register(workflow("all", "orders", start="earliest"))
        await world.definitions.register(workflow("half", "orders", start=iso(middle)))
        await world.definitions.register(workflow("none-yet", "orders", start=iso(later)))
        async with world.running():
            await world.publish("orders", 4)
            await until(lambda: len(world.starts()) == 8)
        assert inputs(world, "all") == [0, 1, 2, 3, 4]
        assert inputs(world, "half") == [2, 3, 4]
        assert world.fates() == [
            ("orders", 0, "half", "before_start", [[0, 1]]),
            ("orders", 0, "none-yet", "before_start", [[0, 4]]),
        ]

    run(test)


def test_what_retention_took_before_it_was_read_is_said() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("plain", "orders"))
        await world.publish("orders", 0, 1)
        async with world.running():
            await until(lambda: len(world.starts()) == 2)
        await world.publish("orders", 2, 3, 4)
        world.log.delete_before("orders", 0, 4)
        async with world.running():
            await until(lambda: len(world.starts()) == 3)
        assert inputs(world, "plain") == [0, 1, 4]
        assert ("orders", 0, "plain", "expired", [[2, 3]]) in world.fates()

    run(test)


def test_a_workflow_deleted_and_registered_again_begins_anew() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("plain", "orders"))
        await world.definitions.register(workflow("other", "orders"))
        await world.publish("orders", 0)
        async with world.running():
            await until(lambda: len(world.starts()) == 2)
            await settled(world, "plain", "orders", 1)
            await tick(world)
            await world.log.producer().send([Record(TOPICS.definitions, pointer_key("plain"), None, 0)])
            await world.publish("orders", 1)
            await until(lambda: inputs(world, "other") == [0, 1])
            await tick(world)
            await world.definitions.register(workflow("plain", "orders"))
            await world.publish("orders", 2)
            await until(lambda: inputs(world, "other") == [0, 1, 2] and inputs(world, "plain") == [0, 2])

    run(test)


def test_record_of_a_fast_clock_is_not_read_for_two_registrations() -> None:
    """Its time is later than the registration of a workflow that had read it and was deleted since."""

    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("plain", "orders"))
        clock = world.log._clock
        async with world.running():
            world.log._clock = lambda: clock() + 3_600_000
            await world.publish("orders", 0)
            await until(lambda: inputs(world, "plain") == [0])
            await settled(world, "plain", "orders", 1)
            world.log._clock = clock
            await tick(world)
            await world.definitions.delete("plain")
            await tick(world)
            await world.definitions.register(
                workflow("plain", "orders", version="2", unique_by="id"), move_pointer=True
            )
            await world.publish("orders", {"id": "k"})
            await until(lambda: {"id": "k"} in [start["input"] for start in world.starts()])
        assert [start["input"] for start in world.starts()].count(0) == 1
        assert len(world.letters()) == 0

    run(test)


# Catching up


def test_a_workflow_that_goes_back_starts_nothing_for_another(monkeypatch: Any) -> None:
    monkeypatch.setattr(backfill, "SLICE", 10)

    async def test(world: World) -> None:
        world.log.create_topic("orders", 2)
        await world.definitions.register(workflow("first", "orders"))
        await world.publish("orders", *range(100))
        async with world.running():
            await until(lambda: len(world.starts()) == 100)
            await world.definitions.register(workflow("second", "orders", start="earliest"))
            await world.publish("orders", *range(100, 110))
            await until(lambda: len(world.starts()) == 220)
            await world.publish("orders", *range(110, 120))
            await until(lambda: len(world.starts()) == 240)
        for name in ("first", "second"):
            assert inputs(world, name) == list(range(120))
            assert await world.served(name, "orders") == 120

    run(test)


def test_what_is_caught_up_with_meets_the_definitions_of_its_time() -> None:
    """A router is given a partition on which another one has come further; meanwhile a workflow was deleted, of
    which it does not know yet. The records since then are none of that workflow's."""

    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("kept", "orders", start="earliest"))
        await world.definitions.register(workflow("gone", "orders", start="earliest"))
        topic_ids, registered = world.topic_ids, world.definitions.registration("kept")
        assert registered is not None

        async def meanwhile(names: Iterable[str]) -> dict[str, str]:
            world.topic_ids = topic_ids  # type: ignore[method-assign]
            await world.definitions.delete("gone")
            await world.publish("orders", {"n": 1})
            key = PositionKey("kept", "orders", 0, world.log.topic_id("orders")).encode()
            position = encode_message(TriggerPosition(next_offset=1, registered=registered.at))
            await world.log.producer().send([Record(TOPICS.positions, key, position, partition=0)])
            return await topic_ids(names)

        world.topic_ids = meanwhile  # type: ignore[method-assign]
        async with world.running(interval=3_600):
            await settled(world, "kept", "orders", 1)
            await world.publish("orders", {"n": 2})
            await until(lambda: bool(inputs(world, "kept")))
        assert (inputs(world, "kept"), inputs(world, "gone")) == ([{"n": 2}], [])

    run(test)


def test_it_goes_back_though_nothing_new_arrives() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 2)
        await world.definitions.register(workflow("first", "orders"))
        await world.publish("orders", *range(10))
        async with world.running():
            await until(lambda: len(world.starts()) == 10)
            await world.definitions.register(workflow("second", "orders", start="earliest"))
            await until(lambda: inputs(world, "second") == list(range(10)))

    run(test)


def test_the_live_records_of_others_do_not_wait_for_it(monkeypatch: Any) -> None:
    monkeypatch.setattr(backfill, "SLICE", 10)

    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("first", "orders"))
        await world.publish("orders", *range(1_000))
        async with world.running():
            await until(lambda: len(world.starts()) == 1_000)
            await world.definitions.register(workflow("second", "orders", start="earliest"))
            await world.publish("orders", "live")
            await until(lambda: "live" in inputs(world, "first"))
            assert len(inputs(world, "second")) < 500
            await until(lambda: len(inputs(world, "second")) == 1_001)
        assert inputs(world, "second") == [*range(1_000), "live"]

    run(test)


def test_killed_half_way_it_goes_on_from_its_position(monkeypatch: Any) -> None:
    monkeypatch.setattr(backfill, "SLICE", 10)

    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("first", "orders"))
        await world.publish("orders", *range(500))
        async with world.running():
            await until(lambda: len(world.starts()) == 500)
        await world.definitions.register(workflow("second", "orders", start="earliest"))
        reader = CountingReader(world, "orders", stop_after=20)
        killed = asyncio.create_task(world.router(reader=reader, commit_interval=0.0).run())
        await until(lambda: reader.slices > 20)
        done = await world.served("second", "orders")
        killed.cancel()
        await asyncio.gather(killed, return_exceptions=True)
        assert 0 < done < 500
        async with world.running():
            await until(lambda: len(set(map(str, inputs(world, "second")))) == 500)
        twice = [value for value, times in Counter(inputs(world, "second")).items() if times > 1]
        assert len(twice) <= 10
        assert inputs(world, "first") == list(range(500))

    run(test)


class CountingReader:
    """A reader that counts the slices of a topic, and stands still after some."""

    def __init__(self, world: World, topic: str, stop_after: int = 10**9) -> None:
        self._to, self._topic, self._stop_after = world.log.reader(), topic, stop_after
        self.slices = self.records = 0

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        return await self._to.bounds(topic, partition)

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        return await self._to.offset_at(topic, partition, timestamp)

    async def read(self, topic: str, partition: int, start: int, end: int) -> list[Any]:
        found = await self._to.read(topic, partition, start, end)
        if topic == self._topic:
            self.slices, self.records = self.slices + 1, self.records + len(found)
            if self.slices > self._stop_after:
                await asyncio.Event().wait()
        return found


def test_ten_workflows_on_a_topic_are_one_read_of_it() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 2)
        for number in range(10):
            await world.definitions.register(workflow(f"w-{number}", "orders"))
        await world.publish("orders", *range(50))
        reader = CountingReader(world, "orders")
        async with world.running(reader=reader):
            await until(lambda: len(world.starts()) == 500)
        assert sum(world.polled.values()) == 50
        assert reader.records == 0
        for number in range(10, 20):
            await world.definitions.register(workflow(f"w-{number}", "orders", start="earliest"))
        async with world.running(reader=reader):
            await until(lambda: len(world.starts()) == 1_000)
        # Those that go back share one read as well, and nobody reads live what was read.
        assert sum(world.polled.values()) == 50
        assert reader.records == 50

    run(test)


# Who else writes positions


def test_a_zombie_does_not_move_a_position_back_for_good() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("plain", "orders"))
        await world.publish("orders", *range(10))
        registered = world.definitions.registration("plain")
        assert registered is not None
        key = PositionKey("plain", "orders", 0, world.log.topic_id("orders"))
        late = TriggerPosition(next_offset=3, registered=registered.at)
        zombie = Record(TOPICS.positions, key.encode(), encode_message(late), 0)

        def last() -> int:
            mine = [each for each in world.log.records(TOPICS.positions) if each.key == key.encode()]
            return TriggerPosition.model_validate_json(mine[-1].value or b"").next_offset

        async with world.running():
            await until(lambda: len(world.starts()) == 10)
            await settled(world, "plain", "orders", 10)
            await world.log.producer().send([zombie])
            assert last() == 3
            await until(lambda: last() == 10)  # written over, so that compaction keeps the right one
        await world.log.producer().send([zombie])
        async with world.running():
            await world.publish("orders", 10)
            await until(lambda: len(world.starts()) == 11)
        assert len(world.starts()) == 11

    run(test)


def test_bad_positions_are_skipped() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("plain", "orders"))
        await world.publish("orders", 0)
        key = PositionKey("plain", "orders", 0, world.log.topic_id("orders")).encode()
        junk = [(b"\xff", b"{}"), (b"a/b", b"{}"), (b"a/b/c/d", b"{}"), (key, b"{"), (key, b'{"next_offset": -1}')]
        await world.log.producer().send([Record(TOPICS.positions, *each, 0) for each in junk])
        async with world.running():
            await until(lambda: len(world.starts()) == 1)

    run(test)


def test_a_topic_made_again_while_it_is_read_begins_anew() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("plain", "orders"))
        async with world.running():
            await world.publish("orders", 0, 1)
            await until(lambda: len(world.starts()) == 2)
            world.log.delete_topic("orders")
            world.log.create_topic("orders", 1)
            topic_id = world.log.topic_id("orders")
            await world.publish("orders", 2, 3, 4)
            await until(lambda: 4 in inputs(world, "plain"))
            await settled(world, "plain", "orders", 3)
        anew = {record_execution_id("plain", topic_id, 0, offset) for offset in range(3)}
        assert anew <= {start["execution"] for start in world.starts()}

    run(test)


# What was filtered


def test_ranges_are_told_whatever_their_order() -> None:
    omissions, omitted = Omissions(), Omitted("plain", "where")
    for first, last in [(7, 7), (8, 9), (11, 12), (3, 3), (4, 6), (5, 5), (7, 8)]:
        omissions.add(omitted, first, last)
    [part] = omissions.message("orders", 0, "id").filtered
    assert part.ranges == [(7, 9), (11, 12), (3, 8)]


def test_what_a_where_drops_is_a_range_and_not_a_record_each() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("hundreds", "orders", where="data.n % 100 == 0"))
        await world.definitions.register(workflow("all", "orders"))
        await world.publish("orders", *({"n": number} for number in range(1_000)), None)
        async with world.running(commit_interval=3_600.0):
            await until(lambda: world.polled["orders"] == 1_001)
        assert len(world.starts()) == 1_010
        assert len(world.log.records(TOPICS.fates)) == 1
        assert world.fates() == [
            ("orders", 0, "all", "tombstone", [[1_000, 1_000]]),
            ("orders", 0, "hundreds", "tombstone", [[1_000, 1_000]]),
            ("orders", 0, "hundreds", "where", [[n + 1, n + 99] for n in range(0, 1_000, 100)]),
        ]

    run(test)


def test_a_position_is_never_committed_before_what_was_left_out() -> None:
    async def test(world: World) -> None:
        world.log.create_topic("orders", 1)
        await world.definitions.register(workflow("plain", "orders"))
        await world.publish("orders", None, None)
        refusing = Refusing(world, TOPICS.fates)
        async with world.running(refusing):
            await until(lambda: refusing.refused > 1)
            assert await world.served("plain", "orders") == 0
            refusing.topics = ()
            await settled(world, "plain", "orders", 2)
        assert world.fates() == [("orders", 0, "plain", "tombstone", [[0, 1]])]

    run(test)


class Refusing:
    """A producer that does not reach some topics."""

    def __init__(self, world: World, *topics: str) -> None:
        self._to, self.topics, self.refused = world.log.producer(), topics, 0

    async def send(self, records: Iterable[Record]) -> list[Any]:
        records = list(records)
        if any(record.topic in self.topics for record in records):
            self.refused += 1
            raise LogUnavailable("the broker went away")
        return await self._to.send(records)
