"""One attempt in hand: what it is, how far it is, and the answers it may get."""

from __future__ import annotations

import asyncio
import time
from enum import Enum
from typing import Any

import orjson
import structlog

from flowpilot.authoring.context import StepContext
from flowpilot.ports.log import Fetched, Record
from flowpilot.ports.tracer import Span
from flowpilot.worker.handlers import Handler
from flowpilot.worker.invoke import Outcome
from flowpilot.worker.partition import AssignedPartition, Entry
from flowpilot_schemas.codec import encode
from flowpilot_schemas.history import iso
from flowpilot_schemas.ids import TaskId, root_id
from flowpilot_schemas.messages import NOT_SERVED, StepError, StepReady
from flowpilot_schemas.topics import Topics
from flowpilot_schemas.tracing import in_headers

_log = structlog.get_logger("flowpilot.worker")


class State(Enum):
    """Where an attempt is in this process."""

    SUSPECT = "its start is being acknowledged and committed; it runs then"
    RUNNING = "its handler runs"
    CANCELLED = "its handler runs, and nobody wants the result"
    GIVEN_UP = "its handler runs beyond its time-out; the attempt is answered"
    ENDED = "its handler is done"


class Attempt:
    """One delivery of a step message that this process runs."""

    __slots__ = (
        "_worker_id",
        "beat_at",
        "began",
        "context",
        "details",
        "entry",
        "handler",
        "message",
        "partition",
        "record",
        "span",
        "started_at",
        "state",
        "task",
        "task_id",
        "tells",
        "wants_start",
    )

    def __init__(
        self,
        worker_id: str,
        record: Fetched,
        message: StepReady,
        task_id: TaskId,
        handler: Handler,
        partition: AssignedPartition,
        entry: Entry,
    ) -> None:
        self._worker_id = worker_id
        self.record, self.message, self.task_id, self.handler = record, message, task_id, handler
        self.partition, self.entry = partition, entry
        self.state = State.RUNNING
        self.task: asyncio.Task[Any] | None = None
        self.began = 0.0  # of the handler, by the monotonic clock
        self.beat_at = 0.0
        self.started_at = ""
        self.tells = False
        """Whether step.started was sent (then it heartbeats)."""
        self.wants_start = False
        """step.started is wanted before its time: a heartbeat of the handler's own, or a hand-over."""
        self.details: bytes | None = None
        """Of a heartbeat that is not sent yet. Set by the handler's thread."""
        self.span: Span | None = None
        """While it is traced; in the end it is over whatever became of the attempt."""
        self.context: StepContext | None = None
        if handler.context is not None:
            self.context = StepContext(
                task_id,
                workflow=message.workflow,
                last_heartbeat=message.last_heartbeat,
                beat=self._beat,
                traceparent=self.traceparent,
            )
        entry.attempt = self

    @property
    def traceparent(self) -> str | None:
        """That of the step message."""
        return in_headers(self.record.headers) if self.record.headers else None

    def _beat(self, details: bytes) -> None:
        self.details = details
        self.wants_start = True

    def begin(self) -> None:
        """The handler is called now."""
        self.state = State.RUNNING
        self.began = self.beat_at = time.monotonic()
        if not self.started_at:
            self.started_at = iso(time.time_ns() // 1_000_000)

    def cancel(self, state: State) -> None:
        """Nobody wants the result: tell the handler."""
        self.state = state
        if self.context is not None:
            self.context.cancel()
        if self.task is not None:
            self.task.cancel()

    def started(self) -> Record:
        """The answer `step.started`."""
        self.tells = True
        self.beat_at = time.monotonic()
        if not self.started_at:
            self.started_at = iso(time.time_ns() // 1_000_000)
        return self._answer("step.started", {"started_at": self.started_at})

    def heartbeat(self, now: float) -> Record:
        """The answer `step.heartbeat`, with the handler's latest details if there are new ones."""
        self.beat_at = now
        details, self.details = self.details, None
        return self._answer("step.heartbeat", {} if details is None else {"details": orjson.Fragment(details)})

    def ended(self, outcome: Outcome) -> Record:
        """The answer `step.completed` or `step.failed`."""
        return ended(self.message, self.record, self._worker_id, outcome, self.started_at)

    def say_failed(self, error: StepError) -> None:
        """Log it: a warning if no other attempt can follow."""
        say = _log.info if error.retryable else _log.warning
        say(
            "attempt failed",
            execution=self.task_id.execution,
            step=self.task_id.step,
            attempt=self.task_id.attempt,
            kind=error.kind,
            error=error.message,
            retryable=error.retryable,
        )

    def _answer(self, kind: str, fields: dict[str, Any]) -> Record:
        return answer(self.message, self.record, self._worker_id, kind, fields)


def answer(message: StepReady, record: Fetched, worker_id: str, kind: str, fields: dict[str, Any]) -> Record:
    """The answer of type `kind` to the step message in `record`.

    It goes to the events topic of the namespace whose queue the message was read from, by the root's key, whatever
    `reply` says: whoever can write to a queue must not choose where this worker writes.
    """
    value = {
        "v": 1,
        "type": kind,
        "task_id": message.task_id,
        "worker_id": worker_id,
        "broker_task_id": f"{record.topic}/{record.partition}/{record.offset}",
        **fields,
    }
    root = root_id(message.task_id.partition("/")[0])
    return Record(Topics.of_step_topic(record.topic).events, root.encode(), encode(value))


def ended(message: StepReady, record: Fetched, worker_id: str, outcome: Outcome, started_at: str) -> Record:
    """The answer that ends the attempt: `step.completed` or `step.failed`. `started_at` is ISO 8601."""
    if isinstance(outcome, bytes):
        output = {} if outcome == b"null" else {"output": orjson.Fragment(outcome)}
        return answer(message, record, worker_id, "step.completed", {**output, "started_at": started_at})
    fields = {"error": _error_json(outcome), "started_at": started_at}
    return answer(message, record, worker_id, "step.failed", fields)


def not_served(message: StepReady, record: Fetched, worker_id: str, reason: str, partitions: int | None) -> Record:
    """The report on a step message that this worker does not run: the engine sends it to another partition.

    `partitions`: how many the record's topic has.
    """
    wanted = f"step {message.step!r} of workflow {message.workflow!r} version {message.version!r}"
    error = StepError(kind=NOT_SERVED, message=f"worker {worker_id} does not run {wanted}: {reason}")
    fields = {"error": _error_json(error), "dispatch": message.dispatch}
    if partitions is not None:
        fields["partitions"] = partitions
    return answer(message, record, worker_id, "step.failed", fields)


def _error_json(error: StepError) -> dict[str, Any]:
    """The error as it goes on the wire."""
    value: dict[str, Any] = {"kind": error.kind, "message": error.message, "retryable": error.retryable}
    if error.retry_after_ms is not None:
        value["retry_after_ms"] = error.retry_after_ms
    return value
