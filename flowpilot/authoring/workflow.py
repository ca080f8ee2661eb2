"""`Workflow`: what a user declares once, and what the rest of FlowPilot reads.

What can be told about a step is told where it is declared; that a name is nobody's can only be told when all
steps are there, which is when `Workflow.definition` is first read (by a worker, `apply` or a start).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, TypedDict, TypeVar, Unpack, overload

from pydantic import ValidationError

from flowpilot.authoring.durations import Duration, milliseconds
from flowpilot.authoring.errors import DefinitionError, first_problem
from flowpilot.authoring.graph import find_cycle, topological
from flowpilot.authoring.input import WorkflowInput
from flowpilot.authoring.retry import Retry
from flowpilot.authoring.signature import Misfit, read_signature
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
StepRef = Step | str | Callable[..., Any]

_STEP_NAME = "use a letter or _ first, then A–Z a–z 0–9 . _ -, at most 100"
_NAME = "use 1–100 of A–Z a–z 0–9 . _ -, with a letter or digit at both ends"


class StepOptions(TypedDict, total=False):
    """What `step` and `add_step` take; see `Workflow.step`."""

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

    `input`: the type of the input (a pydantic model, a dataclass, any annotation), or None for any JSON.
    `queue`: the default queue of its steps, the workflow's name unless given. `retry`: their default.
    `timeout`: of a whole execution; None: none. `dedupe_window`: how long a completed execution answers a start
    with its key. `retry_window`: how long a failed one can be retried from where it failed.
    Raises `DefinitionError`.
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
        self._steps: dict[str, Step] = {}
        self._by_handler: dict[Callable[..., Any], list[str]] = {}
        self._awaited: dict[str, list[Step]] = {}
        self._definition: WorkflowDefinition | None = None
        self._input = WorkflowInput(name, input)
        self._fields: dict[str, Any] = {
            "name": name,
            "version": version,
            "description": description,
            "triggers": tuple(self._checked(trigger) for trigger in triggers),
            "input_schema": self._input.schema,
            "timeout_ms": None if timeout is None else self._ms("timeout", timeout),
            "dedupe_window_ms": self._ms("dedupe_window", dedupe_window),
            "retry_window_ms": self._ms("retry_window", retry_window),
        }
        self._build((StepDefinition(name="step", queue=self.queue),))  # tells now what is out of range

    def __repr__(self) -> str:
        return f"<Workflow {self.name} version {self.version}, {len(self._steps)} steps>"

    @overload
    def step(self, handler: Handler, /) -> Handler: ...

    @overload
    def step(self, **options: Unpack[StepOptions]) -> Callable[[Handler], Handler]: ...

    # mypy does not see that **options: Any takes what the unpacked StepOptions names.
    def step(self, handler: Callable[..., Any] | None = None, /, **options: Any) -> Any:  # type: ignore[misc]
        """Declare the decorated function as a step; it is returned as it is.

        Its parameters say what it takes: `input`, a parent step's name, `parents` (all of them), a `StepContext`.
        `timeout` bounds one attempt from its start, `schedule_to_start` the wait before it, `heartbeat` the
        silence during it. `output=True` marks the step whose output is the execution's.
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
        """The plain form of `step`, for loops: `args` are values for parameters, kept in the definition."""
        return self._declare(handler, sys._getframe(1).f_locals, args=args, **options)

    @property
    def steps(self) -> Mapping[str, Step]:
        """The steps in the order they were declared, their bindings complete. Raises `DefinitionError`."""
        _ = self.definition
        return MappingProxyType(self._steps)

    @property
    def definition(self) -> WorkflowDefinition:
        """The definition, its steps in a topological order that keeps the declared one where it can.

        Raises `DefinitionError` if a step or a parameter refers to what is not there.
        """
        if self._definition is None:
            if not self._steps:
                raise DefinitionError(self.name, f"it has no steps; declare one with @{_variable(self.name)}.step")
            for step in self._steps.values():
                self._tell(step.name, partial(step.check_complete, self._steps))
            for step in self._steps.values():
                step.bindings = tuple(step.bind(self._steps))
            order = topological({name: step.parents(self._steps) for name, step in self._steps.items()})
            self._definition = self._build(tuple(self._define(self._steps[name]) for name in order))
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
        signature = self._tell(step_name, partial(read_signature, handler, names))
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
            depends_on=tuple(dict.fromkeys(self._name_of(ref, step_name) for ref in depends_on)),
            args=None if args is None else self._tell(step_name, partial(plain_args, args, signature)),
            named={
                parameter.name: self._name_of(parameter.of.step, step_name)
                for parameter in signature.parameters.values()
                if parameter.of is not None
            },
        )
        self._accept(step)
        return step

    def _accept(self, step: Step) -> None:
        """Check it, and those that waited for its name, before it becomes part of the workflow."""
        if step.options["output"] and (
            first := next((s for s in self._steps.values() if s.options["output"]), None)
        ):
            raise DefinitionError(self.name, f"step {first.name!r} is the output already; mark one", step=step.name)
        steps = {**self._steps, step.name: step} if step.name in self._awaited else _Plus(self._steps, step)
        self._tell(step.name, partial(step.check, steps, self.input_type))
        self._define(step, steps)
        for waiting in self._awaited.get(step.name, ()):
            self._tell(waiting.name, partial(waiting.check, steps, self.input_type))
        if step.name in self._awaited or step.name in step.parents(steps):
            cycle = find_cycle(step.name, lambda name: steps[name].parents(steps))
            if cycle:
                way = " → ".join(cycle)
                problem = f"it depends on itself: {way}; remove one of these dependencies"
                raise DefinitionError(self.name, problem, step=step.name)
        self._steps[step.name] = step
        self._by_handler.setdefault(step.handler, []).append(step.name)
        self._awaited.pop(step.name, None)
        for name in step.awaits(self._steps):
            self._awaited.setdefault(name, []).append(step)
        self._definition = None

    def _define(self, step: Step, steps: Mapping[str, Step] | None = None) -> StepDefinition:
        try:
            return step.define(self._steps if steps is None else steps)
        except ValidationError as error:
            raise DefinitionError(self.name, first_problem(error), step=step.name) from None

    def _build(self, steps: tuple[StepDefinition, ...]) -> WorkflowDefinition:
        try:
            return WorkflowDefinition(steps=steps, **self._fields)
        except ValidationError as error:
            raise DefinitionError(self.name, first_problem(error)) from None

    def _name_of(self, ref: Any, step: str) -> str:
        """The name of a step given as its name, as a Step or as its function."""
        if isinstance(ref, str):
            return ref
        if isinstance(ref, Step):
            if self._steps.get(ref.name) is not ref:
                raise DefinitionError(self.name, f"step {ref.name!r} belongs to another workflow", step=step)
            return ref.name
        names = self._by_handler.get(ref, []) if callable(ref) else []
        if len(names) == 1:
            return names[0]
        what = getattr(ref, "__name__", repr(ref))
        if names:
            raise DefinitionError(self.name, f"{what} is the handler of {len(names)} steps; name one", step=step)
        raise DefinitionError(
            self.name,
            f"{what} is not a step of this workflow; declare it above, or give the step's name",
            step=step,
        )

    def _legal_step_name(self, name: Any) -> str:
        if not isinstance(name, str) or not is_legal_step_name(name):
            problem = f"{name!r} is not a legal step name; {_STEP_NAME} (name=…)"
        elif name in RESERVED_STEP_NAMES:
            problem = f"the name {name!r} is reserved for a handler's parameter; choose another (name=…)"
        elif name in self._steps:
            problem = "there is a step of that name already; rename one (name=…)"
        elif len(self._steps) == MAX_STEPS:
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

    def _tell(self, step: str, check: Callable[[], Any]) -> Any:
        """Run `check`, and say where, if it finds something."""
        try:
            return check()
        except Misfit as misfit:
            raise DefinitionError(self.name, str(misfit), step=step) from None


class _Plus(Mapping[str, Step]):
    """The steps and one more, without a copy: declaring n steps stays O(n)."""

    def __init__(self, steps: Mapping[str, Step], step: Step) -> None:
        self._declared, self._step = steps, step

    def __getitem__(self, name: str) -> Step:
        return self._step if name == self._step.name else self._declared[name]

    def __iter__(self) -> Any:
        yield from self._declared
        yield self._step.name

    def __len__(self) -> int:
        return len(self._declared) + 1


def _variable(name: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in name)
