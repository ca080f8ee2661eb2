"""A record that is not there is told apart from one that the audit does not know yet."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from flowpilot.adapters.postgres.migrations import upgrade
from flowpilot.app.triggers import Place, absence
from flowpilot.cli.failures import Exit
from flowpilot.cli.main import main
from flowpilot.settings import Settings

pytestmark = pytest.mark.integration


@pytest.fixture
def topic(settings: Settings) -> Iterator[str]:
    """A topic of three partitions; the first has the records 2, 3 and 4."""
    name = f"orders-{uuid.uuid4().hex[:8]}"
    servers = {"bootstrap.servers": settings.bootstrap_servers}
    admin, producer = AdminClient(servers), Producer(servers)
    admin.create_topics([NewTopic(name, 3, 1)])[name].result(10)
    for _ in range(5):
        producer.produce(name, b"{}", partition=0)
    assert producer.flush(10) == 0
    [removed] = admin.delete_records([TopicPartition(name, 0, 2)]).values()
    removed.result(10)
    yield name
    admin.delete_topics([name])[name].result(10)


def test_why_there_is_no_record(settings: Settings, topic: str) -> None:
    assert absence(settings, Place(topic, 0, 4)) is None
    assert absence(settings, Place(topic, 0, 2)) is None
    assert absence(settings, Place(topic, 0, 5)) == f"{topic}/0 has no record 5 yet: the next one there will be 5"
    assert absence(settings, Place(topic, 2, 0)) == f"{topic}/2 has no record 0 yet: the next one there will be 0"
    gone = absence(settings, Place(topic, 0, 1))
    assert gone == f"the audit knows no {topic}/0/1, and the first one left on Kafka is 2"
    assert absence(settings, Place(topic, 3, 0)) == f"topic {topic} has no partition 3, it has partitions 0 to 2"

    missing = f"no-{topic}"
    for _ in range(2):  # … also after the first question: asking creates no topic
        assert (absence(settings, Place(missing, 0, 0)) or "").startswith(f"there is no topic {missing} on Kafka")
    assert missing not in AdminClient({"bootstrap.servers": settings.bootstrap_servers}).list_topics().topics

    nowhere = settings.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})
    assert absence(nowhere, Place(topic, 3, 0)) is None


def test_the_command_says_so(
    settings: Settings,
    topic: str,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    upgrade(database_url)
    monkeypatch.setenv("FLOWPILOT_BOOTSTRAP_SERVERS", settings.bootstrap_servers)
    monkeypatch.setenv("FLOWPILOT_DATABASE_URL", database_url)

    def asked(*place: str) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["trigger", "fate", *place])
        told = capfd.readouterr()
        assert (ended.value.code, told.out, told.err.count("\n")) == (Exit.NOT_FOUND, "", 1)
        return told.err

    assert asked(topic, "7", "0") == f"error: topic {topic} has no partition 7, it has partitions 0 to 2\n"
    assert f"error: there is no topic no-{topic} on Kafka" in asked(f"no-{topic}", "0", "0")
    assert "knows nothing" in asked(topic, "0", "3")
    assert f"knows nothing of {topic}/0/3 (yet)" in asked(f"{topic}/0/3")

    monkeypatch.setenv("FLOWPILOT_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    assert "knows nothing" in asked(topic, "7", "0")
