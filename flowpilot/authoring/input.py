"""A workflow's input: its JSON Schema, and a value of its type as JSON."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from flowpilot.authoring.errors import DefinitionError, InputInvalid, first_problem
from flowpilot.authoring.results import NotSerialisable, to_json
from flowpilot.authoring.signature import Misfit, adapter_of
from flowpilot_schemas.codec import decode


class WorkflowInput:
    """The input of `workflow` as `annotation` declares it; None: any JSON. Raises `DefinitionError`."""

    def __init__(self, workflow: str, annotation: Any) -> None:
        self._workflow = workflow
        self._adapter = self._adapter_of(annotation)
        self.schema = self._schema_of(self._adapter)
        """None: any JSON."""

    def as_json(self, value: Any) -> Any:
        """`value` (of the input's type, or what validates as it) as plain JSON values. Raises `InputInvalid`."""
        try:
            if self._adapter is not None:
                value = self._adapter.validate_python(value)
            return decode(to_json(value, self._adapter))
        except ValidationError as error:
            problem = first_problem(error)
            raise InputInvalid(f"this is not an input of workflow {self._workflow!r}: {problem}") from None
        except NotSerialisable as error:
            raise InputInvalid(f"the input of workflow {self._workflow!r} must be JSON: {error}") from None

    def _adapter_of(self, annotation: Any) -> TypeAdapter[Any] | None:
        try:
            return None if annotation is None else adapter_of(annotation, "the input")
        except Misfit as error:
            raise DefinitionError(self._workflow, str(error)) from None

    def _schema_of(self, adapter: TypeAdapter[Any] | None) -> dict[str, Any] | None:
        try:
            return None if adapter is None else adapter.json_schema()
        except Exception as error:  # noqa: BLE001 - a schema is made by the user's types too
            problem = f"the input has no JSON Schema ({str(error).splitlines()[0]}); use plain types"
            raise DefinitionError(self._workflow, problem) from None
