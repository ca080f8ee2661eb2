"""Unions whose members have a tag, as chains of `if` and `then`.

A validator tries every member of `oneOf`, also where `discriminator` (OpenAPI 3.1, and what pydantic writes) says
which one it is, so that a tagged union within itself would cost what an untagged one does. As

    allOf: [{if: {type: object, properties: {kind: {enum: ["a"]}}, required: [kind]}, then: …}, …]

at most one member is looked into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_BY_NAME = frozenset(
    {"properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions"}
)
VALUES = frozenset({"enum", "const", "default", "examples"})
"""Keywords whose value is JSON, and no schema."""


def with_chains(schema: Any) -> Any:
    """`schema`, with a chain for each union of references whose tags are texts. A tag that is missing or unknown
    does not fit."""
    return rewritten(schema, lambda part: _chained(part, schema))


def rewritten(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]], is_schema: bool = True) -> Any:
    """A copy of `schema` in which each part of it went through `change`, the innermost first."""
    if isinstance(schema, list):
        return [rewritten(each, change) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if not is_schema:
        return {name: rewritten(each, change) for name, each in schema.items()}
    return change(
        {
            name: each if name in VALUES else rewritten(each, change, name not in _BY_NAME)
            for name, each in schema.items()
        }
    )


def _chained(part: dict[str, Any], root: Any) -> dict[str, Any]:
    told, members = part.get("discriminator"), part.get("oneOf")
    if not isinstance(told, dict) or not isinstance(members, list):
        return part
    name, mapping = told.get("propertyName"), told.get("mapping")
    references = [each.get("$ref") for each in members if isinstance(each, dict) and len(each) == 1]
    if not isinstance(mapping, dict) or not isinstance(name, str) or len(references) != len(members):
        return part
    if set(map(str, references)) != set(map(str, mapping.values())):
        return part
    if not all(_has_tag(root, reference, name, tag) for tag, reference in mapping.items()):
        return part
    chain = [
        {
            "if": {
                "type": "object",
                "properties": {name: {"enum": [tag for tag, each in mapping.items() if each == reference]}},
                "required": [name],
            },
            "then": {"$ref": reference},
        }
        for reference in dict.fromkeys(mapping.values())
    ]
    plain = {key: each for key, each in part.items() if key not in ("oneOf", "discriminator")}
    known = {"type": "object", "properties": {name: {"enum": list(mapping)}}, "required": [name]}
    return {**plain, "allOf": [*plain.get("allOf", ()), known, {"allOf": chain}]}


def _has_tag(root: Any, reference: Any, name: str, tag: str) -> bool:
    """Whether the member's own schema has `tag` as a value of the property."""
    where, _, of = str(reference).rpartition("/")
    if where not in ("#/$defs", "#/definitions") or not isinstance(root, dict):
        return False
    try:
        told = root[where[2:]][of]["properties"][name]
    except (KeyError, TypeError):
        return False
    return isinstance(told, dict) and (told.get("const") == tag or tag in (told.get("enum") or ()))


def exclusive(members: Any) -> bool:
    """Whether `members` of an `allOf` are such a chain: at most one `then` is applied to any value ."""
    names, tags = set(), []
    for member in members if isinstance(members, list) else ():
        if not isinstance(member, dict) or member.keys() != {"if", "then"} or not isinstance(member["if"], dict):
            return False
        condition = member["if"]
        properties = condition.get("properties")
        if condition.keys() != {"type", "properties", "required"} or condition["type"] != "object":
            return False
        if not isinstance(properties, dict) or len(properties) != 1:
            return False
        ((name, told),) = properties.items()
        if not isinstance(told, dict) or told.keys() != {"enum"} or not isinstance(told["enum"], list):
            return False
        if condition.get("required") != [name]:
            return False
        names.add(name)
        tags += told["enum"]
    texts = all(isinstance(tag, str) for tag in tags)
    return len(names) == 1 and texts and len(set(tags)) == len(tags)
