"""The test kit: workflows run in memory, on the production engine, with a virtual clock (docs/testing.md).

Names are imported on first use: pytest loads this package for its fixture, also where nobody asks for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowpilot.testing.environment import BlockingEnvironment as BlockingEnvironment
    from flowpilot.testing.environment import WorkflowEnvironment as WorkflowEnvironment
    from flowpilot.testing.errors import HandlerHangs as HandlerHangs
    from flowpilot.testing.errors import InjectedFailure as InjectedFailure
    from flowpilot.testing.errors import KitMisused as KitMisused
    from flowpilot.testing.errors import NotFinished as NotFinished
    from flowpilot.testing.execution import Execution as Execution

_HOMES = {
    "BlockingEnvironment": "flowpilot.testing.environment",
    "Execution": "flowpilot.testing.execution",
    "HandlerHangs": "flowpilot.testing.errors",
    "InjectedFailure": "flowpilot.testing.errors",
    "KitMisused": "flowpilot.testing.errors",
    "NotFinished": "flowpilot.testing.errors",
    "WorkflowEnvironment": "flowpilot.testing.environment",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'flowpilot.testing' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
