"""`WorkflowEnvironment`: workflows run in memory, on the production engine, with a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

from flowpilot.authoring.declared import StepRef
from flowpilot.authoring.durations import Duration, milliseconds
from flowpilot.authoring.results import to_json
from flowpilot.authoring.workflow import Workflow
from flowpilot.ports.audit import HistoryEvent
from flowpilot.ports.log import Record
from flowpilot.testing.errors import InjectedFailure, KitMisused
from flowpilot.testing.execution import Execution
from flowpilot.testing.faults import WorkflowLike
from flowpilot.testing.machine import Machine
from flowpilot_schemas.messages import DeadLetter

Result = TypeVar("Result")


class Scripted:
    """What both forms of an environment have: what goes wrong, and what there is to see.

    `workflows`: what is run; of one name, the last is the current version. `queues`: only these are served (the
    steps of others wait). `patience`: real seconds that a handler may take.
    A step is named, or given as its function; `workflow=` says whose it is where several have one of that name.
    """

    def __init__(self, *workflows: Workflow, queues: Sequence[str] | None = None, patience: float = 10.0) -> None:
        if not workflows or not all(isinstance(workflow, Workflow) for workflow in workflows):
            raise KitMisused("an environment is made of workflows: WorkflowEnvironment(onboarding, …)")
        self._machine = Machine(workflows, queues, patience)
        self._open = False

    # What goes wrong

    def fail(
        self,
        step: StepRef,
        *,
        times: int | None = 1,
        error: BaseException | type[BaseException] | None = None,
        workflow: WorkflowLike | None = None,
    ) -> None:
        """The next `times` attempts of `step` (None: all) raise `error` and do not call the handler.

        Any exception may follow a retry, but `NonRetryable` and what the step's `Retry` refuses.
        """
        place = self._machine.faults.place(step, workflow)
        if error is None:
            error = InjectedFailure(f"the test made step {place[1]!r} fail")
        elif isinstance(error, type):
            error = error()
        self._machine.faults.plan("fail", place, times, error)

    def hang(self, step: StepRef, *, times: int | None = 1, workflow: WorkflowLike | None = None) -> None:
        """The next `times` attempts never end: the worker says that they run, and times them out."""
        self._machine.faults.plan("hang", self._machine.faults.place(step, workflow), times)

    def lose_worker(self, step: StepRef, *, times: int | None = 1, workflow: WorkflowLike | None = None) -> None:
        """The worker of the next `times` attempts dies after it began: no heartbeat comes any more."""
        self._machine.faults.plan("lose", self._machine.faults.place(step, workflow), times)

    def repeat(self, step: StepRef, *, times: int | None = 1, workflow: WorkflowLike | None = None) -> None:
        """The next `times` attempts are delivered twice, as Kafka may: the handler is called twice for each,
        with the same idempotency key, and the second answer is ignored."""
        self._machine.faults.plan("repeat", self._machine.faults.place(step, workflow), times)

    def replace(self, step: StepRef, function: Callable[..., Any], *, workflow: WorkflowLike | None = None) -> None:
        """Call `function` (also a Mock or an AsyncMock) in the handler's place. It is given by name what the
        handler would be given, as far as it takes it."""
        self._machine.faults.replace(self._machine.faults.place(step, workflow), function)

    def crash(self, *, during: StepRef | None = None) -> None:
        """The engine's process is lost, and another recovers from the changelog as soon as anything moves.

        With `during`, at the worst moment of the next answer of that step: when it is in the engine's state, and
        nothing of what follows from it was sent.
        """
        if during is None:
            self._machine.engine.crash()
        else:
            self._machine.engine.crash_during(self._machine.faults.place(during, None)[1])

    # What there is to see

    @property
    def now(self) -> datetime:
        """The virtual time. It begins at 2030-01-01T00:00Z."""
        return datetime.fromtimestamp(self._machine.now / 1_000, UTC)

    def history(self, execution: Execution) -> list[HistoryEvent]:
        """The events of an execution: `type`, `at`, `step`, `attempt`, and all else in `fields`."""
        return execution.history

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """The records that nobody could process, with `reason`, `detail` and where they were."""
        return self._machine.dead_letters()

    # What the two forms await

    async def _begin(self) -> None:
        await self._machine.open()
        self._open = True

    async def _end(self, error: BaseException | None) -> None:
        self._open = False
        await self._machine.close()
        step = self._machine.engine.crash_to_come
        if error is None and step is not None:
            raise KitMisused(f"env.crash(during={step!r}) never came about: the step has not answered since")

    async def _start(self, input: Any, workflow: WorkflowLike | None, key: str | None) -> Execution:
        return await self._machine.start(self._machine.faults.workflow(workflow), input, key)

    def _checked(self, work: Coroutine[Any, Any, Result]) -> Coroutine[Any, Any, Result]:
        if not self._open:
            work.close()
            raise KitMisused("the environment is not open; use it in `async with WorkflowEnvironment(…) as env:`")
        return work


class WorkflowEnvironment(Scripted):
    """For async tests. `start`, `publish` and `cancel` do what is due at once; what waits for time (a retry, a
    time-out) comes with `advance` or `finish`.

        async with WorkflowEnvironment(onboarding) as env:
            execution = await env.start(NewPatient(patient_id="p-1"))
            await env.finish()
            assert execution.result() == "sent"
    """

    @classmethod
    def blocking(
        cls, *workflows: Workflow, queues: Sequence[str] | None = None, patience: float = 10.0
    ) -> BlockingEnvironment:
        """The same for tests without async: `with WorkflowEnvironment.blocking(onboarding) as env:`."""
        return BlockingEnvironment(*workflows, queues=queues, patience=patience)

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        await self._end(error)

    async def start(
        self, input: Any = None, *, workflow: WorkflowLike | None = None, key: str | None = None
    ) -> Execution:
        """Start an execution as a client does. The same `key` finds the same execution within its window.

        Raises `InputInvalid`, and `KitMisused` if it is not clear which workflow is meant.
        """
        return await self._checked(self._start(input, workflow, key))

    async def publish(self, topic: str, value: Any, *, key: str | None = None) -> list[Execution]:
        """Publish a record on a trigger topic: bytes as they are, None, or any value as JSON.

        Gives the executions that it started or found; what starts none is in `dead_letters`, with the reason.
        """
        return await self._checked(self._machine.publish(record_of(topic, value, key)))

    async def cancel(self, execution: Execution, reason: str = "") -> None:
        """Ask for an execution to be cancelled."""
        await self._checked(self._machine.cancel(execution.id, reason))

    async def advance(self, duration: Duration) -> None:
        """Let virtual time pass (`"90s"`, `"1h"`, a timedelta), and all that falls due on the way happen."""
        await self._checked(self._machine.advance(milliseconds(duration)))

    async def finish(self) -> None:
        """Let virtual time pass until every execution has ended. Raises `NotFinished` if one never will."""
        await self._checked(self._machine.finish())


class BlockingEnvironment(Scripted):
    """See `WorkflowEnvironment`; made by its `blocking`."""

    def __enter__(self) -> Self:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise KitMisused("an event loop runs here already; use `async with WorkflowEnvironment(…) as env:`")
        self._runner = asyncio.Runner()
        try:
            self._runner.run(self._begin())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self._run(self._end(error))
        finally:
            self._runner.close()

    def start(
        self, input: Any = None, *, workflow: WorkflowLike | None = None, key: str | None = None
    ) -> Execution:
        """See `WorkflowEnvironment.start`."""
        return self._run(self._start(input, workflow, key))

    def publish(self, topic: str, value: Any, *, key: str | None = None) -> list[Execution]:
        """See `WorkflowEnvironment.publish`."""
        return self._run(self._machine.publish(record_of(topic, value, key)))

    def cancel(self, execution: Execution, reason: str = "") -> None:
        """See `WorkflowEnvironment.cancel`."""
        self._run(self._machine.cancel(execution.id, reason))

    def advance(self, duration: Duration) -> None:
        """See `WorkflowEnvironment.advance`."""
        self._run(self._machine.advance(milliseconds(duration)))

    def finish(self) -> None:
        """See `WorkflowEnvironment.finish`."""
        self._run(self._machine.finish())

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self._runner.run(self._checked(work))


def record_of(topic: str, value: Any, key: str | None) -> Record:
    """A user's record."""
    data = value if value is None or isinstance(value, bytes) else to_json(value)
    return Record(topic, None if key is None else key.encode(), data)
