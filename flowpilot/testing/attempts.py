"""The worker of an environment: the production code calls the handlers, the test says what goes wrong.

Attempts run one after another in the order of their messages, so that a test sees the same on every run. A handler
takes no virtual time; one that hangs or loses its worker is played by the clock alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson

from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.authoring.context import StepContext
from flowpilot.authoring.durations import as_text
from flowpilot.ports.log import Fetched, Record, TopicPartition
from flowpilot.testing.errors import HandlerHangs
from flowpilot.testing.faults import Fault, Faults, recording
from flowpilot.worker.attempt import answer, ended, not_served
from flowpilot.worker.control import Control
from flowpilot.worker.handlers import Handler
from flowpilot.worker.invoke import Outcome, call, call_async, failure
from flowpilot.worker.records import read_step
from flowpilot.worker.serving import NotServed, Serving
from flowpilot.worker.threads import HandlerThreads
from flowpilot_schemas.history import iso
from flowpilot_schemas.ids import TaskId
from flowpilot_schemas.messages import StepError, StepReady
from flowpilot_schemas.topics import Topics
from flowpilot_schemas.tracing import in_headers

WORKER_ID = "test-worker"
_LONG_MS = 1_000  # a worker says of a handler that runs so long that it has started


@dataclass
class _Held:
    """An attempt whose handler does not end. A worker that is `lost` says nothing more of it."""

    record: Fetched
    message: StepReady
    task_id: TaskId
    since: int
    lost: bool
    told: bool = False
    beat_at: int = 0

    @property
    def ends_at(self) -> int:
        return self.since + self.message.start_to_close_ms

    @property
    def due(self) -> int:
        """When something is to be said of it."""
        if not self.told:
            return min(self.since + (0 if self.lost else _LONG_MS), self.ends_at)
        return min(self.beat_at + self.message.heartbeat_ms - 1, self.ends_at)


@dataclass
class StepAttempts:
    """Takes step messages of `queues` and answers them. `clock` is the virtual one, `patience` real seconds."""

    log: MemoryLog
    topics: Topics
    serving: Serving
    queues: list[str]
    faults: Faults
    clock: Callable[[], int]
    patience: float
    raised: dict[tuple[str, str], BaseException] = field(default_factory=dict)
    """By execution and step, what the handler raised last."""

    def __post_init__(self) -> None:
        self._positions = {self.topics.steps(queue): 0 for queue in self.queues}
        self._held: list[_Held] = []
        self._control = Control(self.log.reader(), self.topics.control, lambda: None)
        self._threads: HandlerThreads | None = None

    def close(self) -> None:
        """Let the handlers' threads end."""
        if self._threads is not None:
            self._threads.close()

    @property
    def next_due(self) -> int | None:
        """When something is to be said of an attempt that does not end, in ms."""
        return min((held.due for held in self._held if not (held.lost and held.told)), default=None)

    async def run(self) -> bool:
        """Run every attempt there is a message for; whether there was anything to say or do."""
        await self._control.catch_up()
        self._held = [held for held in self._held if not self._is_over(held.task_id, held.message)]
        moved = self._speak_of_held()
        for topic, position in self._positions.items():
            for record in list(self.log.fetch(TopicPartition(topic, 0), position, 1_000)):
                self._positions[topic] = record.offset + 1
                moved = True
                await self._take(record)
        return moved

    def _is_over(self, task_id: TaskId, message: StepReady) -> bool:
        return self._control.is_over(task_id, message.task_id)

    async def _take(self, record: Fetched) -> None:
        message, task_id, not_after = read_step(record)
        if self.clock() > not_after or self._is_over(task_id, message):
            return
        handler = self.serving.find(message)
        if isinstance(handler, NotServed):
            partitions = self.serving.partitions.get(record.topic)
            self._send(not_served(message, record, WORKER_ID, handler.reason, partitions))
            return
        place = (message.workflow, message.step)
        fault = self.faults.next(place)
        if fault is not None and fault.kind in ("hang", "lose"):
            self._held.append(_Held(record, message, task_id, self.clock(), lost=fault.kind == "lose"))
            return
        for _ in range(2 if fault is not None and fault.kind == "repeat" else 1):
            await self._answer(record, message, task_id, self.faults.handler(place, handler), fault)

    async def _answer(
        self, record: Fetched, message: StepReady, task_id: TaskId, handler: Handler, fault: Fault | None
    ) -> None:
        began, beats = iso(self.clock()), list[bytes]()
        raised = partial(self.raised.__setitem__, (task_id.execution, task_id.step))
        if fault is not None and fault.error is not None:
            raised(fault.error)
            outcome: Outcome = failure(handler, fault.error)
        else:
            context = None
            if handler.context is not None:
                context = StepContext(
                    task_id,
                    workflow=message.workflow,
                    last_heartbeat=message.last_heartbeat,
                    beat=beats.append,
                    traceparent=in_headers(record.headers),
                )
            outcome = await self._call(recording(handler, raised), message, context)
        if beats:
            self._say(record, message, "step.started", started_at=began)
            self._say(record, message, "step.heartbeat", details=orjson.Fragment(beats[-1]))
        self._send(ended(message, record, WORKER_ID, outcome, began))

    async def _call(self, handler: Handler, message: StepReady, context: StepContext | None) -> Outcome:
        loop = asyncio.get_running_loop()
        running: asyncio.Future[Outcome]
        if handler.is_async:
            running = loop.create_task(call_async(handler, message, context))
        else:
            running = loop.create_future()
            if self._threads is None:
                self._threads = HandlerThreads(loop, _resolve)
            self._threads.run(running, partial(call, handler, message, context))
        await asyncio.wait([running], timeout=self.patience)
        if running.done():
            return running.result()
        if context is not None:
            context.cancel()
        running.cancel()
        raise HandlerHangs(message.step, self.patience)

    def _speak_of_held(self) -> bool:
        """What a worker's watch would say by now of the attempts that do not end."""
        moved, now = False, self.clock()
        for held in list(self._held):
            if (held.lost and held.told) or held.due > now:
                continue
            moved = True
            if now >= held.ends_at and not held.lost:
                limit = as_text(held.message.start_to_close_ms)
                error = StepError(kind="timed_out", message=f"the handler ran longer than its timeout of {limit}")
                self._held.remove(held)
                self._send(ended(held.message, held.record, WORKER_ID, error, iso(held.since)))
                continue
            if held.told:
                self._say(held.record, held.message, "step.heartbeat")
            else:
                self._say(held.record, held.message, "step.started", started_at=iso(held.since))
            held.told, held.beat_at = True, now
        return moved

    def _say(self, record: Fetched, message: StepReady, kind: str, **fields: Any) -> None:
        self._send(answer(message, record, WORKER_ID, kind, fields))

    def _send(self, record: Record) -> None:
        self.log.append(record)


def _resolve(running: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not running.done():
        running.set_result(outcome)
