"""A client on the memory broker, and what stands in for the engine, the audit record and a broken network."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.authoring import Workflow
from flowpilot.client.client import ConnectedClient
from flowpilot.client.connection import AuditUnavailable, AuditView, Connection, Started, StartSeen
from flowpilot.ports.log import Delivery, Fetched, LogUnavailable, Record
from flowpilot.ports.tracer import OFF, Tracer
from flowpilot_schemas.codec import decode_object, encode_message, parse
from flowpilot_schemas.limits import Limits
from flowpilot_schemas.messages import ExecutionEnded, RetryAnswered, RetryExecution, StartExecution
from flowpilot_schemas.topics import Topics

TOPICS = Topics()


class NewPatient(BaseModel):
    patient_id: str
    age: int = 0


def onboarding(version: str = "1", step: str = "create") -> Workflow:
    workflow = Workflow("onboarding", version=version, input=NewPatient)

    def handler(input: NewPatient) -> str:
        return input.patient_id

    workflow.add_step(handler, name=step)
    return workflow


class Audit:
    """An audit record that knows what the test tells it; `down`: it does not answer; `asked`: how often it was."""

    def __init__(self) -> None:
        self.asked = 0
        self.seen: dict[tuple[str, int], StartSeen] = {}
        self.ends: dict[tuple[str, int], ExecutionEnded] = {}
        self.begun: dict[str, Started] = {}
        self.down = False

    async def started(self, execution: str) -> Started | None:
        self._check()
        return self.begun.get(execution)

    async def start_seen(self, execution: str, cause: int) -> StartSeen | None:
        self._check()
        return self.seen.get((execution, cause))

    async def ended(self, execution: str, run: int | None) -> ExecutionEnded | None:
        self._check()
        runs = [known for name, known in self.ends if name == execution]
        return self.ends.get((execution, max(runs, default=-1) if run is None else run))

    def _check(self) -> None:
        self.asked += 1
        if self.down:
            raise AuditUnavailable("PostgreSQL is down")


class Line:
    """The way from a client to the log, which a test can cut. `looks`: how often the log's end was asked for."""

    def __init__(self, log: MemoryLog) -> None:
        self._producer, self._reader = log.producer(), log.reader()
        self.cut: Literal["refuses", "hangs", "takes and hangs"] | None = None
        self.looks = 0

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        if self.cut == "takes and hangs":
            await self._producer.send(records)
            await asyncio.Event().wait()
        await self._pass()
        return await self._producer.send(records)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        self.looks += 1
        await self._pass()
        return await self._reader.bounds(topic, partition)

    async def read(self, topic: str, partition: int, start: int, end: int) -> list[Fetched]:
        await self._pass()
        return await self._reader.read(topic, partition, start, end)

    async def _pass(self) -> None:
        if self.cut == "refuses":
            raise LogUnavailable("all brokers are down")
        if self.cut == "hangs":
            await asyncio.Event().wait()


class World:
    def __init__(self) -> None:
        self.log = MemoryLog()
        for topic in TOPICS.core():
            self.log.create_topic(topic.name, topic.partitions or 1)  # one: the last record is the last sent
        self.audit = Audit()
        self.line = Line(self.log)

    def client(
        self,
        audit: AuditView | None = None,
        *,
        patience: float | None = None,
        tracer: Tracer = OFF,
        **limits: int,
    ) -> ConnectedClient:
        definitions = LogDefinitions(self.line, self.line, TOPICS.definitions)
        connection = Connection(
            TOPICS, Limits(**limits), self.line, self.line, definitions, audit, patience, tracer
        )
        return ConnectedClient(connection, actor="user:test")

    def events(self) -> list[Fetched]:
        return self.log.records(TOPICS.events)

    def start(self) -> tuple[StartExecution, Fetched]:
        """The last start that was sent."""
        record = self.events()[-1]
        return parse(StartExecution, decode_object(record.value)), record

    async def answer_retry(self, retry: str | None, refused: str | None = None) -> None:
        """What the engine answers to the last request for a retry."""
        asked = parse(RetryExecution, decode_object(self.events()[-1].value))
        assert asked.reply is not None
        answer = RetryAnswered(
            execution=asked.execution, request=asked.request, retry=retry, refused=refused, detail=refused
        )
        key = (asked.reply.key or "").encode()
        await self.log.producer().send(
            [Record(asked.reply.topic, key, encode_message(answer), asked.reply.partition)]
        )

    async def reply(self, status: Any, *, to: Fetched | None = None, run: int | None = None, **fields: Any) -> None:
        """What the engine answers to a start, the last one unless `to` is given."""
        record = to or self.start()[1]
        start = parse(StartExecution, decode_object(record.value))
        assert start.reply is not None
        ended = ExecutionEnded(
            execution=start.execution, run=record.offset if run is None else run, status=status, **fields
        )
        key = (start.reply.key or "").encode()
        await self.log.producer().send(
            [Record(start.reply.topic, key, encode_message(ended), start.reply.partition)]
        )


def run(test: Callable[[World], Awaitable[None]]) -> None:
    async def go() -> None:
        async with asyncio.timeout(20):
            await test(World())

    asyncio.run(go())
