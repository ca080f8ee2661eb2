"""What tests do to the in-memory broker beyond its ports: clock, compaction, retention, lost members."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.core.murmur2 import murmur2
from flowpilot.ports.log import LogUnavailable, Record, TopicPartition

run = asyncio.run


@pytest.mark.parametrize(
    ("data", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_gives_the_values_of_kafkas_own_test(data: bytes, signed: int) -> None:
    assert murmur2(data) == signed % 2**32


def test_the_clock_gives_the_timestamps() -> None:
    times = iter([10, 20])
    log = MemoryLog(clock=lambda: next(times))
    log.create_topic("t", 1)
    run(log.producer().send([Record("t", b"k", b"1"), Record("t", b"k", b"2")]))
    assert [record.timestamp for record in log.records("t")] == [10, 20]


def test_compaction_keeps_each_keys_last_record() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        log.create_topic("t", 1, compacted=True)
        producer, reader = log.producer(), log.reader()
        await producer.send([Record("t", key, value) for key, value in [(b"a", b"1"), (b"b", b"1"), (b"a", b"2")]])
        await producer.send([Record("t", b"b", None)])
        log.compact("t")
        assert [(record.offset, record.value) for record in log.records("t")] == [(2, b"2"), (3, None)]
        log.compact("t", tombstones=True)
        assert await reader.bounds("t", 0) == (0, 4)
        assert [record.offset for record in await reader.read("t", 0, 0, 4)] == [2]
        assert await reader.read("t", 0, 3, 4) == []
        assert [each[:3] for each in await producer.send([Record("t", b"a", b"3")])] == [(0, 4, None)]
        assert [record.offset for record in await reader.read("t", 0, 0, 5)] == [2, 4]
        [refused] = await producer.send([Record("t", None, b"v")])
        assert refused.error is not None

    run(scenario())


def test_a_consumer_goes_on_across_what_compaction_took() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        log.create_topic("t", 1, compacted=True)
        await log.producer().send([Record("t", b"a", str(n).encode()) for n in range(5)])
        log.compact("t")
        consumer = log.consumer("g", ["t"])
        assert [record.offset for record in await consumer.poll(10, 0)] == [4]

    run(scenario())


def test_retention_raises_the_low_watermark() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        log.create_topic("t", 1)
        await log.producer().send([Record("t", b"k", b"v")] * 5)
        log.delete_before("t", 0, 3)
        reader = log.reader()
        assert await reader.bounds("t", 0) == (3, 5)
        assert [record.offset for record in await reader.read("t", 0, 0, 5)] == [3, 4]
        assert [record.offset for record in await log.consumer("g", ["t"]).poll(10, 0)] == [3, 4]

    run(scenario())


def test_a_topic_created_again_is_another() -> None:
    log = MemoryLog()
    log.create_topic("t", 1)
    first = log.topic_id("t")
    with pytest.raises(ValueError, match="exists"):
        log.create_topic("t", 1)
    log.delete_topic("t")
    with pytest.raises(LogUnavailable):
        log.topic_id("t")
    log.create_topic("t", 2)
    assert log.topic_id("t") != first
    assert log.partitions("t") == 2


def test_a_lost_member_is_told_late_and_commits_nothing() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        log.create_topic("t", 1)
        await log.producer().send([Record("t", b"k", b"v")] * 3)
        told: list[str] = []

        async def revoked(_: Sequence[TopicPartition]) -> None:
            told.append("revoked")

        place = TopicPartition("t", 0)
        zombie = log.consumer("g", ["t"], on_revoked=revoked)
        assert len(await zombie.poll(10, 0)) == 3
        await zombie.commit({place: 1})
        zombie.lose()
        successor = log.consumer("g", ["t"])
        assert [record.offset for record in await successor.poll(10, 0)] == [1, 2]
        assert told == []
        await zombie.commit({place: 3})
        assert await successor.committed([place]) == {place: 1}
        assert await zombie.poll(10, 0) == []
        assert told == ["revoked"]
        await successor.close()
        assert [record.offset for record in await zombie.poll(10, 0)] == [1, 2]

    run(scenario())


def test_a_new_topic_is_assigned_to_who_waits_for_it() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        consumer = log.consumer("g", ["t"])
        assert await consumer.poll(10, 0) == []
        log.create_topic("t", 1)
        await log.producer().send([Record("t", b"k", b"v")])
        assert len(await consumer.poll(10, 0)) == 1

    run(scenario())


def test_many_members_share_evenly_and_nothing_moves_without_need() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        log.create_topic("t", 10)
        held: dict[int, set[int]] = {}
        members = []

        def join(number: int) -> None:
            held[number] = set()

            async def gained(partitions: Sequence[TopicPartition]) -> None:
                held[number] |= {item.partition for item in partitions}

            async def lost(partitions: Sequence[TopicPartition]) -> None:
                held[number] -= {item.partition for item in partitions}

            members.append(log.consumer("g", ["t"], on_assigned=gained, on_revoked=lost))

        async def settle() -> None:
            for _ in range(2):
                for member in members:
                    await member.poll(10, 0)

        for number in range(4):
            before = {key: set(value) for key, value in held.items()}
            join(number)
            await settle()
            assert sorted(p for value in held.values() for p in value) == list(range(10))
            sizes = [len(value) for value in held.values()]
            assert max(sizes) - min(sizes) <= 1
            assert all(held[key] <= value for key, value in before.items())
        left = held[1]
        await members.pop(1).close()
        assert left == set()
        await settle()
        assert sorted(p for value in held.values() for p in value) == list(range(10))

    run(scenario())
