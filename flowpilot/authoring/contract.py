"""A step's contract: a hash of what its handler takes and returns. Code of an equal contract can run the step.

What counts is the shape of the JSON that passes: for each bound parameter its name, where its value comes from,
whether it is required, and the JSON Schema that validates it; the values of `args`; the JSON Schema of the result.
What does not count: titles, descriptions, examples and default values (the handler's own code fills them in), the
names of types, the order of fields, of a union's members and of an enumeration's values, and what a type checks in
code.

The hash is the same in every process: it is over canonical JSON, and references between types are replaced by
hashes of their structure, since pydantic names a definition by class and module. A pydantic release that writes a
schema in another way changes the contract, as it changes a workflow's input schema: the definition then needs
another version.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaWarningKind

from flowpilot.authoring.signature import Misfit, adapter_of, element_of
from flowpilot_schemas.codec import canonical, content_hash

if TYPE_CHECKING:
    from flowpilot.authoring.step import Binding

_NOT_COUNTED = frozenset({"title", "description", "examples", "default", "deprecated", "$comment", "$defs"})
_BY_NAME = frozenset({"properties", "patternProperties", "dependentSchemas"})
_VALUES = frozenset({"const", "enum", "required", "discriminator"})
_UNORDERED = frozenset({"enum", "required", "anyOf", "oneOf", "allOf"})
_REFERENCE = "#/$defs/"


def contract_of(
    bindings: Iterable[Binding], parents: Iterable[str], args: Mapping[str, Any] | None, returns: Any
) -> str:
    """The contract of a handler, `sha256:<hex>`. `parents`: whose outputs a parameter `parents` holds.

    Raises `Misfit` for a type that has no JSON Schema.
    """
    takes: dict[str, Any] = {}
    for binding in bindings:
        parameter, what = binding.parameter, f"the parameter {binding.parameter.name!r}"
        if binding.source == "context":
            continue
        annotation, source = parameter.annotation, (binding.source, [binding.parent])
        if binding.source == "parents":
            annotation, source = element_of(annotation), (binding.source, sorted(parents))
        takes[parameter.name] = [source, parameter.required, _shape(annotation, "validation", what)]
    return content_hash({"takes": takes, "args": args, "returns": _shape(returns, "serialization", "the result")})


def _shape(annotation: Any, mode: JsonSchemaMode, what: str) -> Any:
    """The hash of an annotation's structure; None for any JSON."""
    if annotation is Any:
        return None
    try:
        return _known_shape(annotation, mode)
    except (TypeError, Misfit):  # not hashable; or to be told of by its name
        return _shape_of(adapter_of(annotation, what), mode, what)


@functools.lru_cache(maxsize=4096)
def _known_shape(annotation: Any, mode: JsonSchemaMode) -> Any:
    # Annotations that compare equal (unions in another order) have one shape.
    return _shape_of(adapter_of(annotation, "an annotation"), mode, "an annotation")


def _shape_of(adapter: TypeAdapter[Any], mode: JsonSchemaMode, what: str) -> str:
    try:
        schema = adapter.json_schema(mode=mode, schema_generator=_Generator)
    except Misfit:
        raise
    except Exception as error:  # noqa: BLE001 - a type's own hooks may raise anything
        raise Misfit(f"{what} has no JSON Schema ({type(error).__name__}: {error}); use a plain type") from None
    return structure_hash(schema)


class _Generator(GenerateJsonSchema):
    """pydantic's JSON Schema, silent, with what it leaves out of it but decides what JSON is accepted."""

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        """What is left out is no news to the author: the schema is hashed and not shown."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        """A type that only code can describe counts by its kind and name."""
        named = schema.get("cls")
        return {"x-kind": schema["type"], "x-name": getattr(named, "__qualname__", None)}

    def model_field_schema(self, schema: Any) -> dict[str, Any]:
        """With all of its aliases: the schema shows the first."""
        return _with_aliases(super().model_field_schema(schema), schema)

    def dataclass_field_schema(self, schema: Any) -> dict[str, Any]:
        """As a model's."""
        return _with_aliases(super().dataclass_field_schema(schema), schema)

    def typed_dict_field_schema(self, schema: Any) -> dict[str, Any]:
        """As a model's."""
        return _with_aliases(super().typed_dict_field_schema(schema), schema)


def _with_aliases(found: dict[str, Any], schema: Any) -> dict[str, Any]:
    alias = schema.get("validation_alias")
    return found if alias is None or isinstance(alias, str) else {**found, "x-aliases": alias}


def structure_hash(schema: dict[str, Any]) -> str:
    """The hash of a JSON Schema's structure; equal for schemas that differ in names and order alone."""
    definitions = schema.get("$defs", {})
    names = dict.fromkeys(definitions, "")
    distinct = 1
    for _ in definitions:  # refined until no more definitions are told apart
        names = {name: content_hash(_plain(found, names)) for name, found in definitions.items()}
        before, distinct = distinct, len(set(names.values()))
        if distinct == before:
            break
    return content_hash(_plain(schema, names))


def _plain(schema: Any, names: Mapping[str, str]) -> Any:
    """What counts of a schema, as JSON values in an order of their own."""
    if isinstance(schema, list | tuple):
        return [_plain(each, names) for each in schema]
    if not isinstance(schema, dict):
        return _json(schema)
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NOT_COUNTED:
            continue
        if key == "$ref" and isinstance(value, str):
            found[key] = names.get(value.removeprefix(_REFERENCE), value)
        elif key == "discriminator" and isinstance(value, dict):
            mapping = value.get("mapping", {})
            found[key] = {
                "propertyName": value.get("propertyName"),
                "mapping": {
                    _json(name): names.get(str(to).removeprefix(_REFERENCE), "") for name, to in mapping.items()
                },
            }
        elif key in _BY_NAME and isinstance(value, dict):
            found[key] = {name: _plain(each, names) for name, each in value.items()}
        elif key in _VALUES or key.startswith("x-"):
            found[key] = _json(value)
        else:
            found[key] = _plain(value, names)
        if key in _UNORDERED and isinstance(found[key], list):
            found[key] = sorted(found[key], key=canonical)
    return found


def _json(value: Any) -> Any:
    """As plain JSON; what is none (a type's own extras may be anything) counts by its type alone."""
    if isinstance(value, dict):
        return {str(key): _json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted((_json(each) for each in value), key=canonical)
    if value is None or isinstance(value, str | bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    return f"<{type(value).__qualname__}>"
