"""FlowPilot: a workflow engine whose public contract is Kafka.

    from flowpilot import Client, Worker, Workflow

    greeting = Workflow("greeting", version="1")

    @greeting.step
    def greet(input: str) -> str:
        return f"Hello {input}"

    Worker(greeting).run()                                      # in one process

    with Client.blocking() as client:                           # in another
        print(client.start(greeting, "Ada").result(timeout=30))

Names are imported on first use, so that `import flowpilot` costs nothing and needs no broker library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowpilot.app.client import Client as Client
    from flowpilot.app.worker import Worker as Worker
    from flowpilot.authoring import DefinitionError as DefinitionError
    from flowpilot.authoring import InputInvalid as InputInvalid
    from flowpilot.authoring import NonRetryable as NonRetryable
    from flowpilot.authoring import Retry as Retry
    from flowpilot.authoring import RetryAfter as RetryAfter
    from flowpilot.authoring import Step as Step
    from flowpilot.authoring import StepContext as StepContext
    from flowpilot.authoring import Workflow as Workflow
    from flowpilot.authoring import on_topic as on_topic
    from flowpilot.authoring import output_of as output_of
    from flowpilot.client.errors import ExecutionCancelled as ExecutionCancelled
    from flowpilot.client.errors import ExecutionExists as ExecutionExists
    from flowpilot.client.errors import ExecutionFailed as ExecutionFailed
    from flowpilot.client.errors import RetryRefused as RetryRefused
    from flowpilot.core.errors import FlowPilotError as FlowPilotError

_HOMES = {
    "Client": "flowpilot.app.client",
    "ExecutionCancelled": "flowpilot.client.errors",
    "ExecutionExists": "flowpilot.client.errors",
    "ExecutionFailed": "flowpilot.client.errors",
    "RetryRefused": "flowpilot.client.errors",
    "Worker": "flowpilot.app.worker",
    "DefinitionError": "flowpilot.authoring",
    "InputInvalid": "flowpilot.authoring",
    "NonRetryable": "flowpilot.authoring",
    "Retry": "flowpilot.authoring",
    "RetryAfter": "flowpilot.authoring",
    "Step": "flowpilot.authoring",
    "StepContext": "flowpilot.authoring",
    "Workflow": "flowpilot.authoring",
    "on_topic": "flowpilot.authoring",
    "output_of": "flowpilot.authoring",
    "FlowPilotError": "flowpilot.core.errors",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'flowpilot' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
