"""Producing and reading ranges: one behaviour, in memory and on Kafka."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from flowpilot.core.murmur2 import partition_of
from flowpilot.ports.log import LogUnavailable, Record
from tests.contract.logs import MEMORY_AND_KAFKA, Log, open_log
from tests.waiting import eventually_async

run = asyncio.run


@pytest.fixture(params=MEMORY_AND_KAFKA)
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    yield from open_log(request.param, request)


def test_records_come_back_as_they_were_produced(log: Log) -> None:
    topic = log.topic()
    records = [
        Record(topic, b"key", b"value", 0),
        Record(topic, b"key", None, 0),
        Record(topic, None, b"\x00\xff", 0),
        Record(topic, b"", b"", 0, (("a", b"1"), ("b", b""), ("a", b"2"))),
    ]

    async def scenario() -> None:
        before = time.time() * 1000
        deliveries = await log.producer().send(records)
        assert [each[:3] for each in deliveries] == [(0, offset, None) for offset in range(4)]
        found = await log.reader().read(topic, 0, 0, 4)
        assert [(item.topic, item.partition, item.offset) for item in found] == [(topic, 0, n) for n in range(4)]
        assert [Record(item.topic, item.key, item.value, 0, item.headers) for item in found] == records
        assert all(before - 1_000 <= item.timestamp <= time.time() * 1000 + 1_000 for item in found)

    run(scenario())


def test_a_batch_keeps_its_order_in_every_partition(log: Log) -> None:
    topic = log.topic(3)

    async def scenario() -> None:
        producer, reader = log.producer(), log.reader()
        sent = [Record(topic, f"k{n % 17}".encode(), str(n).encode()) for n in range(1_000)]
        deliveries = await producer.send(sent)
        places: dict[int, list[tuple[int, bytes | None]]] = {}
        for record, delivery in zip(sent, deliveries, strict=True):
            assert delivery.error is None
            places.setdefault(delivery.partition, []).append((delivery.offset, record.value))
        for partition, expected in places.items():
            found = await reader.read(topic, partition, 0, len(expected))
            assert [(item.offset, item.value) for item in found] == expected

    run(scenario())


def test_tasks_share_a_producer(log: Log) -> None:
    topic = log.topic(2)

    async def scenario() -> None:
        producer = log.producer()
        batches = [[Record(topic, b"k", f"{t}.{n}".encode(), t % 2) for n in range(50)] for t in range(8)]
        answers = await asyncio.gather(*(producer.send(batch) for batch in batches))
        for answer in answers:
            offsets = [delivery.offset for delivery in answer]
            assert offsets == sorted(offsets)
        assert sorted(d.offset for answer in answers for d in answer if d.partition == 0) == list(range(200))

    run(scenario())


def test_a_delivery_tells_the_brokers_time(log: Log) -> None:
    """The very time that readers see of the record, not the producer's."""
    topic = log.topic(2)

    async def scenario() -> None:
        records = [Record(topic, b"k", b"v", partition) for partition in (0, 1, 0)]
        deliveries = await log.producer().send(records)
        read = []
        for each in deliveries:
            read += await log.reader().read(topic, each.partition, each.offset, each.offset + 1)
        assert [each.timestamp for each in deliveries] == [record.timestamp for record in read]
        [refused] = await log.producer().send([Record(topic, b"k", b"v", 7)])
        assert refused.timestamp is None

    run(scenario())


def test_an_empty_batch_is_nothing(log: Log) -> None:
    assert run(log.producer().send([])) == []


def test_murmur2_chooses_the_partition(log: Log) -> None:
    topic = log.topic(7)
    keys = [
        b"",
        b"a",
        b"21",
        b"foobar",
        b"\xff\xfe\xfd",
        *(f"{n:x}-execution"[: n % 14].encode() for n in range(60)),
    ]

    async def scenario() -> None:
        deliveries = await log.producer().send([Record(topic, key, b"v") for key in keys])
        assert [delivery.partition for delivery in deliveries] == [partition_of(key, 7) for key in keys]

    run(scenario())


def test_one_bad_record_among_good_ones_fails_alone(log: Log) -> None:
    topic = log.topic(2)
    records = [
        Record(topic, b"k", b"before", 0),
        Record(topic, b"k", bytes(2 << 20), 0),  # above the topic's limit
        Record("no-such-topic", b"k", b"lost"),
        Record(topic, b"k", bytes(64 << 20), 0),  # above the client's limit
        Record(topic, b"k", b"nowhere", 7),
        Record(topic, b"k", b"after", 0),
        Record(topic, b"k", b"aside", 1),
    ]

    async def scenario() -> None:
        producer, reader = log.producer(), log.reader()
        deliveries = await producer.send(records)
        assert [delivery.offset for delivery in deliveries] == [0, -1, -1, -1, -1, 1, 0]
        assert [delivery.error is None for delivery in deliveries] == [True, False, False, False, False, True, True]
        assert [item.value for item in await reader.read(topic, 0, 0, 9)] == [b"before", b"after"]
        assert [each[:3] for each in await producer.send(records[-2:])] == [(0, 2, None), (1, 1, None)]

    run(scenario())


def test_a_topic_that_was_unknown_is_found_once_it_exists(log: Log) -> None:
    async def scenario() -> None:
        producer = log.producer()
        beside = log.topic()
        late = f"{beside}-late"
        [refused] = await producer.send([Record(late, b"k", b"v")])
        assert refused.error is not None
        log.topic(name=late)

        async def taken() -> bool:
            [delivery] = await producer.send([Record(late, b"k", b"v")])
            return delivery[:3] == (0, 0, None)

        await eventually_async(taken)

    run(scenario())


def test_missing_partition_is_an_error_of_that_record(log: Log) -> None:
    topic = log.topic(2)

    async def scenario() -> None:
        producer, reader = log.producer(), log.reader()
        assert await reader.partitions(topic) == 2
        [taken] = await producer.send([Record(topic, b"k", b"v", 1)])
        assert taken[:2] == (1, 0)
        first, missing, last = await producer.send([Record(topic, b"k", b"v", number) for number in (1, 7, 1)])
        assert (first[:3], last[:3]) == ((1, 1, None), (1, 2, None))
        assert missing.error is not None
        with pytest.raises(LogUnavailable):
            await reader.partitions(f"{topic}-none")

    run(scenario())


def test_bounds(log: Log) -> None:
    topic = log.topic(2)

    async def scenario() -> None:
        producer, reader = log.producer(), log.reader()
        assert await reader.bounds(topic, 1) == (0, 0)
        await producer.send([Record(topic, b"k", b"v", 1)] * 3)
        assert await reader.bounds(topic, 1) == (0, 3)
        assert await reader.bounds(topic, 0) == (0, 0)
        with pytest.raises(LogUnavailable):
            await reader.bounds("no-such-topic", 0)
        with pytest.raises(LogUnavailable):
            await reader.bounds(topic, 2)

    run(scenario())


def test_the_offset_at_a_time(log: Log) -> None:
    topic = log.topic(2)

    async def scenario() -> None:
        producer, reader = log.producer(), log.reader()
        assert await reader.offset_at(topic, 0, 0) == 0
        times = []
        for value in (b"0", b"1", b"2"):
            await producer.send([Record(topic, None, value, 0)])
            _, end = await reader.bounds(topic, 0)
            times.append((await reader.read(topic, 0, end - 1, end))[0].timestamp)
            await eventually_async(lambda: time.time() * 1000 > times[-1] + 1)  # so that the times differ
        assert [await reader.offset_at(topic, 0, at) for at in times] == [0, 1, 2]
        assert [await reader.offset_at(topic, 0, at + 1) for at in times] == [1, 2, 3]
        assert await reader.offset_at(topic, 0, -86_400_000) == 0
        assert await reader.offset_at(topic, 1, times[0]) == 0
        with pytest.raises(LogUnavailable):
            await reader.offset_at("no-such-topic", 0, 0)

    run(scenario())


def test_ranges(log: Log) -> None:
    topic = log.topic(2)

    async def scenario() -> None:
        producer, reader = log.producer(), log.reader()
        await producer.send([Record(topic, None, str(n).encode(), 0) for n in range(300)])

        async def offsets(start: int, end: int) -> list[int]:
            return [item.offset for item in await reader.read(topic, 0, start, end)]

        assert await offsets(0, 300) == list(range(300))
        assert await offsets(120, 123) == [120, 121, 122]
        assert await offsets(299, 300) == [299]
        assert await offsets(298, 1_000) == [298, 299]  # what is not written yet is not waited for
        assert await offsets(300, 400) == []
        assert await offsets(5, 5) == []
        assert await offsets(7, 3) == []
        assert await reader.read(topic, 1, 0, 10) == []
        await producer.send([Record(topic, None, b"300", 0)])
        assert await offsets(299, 301) == [299, 300]
        both = await asyncio.gather(reader.read(topic, 0, 0, 100), reader.read(topic, 0, 100, 200))
        assert [item.offset for part in both for item in part] == list(range(200))

    run(scenario())


def test_a_read_is_fast(log: Log) -> None:
    """Each range takes about a fetch, not librdkafka's second-long defaults: generous, for a busy machine."""
    topic = log.topic(3)

    async def scenario() -> None:
        producer, reader = log.producer(), log.reader()
        await producer.send([Record(topic, None, b"v", partition) for partition in range(3)])
        started = time.monotonic()
        for partition in range(3):
            assert len(await reader.read(topic, partition, 0, 1)) == 1
        assert time.monotonic() - started < 2

    run(scenario())
