"""A worker on the in-memory broker, and what a test asks of it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.authoring import Workflow
from flowpilot.ports.log import Delivery, Headers, LogUnavailable, Producer, Record, TopicPartition
from flowpilot.worker.handlers import Handlers
from flowpilot.worker.worker import StepWorker
from flowpilot_schemas.codec import decode, encode
from flowpilot_schemas.history import iso
from flowpilot_schemas.topics import Topics
from tests.waiting import eventually_async

TOPICS = Topics()


class FlakyProducer:
    """A producer whose log is away as long as `away` is set."""

    def __init__(self, producer: Producer) -> None:
        self.producer, self.away = producer, False
        self.batches: list[int] = []

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        if self.away:
            raise LogUnavailable("the broker is away")
        self.batches.append(len(records))
        return await self.producer.send(records)


class Rig:
    """The broker with its topics, `queue` with `partitions`; workers are started on it."""

    def __init__(self, workflow: Workflow, *, partitions: int = 1, queues: Sequence[str] | None = None) -> None:
        self.workflow = workflow
        self.log = MemoryLog()
        for topic in TOPICS.core():
            compacted = topic.cleanup == "compact"
            count = 4 if topic.partitions is None else topic.partitions
            self.log.create_topic(topic.name, count, max_message_bytes=10 << 20, compacted=compacted)
        for queue in queues or workflow.definition.queues:
            self.log.create_topic(TOPICS.steps(queue), partitions, max_message_bytes=10 << 20)
        self.producer = FlakyProducer(self.log.producer())
        self.workers: list[StepWorker] = []

    def worker(self, *workflows: Workflow, **options: Any) -> StepWorker:
        reader = self.log.reader()
        worker = StepWorker(
            Handlers(workflows or (self.workflow,)),
            topics=TOPICS,
            producer=self.producer,
            reader=reader,
            make_consumer=self.log.consumer,
            **{
                "definitions": LogDefinitions(self.producer, reader, TOPICS.definitions),
                "concurrency": 4,
                "grace": 2.0,
                **options,
            },
        )
        self.workers.append(worker)
        return worker

    @asynccontextmanager
    async def serving(self, *workflows: Workflow, **options: Any) -> AsyncIterator[StepWorker]:
        worker = self.worker(*workflows, **options)
        running = asyncio.create_task(worker.run())
        try:
            yield worker
            worker.stop()
            await asyncio.wait_for(running, 20)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def message(self, step: str, **fields: Any) -> dict[str, Any]:
        """A step message as the engine makes them; `fields` replace."""
        execution = fields.pop("execution", str(uuid.uuid4()))
        attempt = fields.get("attempt", 1)
        definition = self.workflow.definition
        return {
            "v": 1,
            "type": "step.ready",
            "task_id": f"{execution}/7/{step}/{attempt}",
            "workflow": definition.name,
            "version": definition.version,
            "definition": definition.hash,
            "step": step,
            "attempt": attempt,
            "idempotency_key": f"{execution}/7/{step}",
            "start_to_close_ms": 10_000,
            "heartbeat_ms": 30_000,
            "result_limit": 65_536,
            "not_after": iso(int(time.time() * 1_000) + 86_400_000),
            "reply": {"topic": TOPICS.events, "partition": 3, "key": execution},
            **fields,
        }

    def ready(
        self, step: str, *, partition: int = 0, queue: str | None = None, headers: Headers = (), **fields: Any
    ) -> str:
        """Put a step message on its queue; its task id."""
        message = self.message(step, **fields)
        self.raw(encode(message), partition=partition, queue=queue, headers=headers)
        return str(message["task_id"])

    def raw(
        self, value: bytes | None, *, partition: int = 0, queue: str | None = None, headers: Headers = ()
    ) -> None:
        topic = TOPICS.steps(queue or self.workflow.queue)
        self.log.append(Record(topic, b"key", value, partition=partition, headers=headers))

    def say(self, message: dict[str, Any]) -> None:
        """Put a message on the control topic."""
        self.log.append(Record(TOPICS.control, b"key", encode({"v": 1, **message})))

    def answers(self, *kinds: str) -> list[dict[str, Any]]:
        """The answers there are, all or those of these types (`completed`, `failed`, `started`, `heartbeat`)."""
        found = [decode(record.value or b"") for record in self.log.records(TOPICS.events)]
        return [answer for answer in found if not kinds or answer["type"].removeprefix("step.") in kinds]

    def answer(self, task_id: str, *kinds: str) -> dict[str, Any] | None:
        return next((answer for answer in self.answers(*kinds) if answer["task_id"] == task_id), None)

    def dead_letters(self) -> list[dict[str, Any]]:
        return [decode(record.value or b"") for record in self.log.records(TOPICS.dead_letters)]

    async def assigned(self, members: int = 1, queue: str | None = None) -> None:
        """Wait until so many members share the queue's partitions: what comes from now on is no suspect."""
        name = queue or self.workflow.queue
        count = self.log.partitions(TOPICS.steps(name))

        def shared() -> bool:
            group = self.log._groups.get(TOPICS.worker_group(name))
            return group is not None and len(group.owner) == count and len(set(group.owner.values())) == members

        await eventually_async(shared)
        await asyncio.sleep(0.02)  # the log's end is read after the owner is set

    async def committed(self, partition: int = 0, queue: str | None = None) -> int:
        """The committed position of the queue's partition."""
        queue = queue or self.workflow.queue
        tp = TopicPartition(TOPICS.steps(queue), partition)
        observer = self.log._groups.get(TOPICS.worker_group(queue))
        return 0 if observer is None else observer.committed.get(tp, 0)
