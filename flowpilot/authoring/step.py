"""A step: a handler, its options, and where its parameters' values come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from flowpilot.authoring.accepted import accepted_schema
from flowpilot.authoring.contract import contract_of
from flowpilot.authoring.errors import first_problem
from flowpilot.authoring.fits import describe, fits, is_same
from flowpilot.authoring.read_back import unread
from flowpilot.authoring.results import NotSerialisable, to_json
from flowpilot.authoring.retry import Retry
from flowpilot.authoring.signature import Misfit, Parameter, Signature, adapter_of, element_of
from flowpilot_schemas.codec import decode
from flowpilot_schemas.definition import StepDefinition

Source = Literal["context", "args", "input", "parents", "parent"]


@dataclass(frozen=True, slots=True)
class Binding:
    """Where one parameter's value comes from; `parent` is the step whose output it is."""

    parameter: Parameter
    source: Source
    parent: str = ""


@dataclass(eq=False)
class Step:
    """One step as it was declared: what `Workflow.add_step` gives, and `Workflow.steps` has by name.

    `depends_on` and `output_of` take it as they take the function.
    """

    name: str
    handler: Callable[..., Any]
    signature: Signature
    queue: str
    retry: Retry
    options: Mapping[str, Any]
    depends_on: tuple[str, ...] = ()
    args: Mapping[str, Any] | None = None
    """By parameter, plain JSON values."""
    named: Mapping[str, str] = field(default_factory=dict)
    """By parameter, the step that `output_of` names."""
    bindings: tuple[Binding, ...] = ()
    """Set once all steps are known."""

    def parents(self, steps: Mapping[str, Step]) -> tuple[str, ...]:
        """The names of the steps it depends on, as far as `steps` has them."""
        found = dict.fromkeys(self.depends_on)
        found.update(dict.fromkeys(binding.parent for binding in self.bind(steps) if binding.source == "parent"))
        return tuple(name for name in found if name in steps)

    def bind(self, steps: Mapping[str, Step]) -> list[Binding]:
        """The parameters that something provides, among `steps`."""
        return [
            binding for parameter in self.signature.parameters.values() for binding in self._bind(parameter, steps)
        ]

    def _bind(self, parameter: Parameter, steps: Mapping[str, Step]) -> Iterator[Binding]:
        name = parameter.name
        if parameter.is_context:
            yield Binding(parameter, "context")
        elif self.args is not None and name in self.args:
            yield Binding(parameter, "args")
        elif name in self.named:
            yield Binding(parameter, "parent", self.named[name])
        elif name == "input":
            yield Binding(parameter, "input")
        elif name == "parents":
            yield Binding(parameter, "parents")
        elif name in steps:
            yield Binding(parameter, "parent", name)

    def awaits(self, steps: Mapping[str, Step]) -> set[str]:
        """Names that a step declared later may have, and that would then matter to this one."""
        bound = {binding.parameter.name for binding in self.bind(steps)}
        wanted = {*self.depends_on, *self.named.values(), *(set(self.signature.parameters) - bound)}
        return wanted - steps.keys()

    def check(self, steps: Mapping[str, Step], input_type: Any) -> None:
        """Raises `Misfit` for what is wrong with it as far as its parents are among `steps`."""
        parents = self.parents(steps)
        for binding in self.bind(steps):
            if binding.source == "parent" and binding.parent in steps:
                _check_output(binding.parameter.name, binding.parameter.annotation, steps[binding.parent])
                _check_reading(binding.parameter.name, binding.parameter.adapter)
            elif binding.source == "parents":
                element = element_of(binding.parameter.annotation)
                _check_reading("parents", adapter_of(element, "the parameter 'parents'"))
                for parent in parents:
                    _check_output("parents", element, steps[parent])
            elif binding.source == "input":
                wanted = binding.parameter.annotation
                _check_reading("input", binding.parameter.adapter)
                if input_type is not None and not fits(input_type, wanted):
                    given = describe(input_type)
                    raise Misfit(
                        f"the parameter 'input' is annotated {describe(wanted)}, but the workflow's input "
                        f"is {given}; annotate it {given}"
                    )

    def check_complete(self, steps: Mapping[str, Step]) -> None:
        """Raises `Misfit` for a step or a value that nothing provides. `steps` are all there are."""
        for name in (*self.depends_on, *self.named.values()):
            if name not in steps:
                raise Misfit(
                    f"it depends on {name!r}, which is not a step{_hint(name, steps)}; declare it or correct it"
                )
        bound = {binding.parameter.name for binding in self.bind(steps)}
        for name, parameter in self.signature.parameters.items():
            if parameter.required and name not in bound:
                raise Misfit(
                    f"nothing provides the parameter {name!r}{_hint(name, steps)}; name it after a step, "
                    "take the workflow's input as 'input', or give it a default or a value in args"
                )

    def define(self, steps: Mapping[str, Step]) -> StepDefinition:
        """As it travels. Raises `Misfit`, and pydantic's ValidationError for an option out of range."""
        parents, bindings = self.parents(steps), self.bind(steps)
        sources = {binding.source for binding in bindings}
        takes = {binding.parent for binding in bindings if binding.source == "parent"}
        args = None if self.args is None else dict(self.args)
        return StepDefinition(
            name=self.name,
            queue=self.queue,
            depends_on=parents,
            takes=parents if "parents" in sources else tuple(name for name in parents if name in takes),
            takes_input="input" in sources,
            args=args,
            contract=contract_of(bindings, parents, args, self.signature.returns),
            retry=self.retry.policy(),
            **self.options,
        )


def plain_args(args: Mapping[str, Any], signature: Signature) -> dict[str, Any]:
    """`args` as JSON values, each checked against its parameter. Raises `Misfit`."""
    plain = {}
    for name, value in args.items():
        parameter = signature.parameters.get(name)
        if parameter is None and not signature.extras:
            raise Misfit(f"args gives {name!r}, which is not a parameter of the handler; correct it or drop it")
        if parameter is not None and parameter.is_context:
            raise Misfit(f"args gives {name!r}, which takes the StepContext; drop it")
        adapter = None if parameter is None else parameter.adapter
        try:
            if adapter is not None:
                value = adapter.validate_python(value)
            data = to_json(value, adapter, round_trip=True)
            if adapter is not None:
                adapter.validate_json(data)  # as the worker gives it
            plain[name] = decode(data)
        except ValidationError as error:
            raise Misfit(f"args gives {name!r} a value that does not fit: {first_problem(error)}") from None
        except NotSerialisable as error:
            raise Misfit(f"args gives {name!r} a value that is not JSON: {error}") from None
    return plain


def _check_output(parameter: str, wanted: Any, parent: Step) -> None:
    given = parent.signature.returns
    if not fits(given, wanted):
        raise Misfit(
            f"the parameter {parameter!r} is annotated {describe(wanted)}, but step {parent.name!r} returns "
            f"{describe(given)}; annotate it {describe(given)} or take another step's output"
        )
    problem = unread(adapter_of(given, "the result")) if is_same(given, wanted) else None
    if problem is not None:
        raise Misfit(
            f"the parameter {parameter!r} takes what step {parent.name!r} returns by way of JSON, and its type "
            f"{describe(given)} does not read what it writes: {problem}"
        )


def _check_reading(parameter: str, adapter: TypeAdapter[Any]) -> None:
    if accepted_schema(adapter) is False:
        raise Misfit(
            f"the parameter {parameter!r} has a type that no JSON fits; use a pydantic model, a dataclass or plain "
            "types"
        )


def _hint(name: str, steps: Mapping[str, Step]) -> str:
    close = get_close_matches(name, steps, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
