"""What only Kafka shows: control records, retention, topics and their administration."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from confluent_kafka import Producer as ConfluentProducer
from confluent_kafka import TopicPartition as ConfluentPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    OffsetSpec,
    ResourceType,
)

from flowpilot.adapters.kafka import catalog
from flowpilot.adapters.kafka.admin import (
    AdminError,
    KafkaAdmin,
    KafkaUnreachable,
    PartitionsChanged,
    ReplicationRefused,
    UnknownTopic,
)
from flowpilot.adapters.kafka.config import Properties, consumer_properties, producer_properties, reader_properties
from flowpilot.adapters.kafka.consumer import KafkaConsumer
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.ports.log import LogUnavailable, MembershipLost, Record, TopicPartition
from flowpilot.settings import Settings
from tests.conftest import delete_topics
from tests.waiting import eventually, eventually_async

pytestmark = pytest.mark.integration
run = asyncio.run


def admin_client(settings: Settings) -> AdminClient:
    return AdminClient({"bootstrap.servers": settings.bootstrap_servers})


def test_a_range_whose_tail_has_no_records_ends(kafka_settings: Settings) -> None:
    """As after compaction: the last offset of the range holds nothing that a consumer is given."""
    topic = kafka_settings.topics.control
    transactional = ConfluentProducer(
        {"bootstrap.servers": kafka_settings.bootstrap_servers, "transactional.id": kafka_settings.namespace}
    )
    transactional.init_transactions(10)
    transactional.begin_transaction()
    transactional.produce(topic, b"v", b"k")
    transactional.commit_transaction(10)

    async def scenario() -> None:
        reader = KafkaReader(reader_properties(kafka_settings))

        async def marked() -> bool:  # the broker answers a commit before its marker stands in the log
            return await reader.bounds(topic, 0) == (0, 2)

        await eventually_async(marked, 60)
        assert [item.offset for item in await reader.read(topic, 0, 0, 2)] == [0]
        assert await reader.read(topic, 0, 1, 2) == []
        reader.close()

    run(scenario())


def test_a_range_whose_head_is_gone_begins_where_records_are(kafka_settings: Settings) -> None:
    topic = kafka_settings.topics.control

    async def scenario() -> None:
        producer, reader = (
            KafkaProducer(producer_properties(kafka_settings)),
            KafkaReader(reader_properties(kafka_settings)),
        )
        await producer.send([Record(topic, b"k", b"v", 0)] * 10)
        client = admin_client(kafka_settings)  # its answers come only while it is referred to
        removed = client.delete_records([ConfluentPartition(topic, 0, 6)])
        for future in removed.values():
            future.result(10)
        assert await reader.bounds(topic, 0) == (6, 10)
        assert [item.offset for item in await reader.read(topic, 0, 0, 10)] == [6, 7, 8, 9]
        assert await reader.read(topic, 0, 0, 5) == []
        producer.close()
        reader.close()

    run(scenario())


def test_a_gapless_producer_is_refused_nothing_it_may_send(kafka_settings: Settings) -> None:
    """Errors found before anything is sent leave no gap, so they fail their record alone here too."""
    topic = kafka_settings.topics.changelog

    async def scenario() -> None:
        producer = KafkaProducer(producer_properties(kafka_settings, gapless=True))
        deliveries = await producer.send(
            [
                Record(topic, b"k", b"1", 0),
                Record("no-such-topic", b"k", b"lost"),
                Record(topic, b"k", bytes(64 << 20), 0),
                Record(topic, b"k", b"2", 0),
            ]
        )
        assert [delivery.offset for delivery in deliveries] == [0, -1, -1, 1]
        assert [each[:3] for each in await producer.send([Record(topic, b"k", b"3", 0)])] == [(0, 2, None)]
        producer.close()

    run(scenario())


def test_a_seek_drops_what_a_poll_had_fetched_already(kafka_settings: Settings) -> None:
    topic = kafka_settings.topics.control
    place = TopicPartition(topic, 0)

    async def scenario() -> None:
        producer = KafkaProducer(producer_properties(kafka_settings))
        consumer = KafkaConsumer(consumer_properties(kafka_settings, kafka_settings.namespace), [topic])
        await producer.send([Record(topic, b"k", b"v", 0)] * 3)
        waiting = asyncio.create_task(consumer.poll(10, 20))
        await asyncio.sleep(0)
        waiting.cancel()
        under_way = consumer._under_way  # the only way to know that it has fetched
        assert under_way is not None
        await asyncio.wait([under_way])
        assert under_way.result()[0].offset == 0
        consumer.seek(place, 2)
        found = await consumer.poll(10, 0) + await consumer.poll(10, 10)
        assert [record.offset for record in found] == [2]
        await consumer.close()
        producer.close()

    run(scenario())


def test_a_commit_amid_a_rebalance_is_not_lost(kafka_settings: Settings) -> None:
    """The broker refuses a member while its group is between two generations, though it keeps its partitions."""
    place = TopicPartition(kafka_settings.topics.control, 0)

    async def scenario() -> None:
        properties = consumer_properties(kafka_settings, kafka_settings.namespace)
        mine: set[TopicPartition] = set()

        async def assigned(partitions: Sequence[TopicPartition]) -> None:
            mine.update(partitions)

        async def revoked(partitions: Sequence[TopicPartition]) -> None:
            mine.difference_update(partitions)

        consumer = KafkaConsumer(properties, [place.topic], on_assigned=assigned, on_revoked=revoked)

        async def come_and_go() -> None:
            for _ in range(2):
                other = KafkaConsumer(properties, [place.topic])
                await other.poll(1, 0.2)
                await other.close()

        others, offset = None, 0
        try:
            while others is None or not others.done():
                await consumer.poll(1, 0)
                if place in mine:  # there is one partition: another member may have it for a while
                    others = others or asyncio.create_task(come_and_go())
                    offset += 1
                    await consumer.commit({place: offset})
                    assert await consumer.committed([place]) == {place: offset}
        finally:
            if others is not None:
                await others
            await consumer.close()

    run(scenario())


def test_no_broker_is_log_unavailable(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})

    async def scenario() -> None:
        reader = KafkaReader(reader_properties(nowhere), timeout=0.5)
        with pytest.raises(LogUnavailable):
            await reader.bounds("topic", 0)
        reader.close()
        producer = KafkaProducer({**producer_properties(nowhere), "message.timeout.ms": 500})
        with pytest.raises(LogUnavailable):
            await producer.send([Record("topic", b"k", b"v")])
        producer.close()

    run(scenario())


def test_setup_creates_every_topic_once(settings: Settings) -> None:
    admin = KafkaAdmin(settings)
    names = [topic.name for topic in settings.topics.core()] + [settings.topics.steps("notify")]
    assert admin.exists(names) == set()
    assert admin.setup(["notify"]) == [(name, "created") for name in names]
    assert admin.exists([*names, "no-such-topic"]) == set(names)
    assert admin.setup(["notify", "notify"]) == [(name, "unchanged") for name in names]
    assert admin.partitions(settings.topics.events) == settings.event_partitions
    assert admin.partitions(settings.topics.changelog) == settings.event_partitions
    assert admin.partitions(settings.topics.definitions) == 1
    assert admin.partitions(settings.topics.steps("notify")) == settings.step_partitions
    assert admin.ensure_step_topics(["notify", "other"]) == [
        (settings.topics.steps("notify"), "unchanged"),
        (settings.topics.steps("other"), "created"),
    ]
    delete_topics(settings)


def test_every_partition_serves_when_setup_returns(settings: Settings) -> None:
    """A leader is known before it leads: the command that comes next must not be told that there is none."""
    many = settings.model_copy(update={"event_partitions": 24})
    KafkaAdmin(many).setup()
    topics = many.topics
    asked = {
        ConfluentPartition(name, number): OffsetSpec.latest()
        for name in (topics.definitions, topics.events, topics.changelog, topics.history)
        for number in range(1 if name == topics.definitions else 24)
    }
    client = admin_client(many)
    answers = client.list_offsets(asked, request_timeout=10)
    assert [future.result().offset for future in answers.values()] == [0] * 73
    delete_topics(many)


def test_setup_configures_topics_as_declared(kafka_settings: Settings) -> None:
    admin, client = KafkaAdmin(kafka_settings), admin_client(kafka_settings)
    declared = {topic.name: topic.config() for topic in kafka_settings.topics.core()}

    def found() -> dict[str, dict[str, str | None]]:
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in declared]
        answers = {r.name: future.result(10) for r, future in client.describe_configs(resources).items()}
        return {name: {key: answers[name][key].value for key in wanted} for name, wanted in declared.items()}

    assert found() == declared
    changed = ConfigResource(ResourceType.TOPIC, kafka_settings.topics.history)
    changed.add_incremental_config(ConfigEntry("retention.ms", "1000", incremental_operation=AlterConfigOpType.SET))
    for future in client.incremental_alter_configs([changed]).values():
        future.result(10)
    eventually(lambda: found() != declared)
    outcomes = dict(admin.setup())
    assert outcomes.pop(kafka_settings.topics.history) == "updated"
    assert set(outcomes.values()) == {"unchanged"}
    eventually(lambda: found() == declared)


def test_setup_refuses_another_partition_count(kafka_settings: Settings) -> None:
    other = kafka_settings.model_copy(update={"event_partitions": 5})
    with pytest.raises(
        PartitionsChanged, match=r"events has 4 partitions instead of 5.*FLOWPILOT_EVENT_PARTITIONS"
    ):
        KafkaAdmin(other).setup(["q"])
    assert KafkaAdmin(kafka_settings).exists([kafka_settings.topics.steps("q")]) == set()


def test_setup_refuses_replication_that_the_topics_do_not_have(kafka_settings: Settings) -> None:
    admin, client = KafkaAdmin(kafka_settings), admin_client(kafka_settings)
    admin.setup(["q"])
    events = ConfigResource(ResourceType.TOPIC, kafka_settings.topics.events)

    def in_sync() -> str | None:
        return client.describe_configs([events])[events].result(10)["min.insync.replicas"].value

    for update in ({"replication_factor": 3, "min_insync_replicas": 2}, {"min_insync_replicas": 2}):
        other = kafka_settings.model_copy(update=update)
        with pytest.raises(ReplicationRefused, match="FLOWPILOT_MIN_INSYNC_REPLICAS"):
            KafkaAdmin(other).setup(["q"])
        with pytest.raises(ReplicationRefused):
            KafkaAdmin(other).ensure_step_topics(["q"], replication=True)
    assert in_sync() == "1"
    # A worker's settings decide nothing about a topic that is there.
    worker = KafkaAdmin(kafka_settings.model_copy(update={"replication_factor": 3, "min_insync_replicas": 2}))
    assert worker.ensure_step_topics(["q"]) == [(kafka_settings.topics.steps("q"), "unchanged")]


def test_setup_mends_how_many_replicas_must_be_in_sync(kafka_settings: Settings) -> None:
    client = admin_client(kafka_settings)
    changed = ConfigResource(ResourceType.TOPIC, kafka_settings.topics.events)
    entry = ConfigEntry("min.insync.replicas", "2", incremental_operation=AlterConfigOpType.SET)
    changed.add_incremental_config(entry)
    client.incremental_alter_configs([changed])[changed].result(10)

    def in_sync() -> str | None:
        return client.describe_configs([changed])[changed].result(10)["min.insync.replicas"].value

    eventually(lambda: in_sync() == "2")
    # As many as the topic's own replicas want, whatever a new topic would have.
    other = kafka_settings.model_copy(update={"replication_factor": 3})
    assert dict(KafkaAdmin(other).setup())[kafka_settings.topics.events] == "updated"
    eventually(lambda: in_sync() == "1")


def test_advice_looks_at_the_topics_that_are_there(kafka_settings: Settings) -> None:
    KafkaAdmin(kafka_settings).setup(["q"])
    assert [line for line in KafkaAdmin(kafka_settings).advice() if "fewer" in line] == []
    other = kafka_settings.model_copy(update={"replication_factor": 2})
    [line] = [line for line in KafkaAdmin(other).advice() if "fewer" in line]
    assert f"{len(kafka_settings.topics.core()) + 1 - 3} more" in line


def test_a_topic_id_outlives_nothing_but_the_topic(kafka_settings: Settings) -> None:
    admin, name = KafkaAdmin(kafka_settings), kafka_settings.topics.steps("q")
    admin.ensure_step_topics(["q"])
    first = admin.topic_id(name)
    assert admin.topic_id(name) == first
    assert len(first) == 22
    client = admin_client(kafka_settings)
    client.delete_topics([name])[name].result(10)
    eventually(lambda: not admin.exists([name]))
    with pytest.raises(UnknownTopic, match="flowpilot setup"):
        admin.topic_id(name)
    admin.ensure_step_topics(["q"])
    assert admin.topic_id(name) != first


def test_a_topic_id_is_written_in_one_way(kafka_settings: Settings) -> None:
    admin, names = KafkaAdmin(kafka_settings), [topic.name for topic in kafka_settings.topics.core()]
    ids = run(catalog.KafkaTopicCatalog(kafka_settings).topic_ids(names))
    assert ids == {name: admin.topic_id(name) for name in names}
    assert not set("".join(ids.values())) & set("+/=")


def test_administration_says_what_is_wrong(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})
    with pytest.raises(KafkaUnreachable, match=r"cannot reach Kafka at 127\.0\.0\.1:1"):
        KafkaAdmin(nowhere, timeout=0.5).setup()
    too_many = settings.model_copy(update={"replication_factor": 9})
    with pytest.raises(AdminError, match="FLOWPILOT_REPLICATION_FACTOR"):
        KafkaAdmin(too_many).setup()


def test_a_member_whose_name_another_takes_says_so_again_and_again(kafka_settings: Settings) -> None:
    settings = kafka_settings.model_copy(update={"member_id": "same"})
    topic, group = settings.topics.triggers, f"{settings.namespace}.g"

    async def scenario() -> None:
        first = KafkaConsumer(consumer_properties(settings, group), [topic])
        assert await first.poll(1, 3.0) == []
        second = KafkaConsumer(consumer_properties(settings, group), [topic])
        lost: list[MembershipLost] = []

        async def fenced() -> bool:
            await second.poll(1, 0.05)
            try:
                await first.poll(1, 0.05)
            except MembershipLost as error:
                lost.append(error)
            return len(lost) >= 3

        await eventually_async(fenced, 60)
        assert "FLOWPILOT_MEMBER_ID" in str(lost[0])
        await first.commit({TopicPartition(topic, 0): 0})  # goes nowhere, like that of a partition it has lost
        await first.close()
        await second.close()

    run(scenario())


def test_the_catalog_asks_with_a_new_client_after_it_got_no_answer(
    kafka_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_TIMEOUT", 0.3)
    made: list[AdminClient] = []

    def make(properties: Properties) -> AdminClient:
        # The first one stands for a client whose controller is gone.
        made.append(AdminClient({**properties, **({} if made else {"bootstrap.servers": "127.0.0.1:1"})}))
        return made[-1]

    monkeypatch.setattr(catalog, "AdminClient", make)
    name = kafka_settings.topics.triggers
    asked = catalog.KafkaTopicCatalog(kafka_settings)

    async def scenario() -> None:
        with pytest.raises(LogUnavailable):
            await asked.topic_ids([name])
        monkeypatch.setattr(catalog, "_TIMEOUT", 10.0)
        assert set(await asked.topic_ids([name])) == {name}

    run(scenario())
