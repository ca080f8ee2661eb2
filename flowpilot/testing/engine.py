"""The engine's seat: the production engine on the broker in memory, lost and recovered as a test asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

from flowpilot.adapters.memory.log import MemoryLog, MemoryProducer
from flowpilot.engine.claim import EventsTopic
from flowpilot.engine.engine import DefinitionSource, Engine
from flowpilot.engine.errors import PartitionStopped
from flowpilot.ports.log import Delivery, Fetched, Record, TopicPartition
from flowpilot_schemas.codec import decode_object
from flowpilot_schemas.ids import TaskId
from flowpilot_schemas.topics import Topics

_BATCH = 500
# One partition: the history of all executions has one order, the same on every run.
_PARTITION = 0


class _ProcessLost(BaseException):
    """The engine's process is gone. No handler of the engine's own may catch it: it would not live to."""


class _Producer:
    """The engine's producer. Once `ends`, the process is gone before anything but its state is written."""

    def __init__(self, producer: MemoryProducer, changelog: str) -> None:
        self._producer, self._changelog = producer, changelog
        self.ends = False

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        """See the port."""
        if self.ends and any(record.topic != self._changelog for record in records):
            raise _ProcessLost
        return await self._producer.send(records)


class EngineSeat:
    """Runs an engine, and a new one wherever one was lost: with nothing but the log and the changelog."""

    def __init__(
        self, log: MemoryLog, topics: Topics, definitions: DefinitionSource, clock: Callable[[], int]
    ) -> None:
        self._log, self._topics = log, topics
        self._definitions, self._clock = definitions, clock
        self._engine: Engine | None = None
        self._producer = _Producer(log.producer(), topics.changelog)
        self._position = 0
        self._committed: int | None = None
        self._claims = count(1)
        self._ends_at: str | None = None

    def crash(self) -> None:
        """The engine is gone, now."""
        self._engine = None

    def crash_during(self, step: str) -> None:
        """The engine is gone when the next answer of `step` is in its state, and nothing of that was sent."""
        self._ends_at = step

    @property
    def crash_to_come(self) -> str | None:
        """The step whose answer a crash still waits for."""
        return self._ends_at

    @property
    def next_due(self) -> int | None:
        """When the engine wakes next, in ms."""
        return None if self._engine is None else self._engine.next_due()

    async def run(self) -> bool:
        """Fold every event there is, and fire what is due; whether there was anything."""
        moved = False
        if self._engine is None:
            self._engine = await self._recovered()
        while self._engine is not None:
            batch = self._fetch()
            if batch:
                moved = True
                await self._process(self._engine, batch)
                continue
            _, end = self._log.bounds(self._topics.events, _PARTITION)
            await self._engine.tick()
            if self._log.bounds(self._topics.events, _PARTITION)[1] == end:
                return moved
        return True

    def _fetch(self) -> list[Fetched]:
        most = 1 if self._ends_at else _BATCH
        return list(self._log.fetch(TopicPartition(self._topics.events, _PARTITION), self._position, most))

    async def _process(self, engine: Engine, batch: list[Fetched]) -> None:
        self._producer.ends = self._ends_at is not None and self._ends_at == _answered_step(batch[0])
        try:
            done = await engine.process(batch)
        except _ProcessLost:
            self._engine, self._ends_at, self._producer.ends = None, None, False
            return
        if engine.stopped:
            raise PartitionStopped(engine.stopped[_PARTITION])
        self._position = self._committed = done[-1].offset + 1

    async def _recovered(self) -> Engine:
        events = EventsTopic(
            self._topics, self._log.topic_id(self._topics.events), self._log.partitions(self._topics.events)
        )
        reader = self._log.reader()
        engine = Engine(
            events, self._producer, reader, self._definitions, self._clock, lambda: f"claim-{next(self._claims)}"
        )
        table = engine.table(_PARTITION)
        _, end = await reader.bounds(self._topics.changelog, _PARTITION)
        for record in await reader.read(self._topics.changelog, _PARTITION, 0, end):
            table.load(record)
        table.next_changelog_offset = max(table.next_changelog_offset, end)
        self._position = await engine.assign(_PARTITION, self._committed)
        return engine


def _answered_step(record: Fetched) -> str | None:
    value = decode_object(record.value)
    if value.get("type") not in ("step.completed", "step.failed"):
        return None
    task = TaskId.parse(value["task_id"])
    return task.step if task is not None else None
