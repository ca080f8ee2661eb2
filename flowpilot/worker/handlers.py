"""The handlers a worker has, ready to be given a step message's values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from flowpilot.authoring.bounds import TypeBounds, bounds_of
from flowpilot.authoring.retry import Retry
from flowpilot.authoring.signature import adapter_of, element_of
from flowpilot.authoring.step import Source, Step
from flowpilot.authoring.workflow import Workflow
from flowpilot.worker.errors import UnknownQueue


@dataclass(frozen=True, slots=True)
class Value:
    """One parameter: what it takes, and what validates it."""

    name: str
    source: Source
    parent: str
    adapter: TypeAdapter[Any] | None
    required: bool
    bounds: TypeBounds | None = None
    """What validating may take; there are some where there is an adapter."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A step's function with all that calling it needs."""

    call: Any
    is_async: bool
    values: tuple[Value, ...]
    context: str | None
    """The parameter that takes the StepContext."""
    returns: TypeAdapter[Any] | None
    retry: Retry
    version: str
    """The workflow's version that this worker has."""

    @property
    def validates_quickly(self) -> bool:
        """Whether its values can be validated on the event loop: in moments, and with none of the user's code."""
        return all(value.bounds is None or value.bounds.is_quick for value in self.values)

    @classmethod
    def of(cls, step: Step, version: str) -> Handler:
        """The handler of a step whose bindings are complete."""
        values, context = [], None
        for binding in step.bindings:
            parameter = binding.parameter
            if binding.source == "context":
                context = parameter.name
                continue
            annotation = element_of(parameter.annotation) if binding.source == "parents" else parameter.annotation
            adapter = None if annotation is Any else adapter_of(annotation, f"the parameter {parameter.name!r}")
            bounds = None if adapter is None else bounds_of(adapter)
            required = parameter.required
            values.append(Value(parameter.name, binding.source, binding.parent, adapter, required, bounds))
        returns = step.signature.returns
        return cls(
            call=step.handler,
            is_async=step.signature.is_async,
            values=tuple(values),
            context=context,
            returns=None if returns is Any else adapter_of(returns, "the result"),
            retry=step.retry,
            version=version,
        )


class Handlers:
    """All handlers of some workflows. Raises `DefinitionError` for a workflow that is not complete."""

    def __init__(self, workflows: Sequence[Workflow]) -> None:
        self.workflows = tuple(workflows)
        self.all: list[tuple[Workflow, dict[str, Handler]]] = [
            (workflow, {step.name: Handler.of(step, workflow.version) for step in workflow.steps.values()})
            for workflow in workflows
        ]
        """Each workflow with its steps' handlers by name."""

    def queues(self, only: Collection[str] | None = None) -> list[str]:
        """The queues to serve, each once: all of the workflows', or `only` those. Raises `UnknownQueue`."""
        all_queues = dict.fromkeys(q for workflow in self.workflows for q in workflow.definition.queues)
        if only is None:
            return list(all_queues)
        for queue in only:
            if queue not in all_queues:
                raise UnknownQueue(queue, list(all_queues))
        return list(dict.fromkeys(only))
