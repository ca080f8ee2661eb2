"""Workflow definitions as all roles know them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from flowpilot.core.errors import FlowPilotError
from flowpilot_schemas.definition import WorkflowDefinition


class VersionConflict(FlowPilotError):
    """A workflow version is registered with other content; `workflow`, `version` name it."""

    def __init__(self, workflow: str, version: str) -> None:
        super().__init__(
            f"workflow {workflow!r} version {version!r} is registered with other content: "
            "give the changed workflow another version"
        )
        self.workflow = workflow
        self.version = version


class WorkflowDeleted(FlowPilotError):
    """A workflow was deleted; `workflow` names it."""

    def __init__(self, workflow: str) -> None:
        super().__init__(
            f"workflow {workflow!r} was deleted; `flowpilot workflow apply MODULE:WORKFLOW` brings it back"
        )
        self.workflow = workflow


class DefinitionTooLarge(FlowPilotError):
    """A definition does not fit into one record."""

    def __init__(self, workflow: str, version: str, size: int, limit: int) -> None:
        super().__init__(
            f"the definition of workflow {workflow!r} version {version!r} takes {size} bytes, more than the "
            f"{limit} that one record may have: give it fewer steps, or smaller args and descriptions"
        )
        self.size = size
        self.limit = limit


class Registration(NamedTuple):
    """When a workflow's name was first registered, or first after it was last deleted; broker times in ms.

    `deleted` is the time of that deletion, as long as the log remembers it.
    """

    at: int
    deleted: int | None = None


class Definitions(Protocol):
    """What is registered, as of the last `refresh` or `register`. Both may raise `LogUnavailable`."""

    async def refresh(self) -> None:
        """Read what was registered since, to the end of the log."""
        ...

    def get(self, definition_hash: str) -> WorkflowDefinition | None:
        """The definition of that hash."""
        ...

    def position(self, definition_hash: str) -> int | None:
        """Where the definition's latest registration stands among all: the greater, the later.

        None if it is not registered. A registration is the first one, or one with `move_pointer` that makes the
        workflow's newest of another definition; a worker that starts again is none.
        """
        ...

    def current(self, workflow: str) -> WorkflowDefinition | None:
        """The definition that the workflow's pointer names; None if there is no pointer."""
        ...

    def version(self, workflow: str, version: str) -> WorkflowDefinition | None:
        """The definition of a workflow version; None if there is none, or the workflow was deleted."""
        ...

    def versions(self, workflow: str) -> list[WorkflowDefinition]:
        """The definitions of all its versions, in the order in which they were registered."""
        ...

    def is_deleted(self, workflow: str) -> bool:
        """Whether the workflow was deleted and has not been applied since."""
        ...

    def workflows(self) -> list[str]:
        """The names of workflows that have a pointer, sorted."""
        ...

    def registered(self, definition: WorkflowDefinition) -> WorkflowDefinition:
        """`definition` as `register` takes it: itself, or, for developers, under a version of its own."""
        ...

    def registration(self, workflow: str) -> Registration | None:
        """When the workflow was registered, whatever versions came since; None if it is not known."""
        ...

    async def register(self, definition: WorkflowDefinition, *, move_pointer: bool = False) -> bool:
        """Make the definition known; returns False if it was there already.

        The workflow's pointer is set if there is none, or with `move_pointer`, which also brings back a deleted
        workflow; without it, that raises `WorkflowDeleted`. Raises `VersionConflict` if the same version is there
        with other content (of two that race, one raises), `DefinitionTooLarge`.
        """
        ...

    async def delete(self, workflow: str) -> list[str]:
        """Mark the workflow as deleted and take its versions back, which are returned; none if it is not there.

        Definitions stay under their hashes, for the starts that the log has taken already.
        """
        ...
