"""What a client may start: the registered definition of a workflow, and an input that fits it."""

from __future__ import annotations

import time
from typing import Any, Protocol

from flowpilot.authoring.errors import InputInvalid
from flowpilot.authoring.results import NotSerialisable, to_json
from flowpilot.client.errors import UnknownWorkflow
from flowpilot.core.inputs import check_input
from flowpilot.ports.definitions import Definitions, WorkflowDeleted
from flowpilot_schemas.codec import BadRecord, decode
from flowpilot_schemas.definition import WorkflowDefinition

# For so many seconds a client that starts an object does not ask again whether its workflow was deleted.
REGISTERED_FOR = 10.0


class Defined(Protocol):
    """A `Workflow` object, as far as a client cares."""

    @property
    def definition(self) -> WorkflowDefinition: ...

    def input_json(self, value: Any) -> Any: ...


class Workflows:
    """A workflow is a `Workflow` object or a name. `input_limit`: bytes of an input's JSON."""

    def __init__(self, definitions: Definitions, input_limit: int) -> None:
        self._definitions = definitions
        self._input_limit = input_limit
        self._registered: dict[str, float] = {}  # definition hash to when to look again

    async def definition(self, workflow: Defined | str, version: str | None) -> WorkflowDefinition:
        """An object's own definition, registered if need be; of a name the current version's, or that of `version`.

        Raises `UnknownWorkflow`, `WorkflowDeleted`, `VersionConflict`, `LogUnavailable`.
        """
        definitions = self._definitions
        if not isinstance(workflow, str):
            definition = workflow.definition
            if version is not None and version != definition.version:
                raise UnknownWorkflow(definition.name, version, [])
            if self._registered.get(definition.hash, 0.0) < time.monotonic():
                await definitions.register(definition)
                self._registered[definition.hash] = time.monotonic() + REGISTERED_FOR
            return definitions.registered(definition)
        await definitions.refresh()
        current = definitions.current(workflow)
        found = current if version is None else definitions.version(workflow, version)
        if found is None and definitions.is_deleted(workflow):
            raise WorkflowDeleted(workflow)
        if found is None:
            wrong_version = version if current is not None else None
            raise UnknownWorkflow(workflow, wrong_version, definitions.workflows())
        return found

    def input_of(self, workflow: Defined | str, definition: WorkflowDefinition, value: Any) -> Any:
        """`value` as plain JSON values that fit `definition`. Raises `InputInvalid`."""
        try:
            plain = decode(to_json(value)) if isinstance(workflow, str) else workflow.input_json(value)
            check_input(definition, plain, self._input_limit)
        except NotSerialisable as error:
            raise InputInvalid(f"the input is not JSON: {error}") from None
        except BadRecord as bad:
            raise InputInvalid(bad.detail) from None
        return plain
