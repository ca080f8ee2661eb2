"""The audit writer on the in-memory log, over the store in memory and over PostgreSQL: what a store that is not
where it was left makes it do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager

import pytest

from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.audit import writer as writers
from flowpilot.audit.position import AuditStopped
from flowpilot.audit.writer import AuditWriter
from flowpilot.ports.audit import Position
from flowpilot.ports.log import Record, TopicPartition
from flowpilot_schemas.codec import canonical, encode_message
from flowpilot_schemas.definition import DefinitionPointer, definition_key, pointer_key, version_key
from flowpilot_schemas.topics import Topics
from tests.audit_history import DEFINITION, Chain, completed
from tests.contract.audits import MEMORY_AND_POSTGRES, Audit, open_audit
from tests.waiting import eventually_async

TOPICS = Topics("t")
HISTORY = TopicPartition(TOPICS.history, 0)


@pytest.fixture(params=MEMORY_AND_POSTGRES)
def audit(request: pytest.FixtureRequest) -> Iterator[Audit]:
    yield from open_audit(request.param, request)


class Catalog:
    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    async def topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        return {name: self._log.topic_id(name) for name in names}


class Pipeline:
    """A log with its topics, and a writer from it into the audit."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self.log = MemoryLog()
        for topic in TOPICS.core():
            compacted = topic.cleanup == "compact"
            self.log.create_topic(
                topic.name, topic.partitions or 1, max_message_bytes=10 << 20, compacted=compacted
            )
        self.writer = AuditWriter(
            TOPICS,
            store=audit.store,
            consumer=lambda names, **handlers: self.log.consumer(TOPICS.audit_group, names, **handlers),
            reader=self.log.reader(),
            catalog=Catalog(self.log),
            linger=0.0,
        )

    def tell(self, *histories: Chain) -> None:
        for history in histories:
            for record in history.records:
                self.log.append(record)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self.writer.run())
        try:
            yield
        finally:
            self.writer.stop()
            await asyncio.wait_for(running, 20)

    async def stored(self, events: int) -> None:
        """Wait until that many are."""
        await eventually_async(lambda: self._audit.events() == events)


def test_what_a_standby_lacks_is_written_again_though_nothing_new_comes(
    audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "CHECK_INTERVAL", 0.1)

    async def scenario() -> None:
        pipeline, history = Pipeline(audit), completed()
        async with pipeline.running():
            pipeline.tell(history)
            await pipeline.stored(len(history.records))
            audit.lose_all()
            await pipeline.stored(len(history.records))

    asyncio.run(scenario())
    assert audit.divergences() == audit.differences() == []


def test_what_a_standby_lacks_is_written_again_before_what_comes_next(audit: Audit) -> None:
    async def scenario() -> None:
        pipeline, history, following = Pipeline(audit), completed(1), completed(2)
        async with pipeline.running():
            pipeline.tell(history)
            await pipeline.stored(len(history.records))
            audit.lose_all()
            pipeline.tell(following)
            await pipeline.stored(len(history.records) + len(following.records))

    asyncio.run(scenario())
    assert audit.divergences() == audit.differences() == []


def test_a_pointer_may_lie_before_its_definition(audit: Audit) -> None:
    """Two registered at once, and compaction kept the second's copy of the definition: it comes last."""
    pointer = encode_message(DefinitionPointer(definition=DEFINITION.hash, version=DEFINITION.version))

    async def scenario() -> None:
        pipeline = Pipeline(audit)
        for key, value in (
            (version_key(DEFINITION.name, DEFINITION.version), pointer),
            (pointer_key(DEFINITION.name), pointer),
            (definition_key(DEFINITION.hash), canonical(DEFINITION.model_dump(mode="json"))),
        ):
            pipeline.log.append(Record(TOPICS.definitions, key, value, 0))
        async with pipeline.running():
            await eventually_async(lambda: audit.workflows() != {})

    asyncio.run(scenario())
    assert audit.workflows() == {(DEFINITION.name, DEFINITION.version): (DEFINITION.hash, True)}
    assert audit.divergences() == []


@pytest.mark.parametrize(
    ("position", "sentence"),
    [
        (Position("memory-of-before", 0), "is another topic than the one the audit has read so far"),
        (Position("", 1_000), "the log lost records"),
    ],
)
def test_a_store_of_another_log_stops_the_writer(audit: Audit, position: Position, sentence: str) -> None:
    async def scenario() -> None:
        pipeline = Pipeline(audit)
        topic_id = position.topic_id or pipeline.log.topic_id(HISTORY.topic)
        await audit.store.begin({HISTORY: position._replace(topic_id=topic_id)})
        pipeline.tell(completed())
        with pytest.raises(AuditStopped, match=sentence):
            await asyncio.wait_for(pipeline.writer.run(), 20)

    asyncio.run(scenario())
    assert audit.events() == 0
