"""The steps of a workflow as they are declared: each is checked when it comes, with those that await its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from flowpilot.authoring.errors import DefinitionError, first_problem
from flowpilot.authoring.graph import find_cycle, topological
from flowpilot.authoring.signature import Misfit
from flowpilot.authoring.step import Step
from flowpilot_schemas.definition import StepDefinition

StepRef = Step | str | Callable[..., Any]


@contextmanager
def about(workflow: str, step: str | None = None) -> Iterator[None]:
    """Inside, what is found wrong becomes a `DefinitionError` that says where."""
    try:
        yield
    except Misfit as misfit:
        raise DefinitionError(workflow, str(misfit), step=step) from None
    except ValidationError as error:
        raise DefinitionError(workflow, first_problem(error), step=step) from None


class DeclaredSteps:
    """Those of `workflow`; `by_name` has them in the order they were declared. All raise `DefinitionError`."""

    def __init__(self, workflow: str, input_type: Any) -> None:
        self.by_name: dict[str, Step] = {}
        self._workflow, self._input_type = workflow, input_type
        self._by_handler: dict[Callable[..., Any], list[str]] = {}
        self._awaited: dict[str, list[Step]] = {}  # by a name that is nobody's yet

    def add(self, step: Step) -> None:
        """Check it, and those that await its name, before it becomes part of the workflow."""
        declared = self.by_name
        if step.options["output"] and (first := next((s for s in declared.values() if s.options["output"]), None)):
            problem = f"step {first.name!r} is the output already; mark one"
            raise DefinitionError(self._workflow, problem, step=step.name)
        is_awaited = step.name in self._awaited
        steps = {**declared, step.name: step} if is_awaited else _Plus(declared, step)
        with about(self._workflow, step.name):
            step.check(steps, self._input_type)
            step.define(steps)
        for waiting in self._awaited.get(step.name, ()):
            with about(self._workflow, waiting.name):
                waiting.check(steps, self._input_type)
        if is_awaited or step.name in step.parents(steps):
            cycle = find_cycle(step.name, lambda name: steps[name].parents(steps))
            if cycle:
                way = " → ".join(cycle)
                problem = f"it depends on itself: {way}; remove one of these dependencies"
                raise DefinitionError(self._workflow, problem, step=step.name)
        declared[step.name] = step
        self._by_handler.setdefault(step.handler, []).append(step.name)
        self._awaited.pop(step.name, None)
        for name in step.awaits(declared):
            self._awaited.setdefault(name, []).append(step)

    def name_of(self, ref: Any, step: str) -> str:
        """The name of a step that `step` gives as its name, as a Step or as its function."""
        if isinstance(ref, str):
            return ref
        if isinstance(ref, Step):
            if self.by_name.get(ref.name) is ref:
                return ref.name
            problem = f"step {ref.name!r} belongs to another workflow"
        else:
            names = self._by_handler.get(ref, []) if callable(ref) else []
            if len(names) == 1:
                return names[0]
            what = getattr(ref, "__name__", repr(ref))
            problem = (
                f"{what} is the handler of {len(names)} steps; name one"
                if names
                else f"{what} is not a step of this workflow; declare it above, or give the step's name"
            )
        raise DefinitionError(self._workflow, problem, step=step)

    def complete(self) -> tuple[StepDefinition, ...]:
        """Now these are all: set their bindings, and define them in a topological order that keeps the declared
        one where it can."""
        steps = self.by_name
        for step in steps.values():
            with about(self._workflow, step.name):
                step.check_complete(steps)
        for step in steps.values():
            step.bindings = tuple(step.bind(steps))
        defined = []
        for name in topological({name: step.parents(steps) for name, step in steps.items()}):
            with about(self._workflow, name):
                defined.append(steps[name].define(steps))
        return tuple(defined)


class _Plus(Mapping[str, Step]):
    """The steps and one more, without a copy: declaring n steps stays O(n)."""

    def __init__(self, steps: Mapping[str, Step], step: Step) -> None:
        self._declared, self._step = steps, step

    def __getitem__(self, name: str) -> Step:
        return self._step if name == self._step.name else self._declared[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._declared
        yield self._step.name

    def __len__(self) -> int:
        return len(self._declared) + 1
