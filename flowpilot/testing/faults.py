"""What is to go wrong: planned by the test, carried out where the attempts are run."""

from __future__ import annotations

import dataclasses
import inspect
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from typing import Any, Literal

from flowpilot.authoring.declared import StepRef
from flowpilot.authoring.workflow import Workflow
from flowpilot.testing.errors import KitMisused
from flowpilot.worker.handlers import Handler

WorkflowLike = Workflow | str
Kind = Literal["fail", "hang", "lose", "repeat"]
Place = tuple[str, str]  # the names of workflow and step


@dataclass
class Fault:
    """What happens to the next `left` attempts of a step; None: to all of them."""

    kind: Kind
    left: int | None
    error: BaseException | None = None


class Faults:
    """The plan of one environment."""

    def __init__(self, workflows: Sequence[Workflow]) -> None:
        self._workflows = workflows
        self._planned: dict[Place, deque[Fault]] = defaultdict(deque)
        self._replaced: dict[Place, Callable[..., Any]] = {}

    def plan(self, kind: Kind, place: Place, times: int | None, error: BaseException | None = None) -> None:
        """Add a fault behind those that are planned for the step. Raises `KitMisused`."""
        if times is not None and times < 1:
            raise KitMisused(f"times={times} never happens; give 1 or more, or None for every attempt")
        self._planned[place].append(Fault(kind, times, error))

    def next(self, place: Place) -> Fault | None:
        """The fault of the attempt that begins now."""
        planned = self._planned[place]
        if not planned:
            return None
        fault = planned[0]
        if fault.left is not None:
            fault.left -= 1
            if fault.left == 0:
                planned.popleft()
        return fault

    def replace(self, place: Place, function: Callable[..., Any]) -> None:
        """`function` is called in the handler's place, with those of its arguments that it takes by name.

        Raises `KitMisused` if it needs an argument that the step is not given.
        """
        name, step_name = place
        owner = next(w for w in reversed(self._workflows) if w.name == name and step_name in w.steps)
        step = owner.steps[step_name]
        given = {binding.parameter.name for binding in step.bindings}
        needed = {
            name
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        }
        if not needed <= given:
            listed = ", ".join(sorted(given)) or "nothing"
            missing = ", ".join(repr(name) for name in sorted(needed - given))
            raise KitMisused(
                f"the replacement of step {place[1]!r} takes {missing}, which the step is not given; "
                f"it is given: {listed}"
            )
        self._replaced[place] = function

    def handler(self, place: Place, handler: Handler) -> Handler:
        """The handler, or what replaces it."""
        function = self._replaced.get(place)
        return handler if function is None else _with_call(handler, function)

    def place(self, step: StepRef, workflow: WorkflowLike | None) -> Place:
        """The step that is meant. Raises `KitMisused` if there is none, or more than one."""
        among = [self.workflow(workflow)] if workflow is not None else self._workflows
        places = {
            (candidate.name, name)
            for candidate in among
            for name, declared in candidate.steps.items()
            if step == name or step is declared or step is declared.handler
        }
        if len(places) == 1:
            return places.pop()
        shown = repr(step) if isinstance(step, str) else getattr(step, "__name__", repr(step))
        if places:
            listed = ", ".join(sorted({f"{of}: {name}" for of, name in places}))
            raise KitMisused(f"{shown} is more than one step ({listed}); give its name, and workflow=…")
        names = sorted({name for candidate in among for name in candidate.steps})
        close = get_close_matches(str(shown).strip("'"), names, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
        raise KitMisused(f"{shown} is not a step of this environment's workflows; {hint}")

    def workflow(self, workflow: WorkflowLike | None) -> Workflow:
        """The workflow that is meant: by name the last one given. Raises `KitMisused`."""
        if workflow is None:
            if len({candidate.name for candidate in self._workflows}) > 1:
                listed = ", ".join(sorted({candidate.name for candidate in self._workflows}))
                raise KitMisused(f"this environment has several workflows; say which: workflow=… ({listed})")
            return self._workflows[-1]
        for candidate in reversed(self._workflows):
            if workflow is candidate or workflow == candidate.name:
                return candidate
        name = workflow if isinstance(workflow, str) else workflow.name
        raise KitMisused(
            f"workflow {name!r} is not in this environment; name it there: WorkflowEnvironment(…, {name})"
        )


def _with_call(handler: Handler, function: Callable[..., Any]) -> Handler:
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}

    def chosen(arguments: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in arguments.items() if takes_all or name in names}

    if inspect.iscoroutinefunction(function):

        async def call_async(**arguments: Any) -> Any:
            return await function(**chosen(arguments))

        return dataclasses.replace(handler, call=call_async, is_async=True)

    def call(**arguments: Any) -> Any:
        return function(**chosen(arguments))

    return dataclasses.replace(handler, call=call, is_async=False)


def recording(handler: Handler, raised: Callable[[BaseException], None]) -> Handler:
    """The handler, telling what it raises: a test's user wants the traceback, which no answer carries."""
    inner = handler.call
    if handler.is_async:

        @wraps(inner)
        async def call_async(**arguments: Any) -> Any:
            try:
                return await inner(**arguments)
            except Exception as error:
                raised(error)
                raise

        return dataclasses.replace(handler, call=call_async)

    @wraps(inner)
    def call(**arguments: Any) -> Any:
        try:
            return inner(**arguments)
        except Exception as error:
            raised(error)
            raise

    return dataclasses.replace(handler, call=call)
