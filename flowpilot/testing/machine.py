"""Everything of FlowPilot in one process, moved by a clock that stands still until it is told to go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.authoring.workflow import Workflow
from flowpilot.client.client import ConnectedClient
from flowpilot.client.connection import Connection
from flowpilot.core.dead_letters import dead_letter_key
from flowpilot.ports.audit import RunKey
from flowpilot.ports.log import Record, TopicPartition
from flowpilot.router.routing import route, routes
from flowpilot.testing.attempts import StepAttempts
from flowpilot.testing.engine import EngineSeat
from flowpilot.testing.errors import KitMisused, NotFinished
from flowpilot.testing.execution import Execution, History
from flowpilot.testing.faults import Faults
from flowpilot.worker.handlers import Handlers
from flowpilot.worker.serving import Serving
from flowpilot_schemas.codec import decode_object, encode_message, parse
from flowpilot_schemas.ids import root_id
from flowpilot_schemas.limits import Limits
from flowpilot_schemas.messages import DeadLetter, StartExecution
from flowpilot_schemas.topics import LARGE_MESSAGE, Topics

# 2030-01-01: the same moments on every run.
BEGIN_MS = 1_893_456_000_000
_ACTOR = "test"


class Machine:
    """A broker, an engine, a router, a worker and a client. `queues`: only these are served."""

    def __init__(self, workflows: Sequence[Workflow], queues: Sequence[str] | None, patience: float) -> None:
        self.now = BEGIN_MS
        self.topics, self.limits = Topics(), Limits()
        self.log = MemoryLog(self._clock)
        self.workflows = tuple(workflows)
        self.faults = Faults(self.workflows)
        handlers = Handlers(self.workflows)
        self._make_topics()
        producer, reader = self.log.producer(), self.log.reader()
        self._definitions = LogDefinitions(producer, reader, self.topics.definitions)
        self.engine = EngineSeat(self.log, self.topics, self._definitions, self._clock)
        self._serving = Serving(handlers, self._definitions, reader)
        self.attempts = StepAttempts(
            self.log, self.topics, self._serving, handlers.queues(queues), self.faults, self._clock, patience
        )
        connection = Connection(self.topics, self.limits, producer, reader, self._definitions)
        self.client = ConnectedClient(connection, actor=_ACTOR)
        self.history = History(self.log, self.topics.history)
        self._routed: dict[TopicPartition, int] = {}

    def _clock(self) -> int:
        return self.now

    def _make_topics(self) -> None:
        for topic in self.topics.core():
            compacted = topic.cleanup == "compact"
            partitions = topic.partitions or 1
            self.log.create_topic(topic.name, partitions, max_message_bytes=LARGE_MESSAGE, compacted=compacted)
        definitions = [workflow.definition for workflow in self.workflows]
        for queue in {queue: None for definition in definitions for queue in definition.queues}:
            self.log.create_topic(self.topics.steps(queue), 1, max_message_bytes=LARGE_MESSAGE)
        self.triggers = {trigger.topic for definition in definitions for trigger in definition.triggers}
        for name in sorted(self.triggers):
            self.log.create_topic(name, 1, max_message_bytes=LARGE_MESSAGE)

    async def open(self) -> None:
        """Register the workflows: of one name the last is the current version."""
        for workflow in self.workflows:
            await self.client.register(workflow, move_pointer=True)
        await self._serving.prepare()

    async def close(self) -> None:
        """Let go of what runs beside the test."""
        await self.client.close()
        self.attempts.close()

    # What comes in

    async def start(self, workflow: Workflow, value: Any, key: str | None) -> Execution:
        """As a client starts it; then everything that is due now."""
        handle = await self.client.start(workflow, value, key=key)
        await self.settle()
        return self._execution(handle.id, handle.start or 0)

    async def publish(self, record: Record) -> list[Execution]:
        """A record on a trigger topic, routed; the executions that it started or found."""
        if record.topic != self.topics.triggers and record.topic not in self.triggers:
            listed = ", ".join(sorted({self.topics.triggers, *self.triggers}))
            raise KitMisused(
                f"no workflow here is triggered by the topic {record.topic!r}; these are read: {listed}"
            )
        self.log.append(record)
        starts = self._route(record.topic)
        await self.settle()
        return [self._execution(execution, offset) for execution, offset in starts]

    async def cancel(self, execution: str, reason: str) -> None:
        """As a client asks for it; then everything that is due now."""
        await self.client.cancel(execution, reason)
        await self.settle()

    def _route(self, topic: str) -> list[tuple[str, int]]:
        where = routes(self._definitions, self.topics, self.limits)
        starts = []
        for partition in range(self.log.partitions(topic)):
            place = TopicPartition(topic, partition)
            for record in self.log.fetch(place, self._routed.get(place, 0), 1_000):
                self._routed[place] = record.offset + 1
                for outcome in route(where, record, self.log.topic_id(topic)):
                    if isinstance(outcome, StartExecution):
                        key = root_id(outcome.execution).encode()
                        sent = self.log.append(Record(self.topics.events, key, encode_message(outcome)))
                        starts.append((outcome.execution, sent.offset))
                    elif isinstance(outcome, DeadLetter):
                        letter = encode_message(outcome)
                        self.log.append(Record(self.topics.dead_letters, dead_letter_key(record), letter))
        return starts

    def _execution(self, execution: str, start: int) -> Execution:
        return self.execution(self.history.run_that_answers(execution, start))

    def execution(self, run: RunKey) -> Execution:
        """What a test sees of a run."""
        first = self.history.of(run)[0].fields
        definition = self._definitions.get(first["definition"])
        steps = [step.name for step in definition.steps] if definition is not None else []
        return Execution(run, steps, self.history, self.attempts.raised)

    def dead_letters(self) -> list[DeadLetter]:
        """What nobody could process."""
        records = self.log.records(self.topics.dead_letters)
        return [parse(DeadLetter, decode_object(record.value)) for record in records]

    # Time

    async def settle(self) -> None:
        """Do all that is due now."""
        moved = True
        while moved:
            moved = await self.engine.run()
            moved = await self.attempts.run() or moved

    async def advance(self, ms: int) -> None:
        """Let `ms` pass, from one thing that is due to the next."""
        end = self.now + ms
        await self.settle()
        while (due := self._next_due()) is not None and due <= end:
            self.now = max(due, self.now + 1)
            await self.settle()
        self.now = end
        await self.settle()

    async def finish(self) -> None:
        """Let time pass until no execution runs. Raises `NotFinished` if one waits for nothing."""
        await self.settle()
        while running := self.history.running():
            due = self._next_due()
            if due is None:
                waiting = self.execution(running[0])
                raise NotFinished(f"{waiting!r} will never end: {waiting.waits_for()}, and nothing is due")
            self.now = max(due, self.now + 1)
            await self.settle()

    def _next_due(self) -> int | None:
        times = (self.engine.next_due, self.attempts.next_due)
        return min((time for time in times if time is not None), default=None)
