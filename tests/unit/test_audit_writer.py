"""The audit writer on the in-memory broker, with a store in memory: what only an idle log shows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import pytest
from structlog.testing import capture_logs

from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.audit import writer as writers
from flowpilot.audit.writer import AuditWriter
from flowpilot.ports.audit import Batch, Divergence, Position, Project
from flowpilot.ports.log import Fetched, LogUnavailable, Record, TopicPartition
from flowpilot_schemas.topics import Topics
from tests.audit_history import completed
from tests.simulation.database import Tables
from tests.waiting import eventually_async

TOPICS = Topics()


class Store:
    """A store in memory; `tables` may be replaced by older ones, as a standby's are."""

    def __init__(self) -> None:
        self.tables = Tables()

    async def positions(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Position]:
        return {place: self.tables.positions[place] for place in partitions if place in self.tables.positions}

    async def begin(self, positions: Mapping[TopicPartition, Position]) -> None:
        self.tables.begin(positions)

    async def write(self, batch: Batch, project: Project) -> Sequence[Divergence]:
        return self.tables.write(batch, project)

    async def close(self) -> None: ...


class Catalog:
    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    async def topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        return {name: self._log.topic_id(name) for name in names}


def test_what_a_standby_lacks_is_written_again_though_nothing_new_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "CHECK_INTERVAL", 0.1)

    async def scenario() -> None:
        log, store = MemoryLog(), Store()
        for topic in TOPICS.core():
            log.create_topic(topic.name, topic.partitions or 1, max_message_bytes=10 << 20)

        def consumer(names, *, on_assigned, on_revoked):  # type: ignore[no-untyped-def]
            return log.consumer(TOPICS.audit_group, names, on_assigned=on_assigned, on_revoked=on_revoked)

        writer = AuditWriter(
            TOPICS, store=store, consumer=consumer, reader=log.reader(), catalog=Catalog(log), linger=0.0
        )
        running = asyncio.create_task(writer.run())
        try:
            history = completed().records
            for record in history:
                log.append(Record(TOPICS.history, record.key, record.value, 0, record.headers))
            await eventually_async(lambda: len(store.tables.events) == len(history))
            store.tables = Tables()
            await eventually_async(lambda: len(store.tables.events) == len(history))
        finally:
            writer.stop()
            await asyncio.wait_for(running, 10)

    asyncio.run(scenario())


class Idle:
    """A member of the group to which nothing is assigned, and which is told no reason."""

    async def poll(self, max_records: int, timeout: float) -> list[Fetched]:
        await asyncio.sleep(0.01)
        return []

    def pause(self, partitions: Iterable[TopicPartition]) -> None: ...

    async def commit(self, positions: Mapping[TopicPartition, int]) -> None: ...

    async def close(self) -> None: ...


class Silent:
    async def topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        raise LogUnavailable("no broker")


class Empty:
    asked = 0

    async def topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        self.asked += 1
        return {}


def idle_writer(catalog: Silent | Empty) -> AuditWriter:
    def consumer(names, *, on_assigned, on_revoked):  # type: ignore[no-untyped-def]
        return Idle()

    return AuditWriter(TOPICS, store=Store(), consumer=consumer, reader=MemoryLog().reader(), catalog=catalog)


def test_a_log_that_is_not_there_from_the_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "FIRST_CHECK", 0.0)
    monkeypatch.setattr(writers, "CHECK_INTERVAL", 0.0)
    monkeypatch.setattr(writers, "LOG_PATIENCE", 0.1)
    with capture_logs() as said, pytest.raises(LogUnavailable):
        asyncio.run(asyncio.wait_for(idle_writer(Silent()).run(), 10))
    assert [entry["event"] for entry in said] == ["Kafka does not answer; trying again"]


def test_topics_that_are_not_there_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "FIRST_CHECK", 0.0)
    monkeypatch.setattr(writers, "CHECK_INTERVAL", 0.0)

    async def scenario() -> None:
        catalog = Empty()
        writer = idle_writer(catalog)
        running = asyncio.create_task(writer.run())
        await eventually_async(lambda: catalog.asked > 2)
        writer.stop()
        await asyncio.wait_for(running, 10)

    with capture_logs() as said:
        asyncio.run(scenario())
    assert ["flowpilot setup" in entry["event"] for entry in said] == [True]
    assert TOPICS.history in said[0]["topics"]
