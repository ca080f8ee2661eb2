"""Whatever a record carries beside its value, consumer and reader deliver it: in memory and on Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest
from confluent_kafka import Producer as ConfluentProducer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from flowpilot.adapters.kafka import unreadable
from flowpilot.adapters.kafka.config import consumer_properties, reader_properties
from flowpilot.adapters.kafka.consumer import KafkaConsumer
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.ports.log import NAME_LOST, RECORD_LOST, Fetched, Headers, Record, is_utf8
from flowpilot.settings import Settings
from tests import envelopes
from tests.contract.logs import MEMORY_AND_KAFKA, Log, open_log
from tests.envelopes import FAR, HOSTILE, ZSTD, Envelope
from tests.waiting import eventually_async

run = asyncio.run
GOOD = Envelope(headers=((b"a", b"1"),))
# The client specialises its calls after some dozens of records: those before the hostile ones see to that.
RECORDS = [(GOOD, b"good")] * 300 + [(each, name.encode()) for name, each in HOSTILE.items()] + [(GOOD, b"last")]


@pytest.fixture(params=MEMORY_AND_KAFKA)
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    yield from open_log(request.param, request)


def without_lost_names(headers: Headers) -> list[tuple[str, bytes]]:
    """librdkafka ends a name at a NUL, and tells the first of the names that are not UTF-8."""
    first = next((n for n, (name, _) in enumerate(headers) if not is_utf8(name)), None)
    return [
        (name.partition("\0")[0] if is_utf8(name) or n == first else NAME_LOST, value)
        for n, (name, value) in enumerate(headers)
    ]


def check(found: Sequence[Fetched], topic: str) -> None:
    expected = [each.around(value, topic=topic, offset=n) for n, (each, value) in enumerate(RECORDS)]
    for got, want in zip(found, expected, strict=True):
        assert got[:3] == want[:3]
        assert (got.key, got.value) == (want.key, want.value)
        assert without_lost_names(got.headers) == without_lost_names(want.headers)


def test_a_reader_delivers_hostile_envelopes(log: Log) -> None:
    topic = log.topic()

    async def scenario() -> None:
        assert await log.append(topic, RECORDS) == list(range(len(RECORDS)))
        check(await log.reader().read(topic, 0, 0, len(RECORDS)), topic)

    run(scenario())


def test_a_consumer_delivers_hostile_envelopes(log: Log) -> None:
    topic = log.topic()

    async def scenario() -> None:
        await log.append(topic, RECORDS)
        consumer = log.consumer("g", [topic])
        found: list[Fetched] = []

        async def all_of_them() -> bool:
            found.extend(await consumer.poll(1_000, 0.5))
            return len(found) >= len(RECORDS)

        await eventually_async(all_of_them, 30)
        check(found, topic)
        await consumer.close()

    run(scenario())


def test_a_name_that_is_not_utf8_is_sent_with_escapes(log: Log) -> None:
    """A record that is passed on, as a misplaced event is, has the headers that came with it."""
    topic = log.topic()

    async def scenario() -> None:
        headers = (("gr\udcf6\udcdfe", b"1"), (NAME_LOST, b"2"), ("größe", b"3"))
        [delivery] = await log.producer().send([Record(topic, b"k", b"v", 0, headers)])
        assert delivery[:3] == (0, 0, None)
        [found] = await log.reader().read(topic, 0, 0, 1)
        assert found.headers == ((r"gr\udcf6\udcdfe", b"1"), (r"\ud800", b"2"), ("größe", b"3"))

    run(scenario())


@pytest.mark.integration
@pytest.mark.parametrize("most", [unreadable.MOST, 3, 1])
def test_a_batch_too_large_to_decompress_holds_nothing_up(
    kafka_settings: Settings, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.7 KB of zstd are 120 MB, which librdkafka refuses: it fetches the batch again and again. There may be any
    number of records in them: `most` are delivered at once."""
    monkeypatch.setattr(unreadable, "MOST", most)
    topic, servers = kafka_settings.topics.control, kafka_settings.bootstrap_servers
    small = (Envelope(), b"small")
    bomb = [small, (Envelope(), bytes(120_000_000)), small, small, small]

    async def scenario() -> None:
        await envelopes.produce(servers, topic, [small])
        await envelopes.produce_batch(servers, topic, bomb, ZSTD)
        await envelopes.produce(servers, topic, [small, small])
        place = RECORD_LOST
        wanted = [None, place, place, place, place, place, None, None]
        reader = KafkaReader(reader_properties(kafka_settings))
        for start, end in ((0, 8), (0, 3), (2, 8), (3, 4), (6, 8)):
            found = await reader.read(topic, 0, start, end)
            assert [record.offset for record in found] == list(range(start, end))
            assert [record.headers[0][0] if record.headers else None for record in found] == wanted[start:end]
        reader.close()
        consumer = KafkaConsumer(consumer_properties(kafka_settings, kafka_settings.namespace), [topic])
        polled: list[Fetched] = []

        async def all_of_them() -> bool:
            found = await consumer.poll(1_000, 0.5)
            assert sum(bool(record.headers) for record in found) <= most
            polled.extend(found)
            return len(polled) >= 8

        await eventually_async(all_of_them, 60)
        assert [record.offset for record in polled] == list(range(8))
        assert [record.headers[0][0] if record.headers else None for record in polled] == wanted
        await consumer.close()

    run(scenario())


@pytest.mark.integration
def test_any_time_is_read_and_asked_for(kafka_settings: Settings) -> None:
    """A topic that takes the producer's time holds any; a start point is looked up among them."""
    topic = kafka_settings.topics.control
    changed = ConfigResource(ResourceType.TOPIC, topic)
    for name, value in envelopes.ANY_TIME.items():
        changed.add_incremental_config(ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET))
    client = AdminClient({"bootstrap.servers": kafka_settings.bootstrap_servers})
    client.incremental_alter_configs([changed])[changed].result(10)
    times = [-1, 0, -1_000, -FAR, 1_000, 2_000, FAR, 2**63 - 1, 1_000]

    async def scenario() -> None:
        records = [(Envelope(timestamp=each), b"v") for each in times]
        await envelopes.produce(kafka_settings.bootstrap_servers, topic, records)
        reader = KafkaReader(reader_properties(kafka_settings))
        assert [record.timestamp for record in await reader.read(topic, 0, 0, 9)] == times
        asked = {-(2**70): 1, -1: 1, 0: 1, 1: 4, 1_001: 5, 2_001: 6, 2**43: 6, FAR + 1: 7, 2**70: 7}
        assert {each: await reader.offset_at(topic, 0, each) for each in asked} == asked
        reader.close()

    run(scenario())


@pytest.mark.integration
@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_reader_delivers_what_is_compressed(kafka_settings: Settings, codec: str) -> None:
    topic = kafka_settings.topics.control
    other = ConfluentProducer({"bootstrap.servers": kafka_settings.bootstrap_servers, "compression.type": codec})
    for n in range(50):
        other.produce(topic, b"%d" % n * 100)
    assert other.flush(10) == 0

    async def scenario() -> None:
        reader = KafkaReader(reader_properties(kafka_settings))
        assert [record.value for record in await reader.read(topic, 0, 0, 50)] == [
            b"%d" % n * 100 for n in range(50)
        ]
        reader.close()

    run(scenario())


@pytest.mark.integration
def test_gaps_of_transactions_neither_end_nor_stall_a_range(kafka_settings: Settings) -> None:
    """Aborted records and the markers of transactions take offsets that no client delivers."""
    topic = kafka_settings.topics.control
    other = ConfluentProducer(
        {"bootstrap.servers": kafka_settings.bootstrap_servers, "transactional.id": kafka_settings.namespace}
    )
    other.init_transactions(10)
    for n in range(6):
        other.begin_transaction()
        for _ in range(20):
            other.produce(topic, b"%d" % n, b"k")
        other.flush(10)
        (other.abort_transaction if n % 2 else other.commit_transaction)(10)

    async def scenario() -> None:
        reader = KafkaReader(reader_properties(kafka_settings))

        async def marked() -> bool:
            return await reader.bounds(topic, 0) == (0, 126)

        await eventually_async(marked, 60)
        found = await reader.read(topic, 0, 0, 126)
        assert [record.offset for record in found] == [21 * n + k for n in (0, 2, 4) for k in range(20)]
        assert await reader.read(topic, 0, 21, 42) == []  # one that was aborted
        assert await reader.read(topic, 0, 105, 126) == []  # at the end of the log
        assert [record.offset for record in await reader.read(topic, 0, 19, 43)] == [19, 42]
        reader.close()

    run(scenario())
