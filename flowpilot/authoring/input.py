"""A workflow's input: its JSON Schema, and a value of its type as JSON."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from flowpilot.authoring.bounds import bounds_of
from flowpilot.authoring.errors import DefinitionError, InputInvalid, first_problem
from flowpilot.authoring.results import NotSerialisable, to_json
from flowpilot.authoring.signature import Misfit, adapter_of
from flowpilot.core.bounds.checks import TooCostly
from flowpilot.core.bounds.patterns import is_linear
from flowpilot.core.bounds.tags import rewritten
from flowpilot.core.bounds.validator import Validator
from flowpilot_schemas.codec import decode


class WorkflowInput:
    """The input of `workflow` as `annotation` declares it; None: any JSON. Raises `DefinitionError`."""

    def __init__(self, workflow: str, annotation: Any) -> None:
        self._workflow = workflow
        self._adapter = self._adapter_of(annotation)
        self.schema = self._checkable(self._schema_of(self._adapter))
        """None: any JSON."""

    def as_json(self, value: Any) -> Any:
        """`value` (of the input's type, or what validates as it) as plain JSON values. Raises `InputInvalid`."""
        try:
            if self._adapter is not None:
                bounds_of(self._adapter).check_python(value)
                value = self._adapter.validate_python(value)
            return decode(to_json(value, self._adapter))
        except TooCostly as costly:
            raise InputInvalid(f"this input of workflow {self._workflow!r}: {costly}") from None
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
            return None if adapter is None else rewritten(adapter.json_schema(), _without_look_around)
        except Exception as error:  # noqa: BLE001 - a schema is made by the user's types too
            problem = f"the input has no JSON Schema ({str(error).splitlines()[0]}); use plain types"
            raise DefinitionError(self._workflow, problem) from None

    def _checkable(self, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        """`schema`, if the router can check records against it, which is better told here."""
        try:
            if schema is not None:
                Validator(schema)
        except TooCostly as costly:
            problem = f"the input has a JSON Schema that cannot be checked in bounded time: {costly}"
            raise DefinitionError(self._workflow, problem) from None
        except ValueError as error:
            problem = f"the input has a JSON Schema that cannot be used ({error}); use plain types"
            raise DefinitionError(self._workflow, problem) from None
        return schema


def _without_look_around(part: dict[str, Any]) -> dict[str, Any]:
    """Without the patterns that only Python's engine takes: those are left to the type in the worker."""
    if isinstance(part.get("pattern"), str) and not is_linear(part["pattern"]):
        part = {name: each for name, each in part.items() if name != "pattern"}
    named = part.get("patternProperties")
    if isinstance(named, dict):
        part = {**part, "patternProperties": {name: each for name, each in named.items() if is_linear(name)}}
    return part
