"""A workflow's input: its JSON Schema, what a record is checked against, and a value of its type as JSON."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from flowpilot.authoring.accepted import accepted_schema
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
        self.schema = self._schema_of(self._adapter)
        """None: any JSON."""
        self.check = self._checkable(self._check_of(self._adapter))
        """The schema of all that the type accepts, as a worker validates it; None: any JSON."""

    def as_json(self, value: Any) -> Any:
        """`value` (of the input's type, or what validates as it) as plain JSON values. Raises `InputInvalid`."""
        adapter = self._adapter
        try:
            return decode(to_json(value) if adapter is None else self._readable(value, adapter))
        except TooCostly as costly:
            raise InputInvalid(f"this input of workflow {self._workflow!r}: {costly}") from None
        except ValidationError as error:
            problem = first_problem(error)
            raise InputInvalid(f"this is not an input of workflow {self._workflow!r}: {problem}") from None
        except NotSerialisable as error:
            raise InputInvalid(f"the input of workflow {self._workflow!r} must be JSON: {error}") from None

    def _readable(self, value: Any, adapter: TypeAdapter[Any]) -> bytes:
        """JSON that the type takes: what the type writes, else `value` as it is, if it is that already.

        Aliases, computed fields and strict types make a type that does not read what it writes.
        """
        try:
            bounds_of(adapter).check_python(value)
            written = to_json(adapter.validate_python(value), adapter, round_trip=True)
            problem = _problem(adapter, written)
            if problem is None:
                return written
        except ValidationError as error:
            problem = error
        try:
            given = to_json(value)
        except NotSerialisable:
            raise problem from None
        if _problem(adapter, given) is not None:
            raise problem
        return given

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

    def _check_of(self, adapter: TypeAdapter[Any] | None) -> dict[str, Any] | None:
        if adapter is None:
            return None
        accepted = accepted_schema(adapter)
        if accepted is False:
            problem = "the input has a type that no JSON fits; use a pydantic model, a dataclass or plain types"
            raise DefinitionError(self._workflow, problem)
        return {} if accepted is True else accepted

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


def _problem(adapter: TypeAdapter[Any], data: bytes) -> ValidationError | None:
    """Why the type does not take `data`, as a worker gives it."""
    bounds_of(adapter).check(decode(data), data)
    try:
        adapter.validate_json(data)
    except ValidationError as error:
        return error
    return None
