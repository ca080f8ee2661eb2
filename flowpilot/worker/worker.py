"""The worker's life: it registers its definitions, serves its queues, and leaves with every answer and position in.

What becomes of a step message is told in `attempts`, what time does to one that runs in `watch`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Collection
from secrets import token_hex

import structlog

from flowpilot.ports import meter as meters
from flowpilot.ports import tracer as tracers
from flowpilot.ports.definitions import Definitions, WorkflowDeleted
from flowpilot.ports.log import LogUnavailable, Producer, Reader, Record
from flowpilot.ports.members import Announcer
from flowpilot.ports.meter import Meter
from flowpilot.ports.tracer import Tracer
from flowpilot.worker.announced import Announced
from flowpilot.worker.answers import Answers
from flowpilot.worker.attempts import Attempts
from flowpilot.worker.clock import BrokerClock, TimedProducer
from flowpilot.worker.control import Control
from flowpilot.worker.dropped import Dropped
from flowpilot.worker.errors import WorkerExhausted
from flowpilot.worker.handlers import Handlers
from flowpilot.worker.intake import ConsumerFactory, Intake
from flowpilot.worker.observed import Observed
from flowpilot.worker.records import Records
from flowpilot.worker.serving import Serving
from flowpilot.worker.traced import Traced
from flowpilot.worker.watch import Watch
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.mac import NO_SECRETS, StepSecrets
from flowpilot_schemas.members import CLOCK_KEY
from flowpilot_schemas.topics import Topics

_log = structlog.get_logger("flowpilot.worker")
_PATIENCE = 5.0  # seconds


def _wall_clock() -> int:
    return time.time_ns() // 1_000_000


def new_worker_id() -> str:
    """An id of this process's own: `<host>:<pid>:<random>`."""
    return f"{socket.gethostname()}:{os.getpid()}:{token_hex(3)}"


class StepWorker:
    """Serves the queues of some workflows over the log ports.

    `concurrency`: handlers that run at once. `queues`: only these. `move_pointer`: what it registers becomes
    current, also where another version is. `grace`: seconds that running handlers get
    after `stop`; what has not ended then is handed back: redelivered, or failed as `worker_lost` where its start
    is known. `clock` (ms since the epoch) is this machine's, and is only compared with the broker's.
    `on_ready` is called with the queues once they are subscribed to. `announcer`: tells others what is served, for
    `session` seconds at a time, and that it is `release`; without one nobody is told.
    With `secrets`, no step is run and no control record followed that none of them signed.
    """

    def __init__(
        self,
        handlers: Handlers,
        *,
        topics: Topics,
        producer: Producer,
        reader: Reader,
        make_consumer: ConsumerFactory,
        definitions: Definitions,
        move_pointer: bool = False,
        concurrency: int = 16,
        queues: Collection[str] | None = None,
        worker_id: str | None = None,
        grace: float = 10.0,
        clock: Callable[[], int] = _wall_clock,
        on_ready: Callable[[list[str]], None] = lambda queues: None,
        meter: Meter = meters.OFF,
        tracer: Tracer = tracers.OFF,
        announcer: Announcer | None = None,
        session: float = 30.0,
        release: str = "",
        secrets: StepSecrets = NO_SECRETS,
    ) -> None:
        self.worker_id = worker_id or new_worker_id()
        self.queues = handlers.queues(queues)
        self._handlers = handlers
        self._topics = topics
        self._reader = reader
        self._make_consumer = make_consumer
        self._definitions = definitions
        self._move_pointer = move_pointer
        self._concurrency = concurrency
        self._grace = grace
        self._on_ready = on_ready
        self._stopping = asyncio.Event()
        self._asked = False  # to stop
        self._hurried = asyncio.Event()  # asked again
        self._intakes: dict[str, Intake] = {}  # by topic
        self._announced = Announced(
            self.worker_id,
            announcer,
            queues=self.queues,
            topic=topics.steps,
            intakes=self._intakes,
            session=session,
            release=release,
        )
        self._clock = BrokerClock(clock, meter)
        self._producer = TimedProducer(producer, self._clock)
        self._answers = Answers(self._producer)
        dropped = Dropped(self.worker_id, meter)
        self._control = Control(
            reader,
            topics.control,
            lambda: self._attempts.cancel_what_is_over(),
            secrets=secrets,
            dropped=dropped,
        )
        observed = Observed(meter, concurrency)
        self._serving = Serving(handlers, definitions, reader, [topics.steps(queue) for queue in self.queues])
        self._attempts = Attempts(
            self.worker_id,
            self._serving,
            answers=self._answers,
            control=self._control,
            records=Records(self._answers, self._intakes, topics.dead_letters, dropped=dropped, secrets=secrets),
            intakes=self._intakes,
            concurrency=concurrency,
            clock=self._clock,
            observed=observed,
            traced=Traced(tracer),
        )
        self._watch = Watch(
            self._attempts,
            self._answers,
            concurrency=concurrency,
            on_exhausted=self._stopping.set,
            observed=observed,
            dropped=dropped,
        )

    def stop(self) -> None:
        """Ask `run` to return: nothing new is begun. Asked twice, it waits for no handler."""
        if self._asked:
            self._grace = 0.0
            self._hurried.set()
        self._asked = True
        self._attempts.stop_taking()  # now, not some turns of the loop later
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`. Raises `WorkerExhausted`, `VersionConflict`, or whatever a port raised for good."""
        self._attempts.open()
        tasks: list[asyncio.Task[None]] = []
        announcing: list[asyncio.Task[None]] = []  # whose end is not the worker's
        try:
            if not await self._prepare():
                return
            jobs = [self._answers.run(), self._control.run(), self._watch.run(), self._serving.run()]
            window = 2 * self._concurrency
            for queue in self.queues:
                topic = self._topics.steps(queue)
                intake = Intake(
                    self._topics.worker_group(queue), topic, self._make_consumer, self._reader, self._attempts,
                    window=window, room=4 * self._concurrency, on_change=self._announced.changed,
                )  # fmt: skip
                self._intakes[topic] = intake
                jobs.append(intake.run())
            tasks = [asyncio.create_task(job) for job in jobs]
            self._on_ready(self.queues)
            if self._announced.is_on:
                served = [self._definitions.registered(each.definition) for each in self._handlers.workflows]
                announcing.append(asyncio.create_task(self._announced.run(served)))
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            _raise_first(tasks)
            await self._leave(tasks)
        finally:
            self._attempts.abandon()
            for task in (*tasks, *announcing):
                task.cancel()
            await asyncio.gather(*tasks, *announcing, return_exceptions=True)
            for intake in self._intakes.values():
                await intake.close()
            self._attempts.close()
        if self._watch.exhausted is not None:
            raise WorkerExhausted(self._watch.exhausted)

    async def _prepare(self) -> bool:
        """Register the definitions and learn what is over; waits for the log. False if stopped meanwhile."""
        while not self._stopping.is_set():
            try:
                for workflow in self._handlers.workflows:
                    await self._register(workflow.definition)
                await self._serving.prepare()
                await self._control.catch_up()
                await self._ask_the_time()
                return True
            except LogUnavailable as error:
                _log.warning("the worker waits for the log", error=str(error))
                try:
                    await asyncio.wait_for(self._stopping.wait(), 1.0)
                except TimeoutError:
                    continue
        return False

    async def _ask_the_time(self) -> None:
        """Before the first step is judged: a record that says nothing comes back with the time."""
        nothing = Record(self._topics.members, CLOCK_KEY, None, partition=0)
        try:
            await asyncio.wait_for(self._producer.send([nothing]), _PATIENCE)
        except (LogUnavailable, TimeoutError) as error:
            # Until the first report is acknowledged no step is dropped for its time.
            _log.warning("the broker's time is not known yet", error=str(error))

    async def _register(self, definition: WorkflowDefinition) -> None:
        try:
            await self._definitions.register(definition, move_pointer=self._move_pointer)
        except WorkflowDeleted as deleted:
            # Its running executions still need their steps done.
            _log.warning("serving only what runs already", reason=str(deleted))

    async def _leave(self, tasks: list[asyncio.Task[None]]) -> None:
        """Finish what runs, or hand it back; then every answer and position is in."""
        leaving = [asyncio.create_task(self._announced.leave())] if self._announced.is_on else []
        for intake in self._intakes.values():
            intake.drain()
        self._attempts.stop_taking()
        waits = [asyncio.create_task(event.wait()) for event in (self._attempts.idle, self._hurried)]
        await asyncio.wait([*waits, *tasks], timeout=self._grace, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        _raise_first(tasks)
        self._attempts.hand_back()
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
        await asyncio.gather(*leaving)


def _raise_first(tasks: list[asyncio.Task[None]]) -> None:
    """No task ends by itself: one that has, has failed."""
    for task in tasks:
        if task.done() and not task.cancelled():
            task.result()
