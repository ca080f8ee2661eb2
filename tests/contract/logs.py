"""The two logs that the behavioural suites run on, under one face."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from flowpilot.adapters.kafka.config import consumer_properties, producer_properties, reader_properties
from flowpilot.adapters.kafka.consumer import KafkaConsumer
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.ports.log import Consumer, Producer, Reader, Record
from flowpilot.settings import Settings
from tests import envelopes
from tests.envelopes import Envelope
from tests.waiting import eventually

MEMORY_AND_KAFKA = ["memory", pytest.param("kafka", marks=pytest.mark.integration)]


class Log(Protocol):
    """What a test needs of a log beside the ports."""

    def topic(self, partitions: int = 1, *, compacted: bool = False, name: str = "") -> str: ...
    def producer(self) -> Producer: ...
    def reader(self) -> Reader: ...
    def consumer(self, group: str, topics: Sequence[str], **handlers: Any) -> Consumer: ...
    async def append(self, topic: str, records: Sequence[tuple[Envelope, bytes | None]]) -> list[int]: ...


class InMemory:
    def __init__(self) -> None:
        self.log = MemoryLog()
        self.producer = self.log.producer
        self.reader = self.log.reader
        self.consumer = self.log.consumer

    def topic(self, partitions: int = 1, *, compacted: bool = False, name: str = "") -> str:
        name = name or f"topic-{uuid.uuid4().hex[:8]}"
        self.log.create_topic(name, partitions, compacted=compacted)
        return name

    async def append(self, topic: str, records: Sequence[tuple[Envelope, bytes | None]]) -> list[int]:
        """As another client's producer would: see `tests.envelopes`."""
        return [self.log.append(Record(topic, env.key, value, 0, env.told)).offset for env, value in records]


class OnKafka:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
        self._topics: list[str] = []
        self._opened: list[KafkaProducer | KafkaReader] = []

    def topic(self, partitions: int = 1, *, compacted: bool = False, name: str = "") -> str:
        name = name or f"{self.settings.namespace}.{uuid.uuid4().hex[:8]}"
        config = {"message.timestamp.type": "LogAppendTime", "cleanup.policy": "compact" if compacted else "delete"}
        self._admin.create_topics([NewTopic(name, partitions, 1, config=config)])[name].result(10)
        self._topics.append(name)

        def led() -> bool:
            found = self._admin.list_topics(timeout=10).topics.get(name)
            return found is not None and len(found.partitions) == partitions

        eventually(led)
        return name

    def producer(self) -> KafkaProducer:
        made = KafkaProducer(producer_properties(self.settings))
        self._opened.append(made)
        return made

    def reader(self) -> KafkaReader:
        made = KafkaReader(reader_properties(self.settings))
        self._opened.append(made)
        return made

    def consumer(self, group: str, topics: Sequence[str], **handlers: Any) -> KafkaConsumer:
        name = f"{self.settings.namespace}.{group}"
        return KafkaConsumer(consumer_properties(self.settings, name), topics, **handlers)

    async def append(self, topic: str, records: Sequence[tuple[Envelope, bytes | None]]) -> list[int]:
        """As another client's producer would: see `tests.envelopes`."""
        return await envelopes.produce(self.settings.bootstrap_servers, topic, records)

    def close(self) -> None:
        for opened in self._opened:
            opened.close()
        if self._topics:
            for deleted in self._admin.delete_topics(self._topics).values():
                deleted.result(10)


def open_log(kind: str, request: pytest.FixtureRequest) -> Iterator[Log]:
    """The log of this kind, closed after the test."""
    if kind == "memory":
        yield InMemory()
        return
    log = OnKafka(request.getfixturevalue("settings"))
    yield log
    log.close()
