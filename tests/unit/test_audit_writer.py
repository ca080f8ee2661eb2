"""The audit writer where nothing is assigned to it: a consumer of a log that is not there is silent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import pytest
from structlog.testing import capture_logs

from flowpilot.adapters.memory.audit import AuditTables, MemoryAuditStore
from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.audit import writer as writers
from flowpilot.audit.writer import AuditWriter
from flowpilot.ports.log import Fetched, LogUnavailable, TopicPartition
from flowpilot_schemas.topics import Topics
from tests.waiting import eventually_async

TOPICS = Topics("t")


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

    return AuditWriter(
        TOPICS,
        store=MemoryAuditStore(AuditTables()),
        consumer=consumer,
        reader=MemoryLog().reader(),
        catalog=catalog,
    )


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
