"""`Workflow`: what a user declares once, and what the rest of FlowPilot reads.

What can be told about a step is told where it is declared; that a name is nobody's can only be told when all
steps are there, which is when `Workflow.definition` is first read (by a worker, `apply` or a start).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypedDict, TypeVar, Unpack, overload

from flowpilot.authoring.declared import DeclaredSteps, StepRef, about
from flowpilot.authoring.durations import Duration, milliseconds
from flowpilot.authoring.errors import DefinitionError
from flowpilot.authoring.input import WorkflowInput
from flowpilot.authoring.retry import Retry
from flowpilot.authoring.signature import read_signature
from flowpilot.authoring.step import Step, plain_args
from flowpilot.core.where import compiled
from flowpilot_schemas.definition import (
    RESERVED_STEP_NAMES,
    StepDefinition,
    TriggerDefinition,
    WorkflowDefinition,
)
from flowpilot_schemas.ids import is_legal_name, is_legal_step_name
from flowpilot_schemas.limits import MAX_STEPS

Handler = TypeVar("Handler", bound=Callable[..., Any])

_STEP_NAME = "use a letter or _ first, then A–Z a–z 0–9 . _ -, at most 100"
_NAME = "use 1–100 of A–Z a–z 0–9 . _ -, with a letter or digit at both ends"


class StepOptions(TypedDict, total=False):
    """What `Workflow.step` and `Workflow.add_step` take; it is told there."""

    name: str
    queue: str
    retry: Retry
    timeout: Duration
    depends_on: Sequence[StepRef]
    schedule_to_start: Duration
    on_schedule_to_start: Literal["fail", "retry", "record"]
    heartbeat: Duration
    output: bool


class Workflow:
    """A DAG of steps under a name and a version. Durations are `"30s"` or timedelta.

        onboarding = Workflow(
            "patient-onboarding", version="1", input=NewPatient,
            triggers=[on_topic("patients.registered", unique_by="patient_id")],
        )

        @onboarding.step
        def create_patient(input: NewPatient) -> Patient: ...

        @onboarding.step(queue="notify", timeout="30s")
        async def send_otp(create_patient: Patient) -> OtpSent: ...  # naming a parent is the dependency

    `input`: the type of the input (a pydantic model, a dataclass, any annotation), or None for any JSON.
    `triggers`: the topics whose records start it (`on_topic`). `description`: for people.
    `queue`: the default queue of its steps, the workflow's name unless given. `retry`: their default.
    `timeout`: of a whole execution; None: none. `dedupe_window`: how long a completed execution answers a start
    with its key, at most 7 days. `retry_window`: how long a failed or cancelled one can be retried from where it
    failed, at most 30 days. Raises `DefinitionError`.
    """

    def __init__(
        self,
        name: str,
        *,
        version: str,
        input: Any = None,
        triggers: Iterable[TriggerDefinition] = (),
        description: str = "",
        queue: str | None = None,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        dedupe_window: Duration = "1h",
        retry_window: Duration = "7d",
    ) -> None:
        if not isinstance(name, str) or not is_legal_name(name):
            raise DefinitionError(str(name), f"{name!r} is not a legal workflow name; {_NAME}")
        self.name = name
        self.version = version
        self.input_type = input
        self.queue = self._legal_queue(name if queue is None else queue)
        self._retry = retry or Retry()
        self._steps = DeclaredSteps(name, input)
        self._definition: WorkflowDefinition | None = None
        self._input = WorkflowInput(name, input)
        self._fields: dict[str, Any] = {
            "name": name,
            "version": version,
            "description": description,
            "triggers": tuple(self._checked(trigger) for trigger in triggers),
            "input_schema": self._input.schema,
            "input_check": self._input.check,
            "timeout_ms": None if timeout is None else self._ms("timeout", timeout),
            "dedupe_window_ms": self._ms("dedupe_window", dedupe_window),
            "retry_window_ms": self._ms("retry_window", retry_window),
        }
        self._build((StepDefinition(name="step", queue=self.queue),))  # tells now what is out of range

    def __repr__(self) -> str:
        return f"<Workflow {self.name} version {self.version}, {len(self._steps.by_name)} steps>"

    @overload
    def step(self, handler: Handler, /) -> Handler: ...

    @overload
    def step(self, **options: Unpack[StepOptions]) -> Callable[[Handler], Handler]: ...

    # mypy does not see that **options: Any takes what the unpacked StepOptions names.
    def step(self, handler: Callable[..., Any] | None = None, /, **options: Any) -> Any:  # type: ignore[misc]
        """Declare the decorated function as a step; it is returned as it is.

            @onboarding.step(retry=Retry(max_attempts=5), timeout="30s")
            async def send_otp(create_patient: Patient, ctx: StepContext) -> OtpSent: ...

        Its parameters say what it takes: `input`, a parent step's name, `parents` (the outputs of all of them, by
        name), a `StepContext`. What it returns is JSON by its annotation, and is checked against what dependents
        take.

        `name`: the function's unless given. `queue`, `retry`: the workflow's unless given.
        `depends_on`: steps (functions, `Step`s or names) that come before it, also where it takes nothing of them.
        `timeout` bounds one attempt from its start (default 10 minutes), `heartbeat` the silence during it (30
        seconds; a worker heartbeats by itself), `schedule_to_start` the wait for a worker before it (24 hours);
        then, by `on_schedule_to_start`, the step fails (`"fail"`), the attempt counts as failed (`"retry"`), or the
        wait is recorded and goes on (`"record"`).
        `output=True` marks the step whose output is the execution's. Raises `DefinitionError`.
        """
        names = sys._getframe(1).f_locals  # where the annotations of a handler declared in a function may point
        if handler is not None:
            self._declare(handler, names, **options)
            return handler

        def declare(handler: Callable[..., Any]) -> Callable[..., Any]:
            self._declare(handler, names, **options)
            return handler

        return declare

    def add_step(
        self,
        handler: Callable[..., Any],
        *,
        args: Mapping[str, Any] | None = None,
        **options: Unpack[StepOptions],
    ) -> Step:
        """The plain form of `step`, for loops: `args` are values for parameters, kept in the definition.

            for i in range(10):
                report.add_step(render, name=f"part-{i}", depends_on=[collect], args={"page": i})

        `options` as in `step`. Raises `DefinitionError`, also for a value that is not JSON or does not fit.
        """
        return self._declare(handler, sys._getframe(1).f_locals, args=args, **options)

    @property
    def steps(self) -> Mapping[str, Step]:
        """The steps in the order they were declared, their bindings complete. Raises `DefinitionError`."""
        _ = self.definition
        return MappingProxyType(self._steps.by_name)

    @property
    def definition(self) -> WorkflowDefinition:
        """The definition, its steps in a topological order that keeps the declared one where it can.

        Raises `DefinitionError` if a step or a parameter refers to what is not there.
        """
        if self._definition is None:
            if not self._steps.by_name:
                raise DefinitionError(self.name, f"it has no steps; declare one with @{_variable(self.name)}.step")
            self._definition = self._build(self._steps.complete())
        return self._definition

    def input_json(self, value: Any) -> Any:
        """`value` (of the input's type, or what validates as it) as plain JSON values. Raises `InputInvalid`."""
        return self._input.as_json(value)

    def _declare(
        self,
        handler: Callable[..., Any],
        names: Mapping[str, Any],
        *,
        name: str | None = None,
        queue: str | None = None,
        retry: Retry | None = None,
        timeout: Duration = "10m",
        depends_on: Sequence[StepRef] = (),
        args: Mapping[str, Any] | None = None,
        schedule_to_start: Duration = "24h",
        on_schedule_to_start: str = "fail",
        heartbeat: Duration = "30s",
        output: bool = False,
    ) -> Step:
        if not callable(handler):
            raise DefinitionError(
                self.name, f"{handler!r} is not a function; write @{_variable(self.name)}.step(…)"
            )
        step_name = self._legal_step_name(name or getattr(handler, "__name__", None))
        if retry is not None and not isinstance(retry, Retry):
            raise DefinitionError(self.name, f"retry takes Retry(…), not {retry!r}", step=step_name)
        if isinstance(depends_on, str) or not isinstance(depends_on, Sequence):
            raise DefinitionError(self.name, f"depends_on takes a list, not {depends_on!r}", step=step_name)
        with about(self.name, step_name):
            signature = read_signature(handler, names)
            plain = None if args is None else plain_args(args, signature)
        options = {
            "start_to_close_ms": self._ms("timeout", timeout, step_name),
            "schedule_to_start_ms": self._ms("schedule_to_start", schedule_to_start, step_name),
            "heartbeat_ms": self._ms("heartbeat", heartbeat, step_name),
            "on_schedule_to_start": on_schedule_to_start,
            "output": output,
        }
        step = Step(
            name=step_name,
            handler=handler,
            signature=signature,
            queue=self.queue if queue is None else self._legal_queue(queue, step_name),
            retry=retry or self._retry,
            options=options,
            depends_on=tuple(dict.fromkeys(self._steps.name_of(ref, step_name) for ref in depends_on)),
            args=plain,
            named={
                parameter.name: self._steps.name_of(parameter.of.step, step_name)
                for parameter in signature.parameters.values()
                if parameter.of is not None
            },
        )
        self._steps.add(step)
        self._definition = None
        return step

    def _build(self, steps: tuple[StepDefinition, ...]) -> WorkflowDefinition:
        with about(self.name):
            return WorkflowDefinition(steps=steps, **self._fields)

    def _legal_step_name(self, name: Any) -> str:
        if not isinstance(name, str) or not is_legal_step_name(name):
            problem = f"{name!r} is not a legal step name; {_STEP_NAME} (name=…)"
        elif name in RESERVED_STEP_NAMES:
            problem = f"the name {name!r} is reserved for a handler's parameter; choose another (name=…)"
        elif name in self._steps.by_name:
            problem = "there is a step of that name already; rename one (name=…)"
        elif len(self._steps.by_name) == MAX_STEPS:
            problem = f"a workflow has at most {MAX_STEPS} steps; split it"
        else:
            return name
        raise DefinitionError(self.name, problem, step=str(name))

    def _legal_queue(self, queue: Any, step: str | None = None) -> str:
        if isinstance(queue, str) and is_legal_name(queue):
            return queue
        raise DefinitionError(self.name, f"{queue!r} is not a legal queue name; {_NAME}", step=step)

    def _ms(self, option: str, duration: Duration, step: str | None = None) -> int:
        try:
            return milliseconds(duration)
        except ValueError as error:
            raise DefinitionError(self.name, f"{option}: {error}", step=step) from None

    def _checked(self, trigger: TriggerDefinition) -> TriggerDefinition:
        problem = None if trigger.where is None else compiled(trigger.where)
        if isinstance(problem, str):
            where = f"trigger on topic {trigger.topic!r}: where {trigger.where!r} cannot be used"
            raise DefinitionError(self.name, f"{where}: {problem}")
        return trigger


def _variable(name: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in name)
