"""The worker: takes step messages, runs handlers, answers, and commits what need not be delivered again.

A record is finished when its completion or its `step.started` is acknowledged. The latter is sent for handlers
that run longer than about a second, for suspects, for what holds others back, and when a partition goes away.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Collection
from functools import partial

import structlog

from flowpilot.authoring.durations import as_text
from flowpilot.core.dead_letters import dead_letter, dead_letter_key
from flowpilot.ports.definitions import Definitions
from flowpilot.ports.log import Fetched, LogUnavailable, Producer, Reader, Record
from flowpilot.worker.answers import Answers
from flowpilot.worker.attempt import Attempt, State, answer, error_json
from flowpilot.worker.control import Control
from flowpilot.worker.errors import WorkerExhausted
from flowpilot.worker.handlers import Handlers
from flowpilot.worker.intake import Intake, MakeConsumer
from flowpilot.worker.invoke import Outcome, call, call_async
from flowpilot.worker.partition import AssignedPartition, Entry
from flowpilot.worker.threads import HandlerThreads
from flowpilot_schemas.codec import BadRecord, decode_object, encode_message, parse
from flowpilot_schemas.history import from_iso
from flowpilot_schemas.ids import TaskId
from flowpilot_schemas.messages import StepError, StepReady
from flowpilot_schemas.topics import Topics

_log = structlog.get_logger("flowpilot.worker")
_TICK = 0.05
_LONG = 1.0  # seconds after which a running handler is said to have started
_GRACE_GIVEN_UP = 1.0  # a handler given up that ends within so many seconds did not hang


def _wall_clock() -> int:
    return time.time_ns() // 1_000_000


class StepWorker:
    """Serves the queues of some workflows over the log ports.

    `concurrency`: handlers that run at once. `queues`: only these. `grace`: seconds that running handlers get
    after `stop`; what has not ended then is handed back: redelivered, or failed as `worker_lost` where its start
    is known. `clock` (ms since the epoch) judges `not_after` only.
    `on_ready` is called with the queues once they are subscribed to.
    """

    def __init__(
        self,
        handlers: Handlers,
        *,
        topics: Topics,
        producer: Producer,
        reader: Reader,
        make_consumer: MakeConsumer,
        definitions: Definitions,
        concurrency: int = 16,
        queues: Collection[str] | None = None,
        worker_id: str | None = None,
        grace: float = 10.0,
        clock: Callable[[], int] = _wall_clock,
        on_ready: Callable[[list[str]], None] = lambda queues: None,
    ) -> None:
        self.worker_id = worker_id or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self.queues = handlers.queues(queues)
        self._handlers = handlers
        self._topics = topics
        self._reader = reader
        self._make_consumer = make_consumer
        self._definitions = definitions
        self._concurrency = concurrency
        self._grace = grace
        self._clock = clock
        self._on_ready = on_ready
        self._answers = Answers(producer)
        self._control = Control(reader, topics.control, self._cancel_what_is_over)
        self._intakes: dict[str, Intake] = {}  # by topic
        self._ready: deque[AssignedPartition] = deque()  # partitions with records that wait, in turn
        self._running: set[Attempt] = set()  # each has one of the places
        self._given_up: dict[Attempt, float] = {}  # they have none, and when they were given up
        self._taking = True
        self._stopping = asyncio.Event()
        self._idle = asyncio.Event()
        self._exhausted: int | None = None
        self._stops = 0
        self._threads: HandlerThreads

    def stop(self) -> None:
        """Ask `run` to return: nothing new is begun. Asked twice, it waits for no handler."""
        self._stops += 1
        if self._stops > 1:
            self._grace = 0.0
            self._idle.set()
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`. Raises `WorkerExhausted`, `VersionConflict`, or whatever a port raised for good."""
        self._threads = HandlerThreads(asyncio.get_running_loop(), self._thread_ended)
        tasks: list[asyncio.Task[None]] = []
        try:
            if not await self._prepare():
                return
            jobs = [self._answers.run(), self._control.run(), self._watch()]
            window = 2 * self._concurrency
            for queue in self.queues:
                topic = self._topics.steps(queue)
                intake = Intake(
                    self._topics.worker_group(queue), topic, self._make_consumer, self._reader, self,
                    window=window, room=4 * self._concurrency,
                )  # fmt: skip
                self._intakes[topic] = intake
                jobs.append(intake.run())
            tasks = [asyncio.create_task(job) for job in jobs]
            self._on_ready(self.queues)
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            _raise_first(tasks)
            await self._leave(tasks)
        finally:
            for attempt in [*self._running]:
                attempt.cancel(State.GIVEN_UP)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for intake in self._intakes.values():
                await intake.close()
            self._threads.close()
        if self._exhausted is not None:
            raise WorkerExhausted(self._exhausted)

    async def _prepare(self) -> bool:
        """Register the definitions and learn what is over; waits for the log. False if stopped meanwhile."""
        while not self._stopping.is_set():
            try:
                for workflow in self._handlers.workflows:
                    await self._definitions.register(workflow.definition)
                await self._control.catch_up()
                return True
            except LogUnavailable as error:
                _log.warning("the worker waits for the log", error=str(error))
                try:
                    await asyncio.wait_for(self._stopping.wait(), 1.0)
                except TimeoutError:
                    continue
        return False

    async def _leave(self, tasks: list[asyncio.Task[None]]) -> None:
        """Finish what runs, or hand it back; then every answer and position is in."""
        self._taking = False
        for intake in self._intakes.values():
            intake.drain()
        self._check_idle()
        idle = asyncio.create_task(self._idle.wait())
        await asyncio.wait([idle, *tasks], timeout=self._grace, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        _raise_first(tasks)
        for attempt in list(self._running):
            state, told = attempt.state, attempt.tells
            attempt.cancel(State.GIVEN_UP)
            if told and state in (State.RUNNING, State.SUSPECT):
                lost = StepError(kind="worker_lost", message="the worker was stopped before the handler ended")
                self._answer_outcome(attempt, lost)
        flushing = asyncio.create_task(self._answers.flush(max(self._grace, 5.0)))
        await asyncio.wait([flushing, *tasks], return_when=asyncio.FIRST_COMPLETED)
        flushing.cancel()
        _raise_first(tasks)
        for task in tasks:
            task.cancel()  # a commit waits for no poll now
        await asyncio.gather(*tasks, return_exceptions=True)
        for intake in self._intakes.values():
            try:
                await intake.commit()
            except LogUnavailable as error:
                _log.warning("the last positions could not be committed", error=str(error))

    # ---- what intakes say

    def arrived(self, partition: AssignedPartition) -> None:
        """See `intake.Events`."""
        if partition not in self._ready and not partition.blocked:
            self._ready.append(partition)
        self._dispatch()

    def committed(self, partition: AssignedPartition, position: int) -> None:
        """See `intake.Events`."""
        covered = [attempt for attempt in partition.suspects if attempt.record.offset < position]
        if covered:
            partition.suspects = [a for a in partition.suspects if a.record.offset >= position]
            for attempt in covered:
                self._begin(attempt)
        if partition.blocked:
            partition.blocked = False
            if partition.waiting:
                self._ready.append(partition)
            self._dispatch()

    def revoked(self, partition: AssignedPartition) -> None:
        """See `intake.Events`. What runs goes on here, watched by the engine from its `step.started` on."""
        if partition in self._ready:
            self._ready.remove(partition)
        for entry in partition.unfinished():
            if entry.attempt is not None:
                self._tell_started(entry.attempt)

    def gone(self, partition: AssignedPartition) -> None:
        """See `intake.Events`. A suspect whose start is not committed is the next owner's."""
        partition.gone = True
        dropped, partition.suspects = partition.suspects, []
        for attempt in dropped:
            attempt.state = State.ENDED
            self._leave_place(attempt)

    # ---- from a record to a handler

    def _dispatch(self) -> None:
        ready = self._ready
        while ready and self._taking and len(self._running) < self._concurrency:
            partition = ready.popleft()
            if not partition.waiting or not partition.alive:
                continue
            if partition.is_full:
                self._unblock(partition)
                continue
            record, entry, suspect = partition.take()
            self._intakes[record.topic].taken()
            if partition.waiting:
                ready.append(partition)
            self._take(record, entry, partition, suspect)

    def _unblock(self, partition: AssignedPartition) -> None:
        """The window is full: commit, and do not wait a second for what holds the position back."""
        partition.blocked = True
        oldest = partition.oldest()
        if oldest is not None and oldest.attempt is not None:
            self._tell_started(oldest.attempt)
        self._intakes[partition.tp.topic].commit_soon()

    def _take(self, record: Fetched, entry: Entry, partition: AssignedPartition, suspect: bool) -> None:
        try:
            message = parse(StepReady, decode_object(record.value))
            task_id = TaskId.parse(message.task_id)
            if task_id is None:
                raise BadRecord("wrong_shape", "task_id is not <execution>/<run>/<step>/<attempt>")
            too_late = self._clock() > _deadline(message)
        except BadRecord as bad:
            self._bury(record, entry, partition, bad)
            return
        if too_late or self._control.is_over(task_id, message.task_id):
            self._finish(partition, entry)
            return
        handler = self._handlers.find(message.workflow, message.version, message.step)
        if handler is None:
            error = StepError(
                kind="no_handler",
                message=f"worker {self.worker_id} has no handler for step {message.step!r} of workflow "
                f"{message.workflow!r}",
            )
            refusal = answer(message, record, self.worker_id, "step.failed", {"error": error_json(error)})
            self._answers.put(refusal, partial(self._acknowledged, partition, entry, record))
            return
        attempt = Attempt(self.worker_id, record, message, task_id, handler, partition, entry)
        self._running.add(attempt)
        if suspect:
            attempt.state = State.SUSPECT
            self._answers.put(attempt.started(), partial(self._suspect_told, attempt))
        else:
            self._begin(attempt)

    def _bury(self, record: Fetched, entry: Entry, partition: AssignedPartition, bad: BadRecord) -> None:
        _log.warning("a step message is not understood", topic=record.topic, offset=record.offset, error=str(bad))
        letter = dead_letter(record, bad.reason, bad.detail, "worker")
        buried = Record(self._topics.dead_letters, dead_letter_key(record), encode_message(letter))
        self._answers.put(buried, lambda error: self._buried(record, partition, entry, error))

    def _buried(self, record: Fetched, partition: AssignedPartition, entry: Entry, error: str | None) -> None:
        if error is not None:
            _log.error("a dead letter was refused", topic=record.topic, offset=record.offset, error=error)
        self._finish(partition, entry)

    def _suspect_told(self, attempt: Attempt, error: str | None) -> None:
        self._acknowledged(attempt.partition, attempt.entry, attempt.record, error)
        if attempt.state is not State.SUSPECT:
            return
        if error is None and not attempt.partition.gone:
            attempt.partition.suspects.append(attempt)
            self._intakes[attempt.partition.tp.topic].commit_soon()
        else:
            attempt.state = State.ENDED
            self._leave_place(attempt)

    def _begin(self, attempt: Attempt) -> None:
        if attempt.state is not State.SUSPECT and attempt.state is not State.RUNNING:
            self._leave_place(attempt)  # cancelled before it began
            return
        attempt.begin()
        if attempt.handler.is_async:
            attempt.task = asyncio.create_task(self._run_async(attempt))
        else:
            self._threads.run(attempt, partial(call, attempt.handler, attempt.message, attempt.context))

    async def _run_async(self, attempt: Attempt) -> None:
        outcome = await call_async(attempt.handler, attempt.message, attempt.context)
        self._ended(attempt, outcome)

    def _thread_ended(self, attempt: Attempt, outcome: Outcome) -> None:
        self._ended(attempt, outcome)

    # ---- from a handler to the answer

    def _ended(self, attempt: Attempt, outcome: Outcome) -> None:
        state, attempt.state = attempt.state, State.ENDED
        self._given_up.pop(attempt, None)
        # After a cancel only a completion is told: what was done is then in the history.
        if state is State.RUNNING or (state is State.CANCELLED and isinstance(outcome, bytes)):
            if isinstance(outcome, StepError):
                self._say_failed(attempt, outcome)
            self._answer_outcome(attempt, outcome)
        self._leave_place(attempt)

    def _answer_outcome(self, attempt: Attempt, outcome: Outcome) -> None:
        acknowledged = partial(self._acknowledged, attempt.partition, attempt.entry, attempt.record)
        self._answers.put(attempt.ended(outcome), acknowledged)

    def _say_failed(self, attempt: Attempt, error: StepError) -> None:
        say = _log.info if error.retryable else _log.warning
        task = attempt.task_id
        say(
            "attempt failed",
            execution=task.execution,
            step=task.step,
            attempt=task.attempt,
            kind=error.kind,
            error=error.message,
            retryable=error.retryable,
        )

    def _leave_place(self, attempt: Attempt) -> None:
        if attempt in self._running:
            self._running.discard(attempt)
            self._check_idle()
            self._dispatch()

    def _check_idle(self) -> None:
        if not self._taking and not self._running:
            self._idle.set()

    def _acknowledged(self, partition: AssignedPartition, entry: Entry, record: Fetched, error: str | None) -> None:
        """An answer that finishes a record is in; or it never will be, which nobody could act upon but a human."""
        if error is not None and not entry.finished:
            self._bury(record, entry, partition, BadRecord("answer_refused", f"the answer cannot be sent: {error}"))
            return
        self._finish(partition, entry)

    def _finish(self, partition: AssignedPartition, entry: Entry) -> None:
        if not entry.finished:
            partition.finish(entry)
            intake = self._intakes[partition.tp.topic]
            intake.progressed()
            if partition.blocked:
                intake.commit_soon()

    # ---- time and cancels

    async def _watch(self) -> None:
        """Say of long handlers that they run and live on; end those that run too long."""
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            for attempt in list(self._running):
                if attempt.state in (State.RUNNING, State.CANCELLED):
                    self._watch_one(attempt, now)
                elif attempt.state is State.SUSPECT and attempt.tells:
                    self._beat(attempt, now)
            hanging = sum(now - since > _GRACE_GIVEN_UP for since in self._given_up.values())
            if hanging >= self._concurrency and self._exhausted is None:
                self._exhausted = hanging
                _log.error("too many handlers hang; the worker drains", given_up=hanging)
                self._stopping.set()

    def _watch_one(self, attempt: Attempt, now: float) -> None:
        ran = now - attempt.began
        if ran * 1_000 >= attempt.message.start_to_close_ms:
            self._give_up(attempt, now)
        elif attempt.state is State.RUNNING:
            if ran >= _LONG or attempt.wants_start:
                self._tell_started(attempt)
            if attempt.tells:
                self._beat(attempt, now)

    def _beat(self, attempt: Attempt, now: float) -> None:
        due = (now - attempt.beat_at) * 3_000 >= attempt.message.heartbeat_ms
        if due or attempt.details is not None:
            self._answers.put(attempt.heartbeat(now))

    def _tell_started(self, attempt: Attempt) -> None:
        if not attempt.tells and attempt.state is State.RUNNING:
            acknowledged = partial(self._acknowledged, attempt.partition, attempt.entry, attempt.record)
            self._answers.put(attempt.started(), acknowledged)

    def _give_up(self, attempt: Attempt, now: float) -> None:
        """The place is free for another: neither thread nor task is waited for."""
        cancelled = attempt.state is State.CANCELLED
        attempt.cancel(State.GIVEN_UP)
        self._given_up[attempt] = now
        if not cancelled:
            limit = as_text(attempt.message.start_to_close_ms)
            error = StepError(kind="timed_out", message=f"the handler ran longer than its timeout of {limit}")
            self._say_failed(attempt, error)
            self._answer_outcome(attempt, error)
        self._leave_place(attempt)

    def _cancel_what_is_over(self) -> None:
        for attempt in list(self._running):
            live = attempt.state in (State.RUNNING, State.SUSPECT)
            if live and self._control.is_over(attempt.task_id, attempt.message.task_id):
                suspect = attempt.state is State.SUSPECT
                attempt.cancel(State.CANCELLED)
                self._finish(attempt.partition, attempt.entry)
                if suspect and attempt not in attempt.partition.suspects:
                    self._leave_place(attempt)


def _deadline(message: StepReady) -> int:
    try:
        return from_iso(message.not_after)
    except (ValueError, OverflowError):
        raise BadRecord("wrong_shape", f"not_after: {message.not_after!r} is not a time in ISO 8601") from None


def _raise_first(tasks: list[asyncio.Task[None]]) -> None:
    """No task ends by itself: one that has, has failed."""
    for task in tasks:
        if task.done() and not task.cancelled():
            task.result()
