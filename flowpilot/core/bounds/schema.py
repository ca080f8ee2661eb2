"""The graph of a JSON Schema, as jsonschema-rs applies it without checks of formats.

A definition may have been registered by anybody. What cannot be bounded is refused, each with a remedy: patterns
that the linear engine does not take and whatever the graph refuses as `TooCostly`, references that do not lead to
a part of the schema (or to what depends on the way there, as `$dynamicRef`) as ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from flowpilot.core.bounds import patterns, tags
from flowpilot.core.bounds.checks import MAX_NODES, Check, TooCostly
from flowpilot.core.bounds.graph import Graph

_FOLLOWED = "write references as '#/$defs/…'"
_SAME = ("not", "if", "then", "else")
_SAME_EACH = ("allOf", "anyOf", "oneOf")


def schema_graph(schema: Any) -> Graph:
    """Raises `TooCostly` or ValueError: nothing may be checked against `schema`. It takes time in proportion to
    its size."""
    return Graph(_Reader(schema).checks)


class _Reader:
    def __init__(self, root: Any) -> None:
        if isinstance(root, dict) and "draft-04" in str(root.get("$schema")):
            raise ValueError("draft 4 of JSON Schema is not read; use draft 2020-12")
        self._root = root
        self.checks: list[Check] = []
        self._numbers: dict[int, int] = {}
        self._unread: list[tuple[Check, dict[str, Any]]] = []
        self._to(root)
        while self._unread:
            self._read(*self._unread.pop())

    def _to(self, schema: Any) -> int:
        """The number of its node, which may be read later."""
        number = self._numbers.get(id(schema)) if isinstance(schema, dict) else None
        if number is None:
            number = self._add(check := Check())
            if isinstance(schema, dict):
                self._numbers[id(schema)] = number
                self._unread.append((check, schema))
        return number

    def _add(self, check: Check) -> int:
        if len(self.checks) == MAX_NODES:
            raise TooCostly(f"it has more than {MAX_NODES} parts")
        self.checks.append(check)
        return len(self.checks) - 1

    def _all(self, schemas: Any) -> list[int]:
        return [self._to(each) for each in schemas] if isinstance(schemas, Iterable) else []

    def _read(self, check: Check, schema: dict[str, Any]) -> None:
        if schema is not self._root and isinstance(schema.get("$id"), str):
            raise ValueError(f"a part of it has an $id of its own; drop it and {_FOLLOWED}")
        for name in ("$dynamicRef", "$recursiveRef"):
            if name in schema:
                raise ValueError(f"{name} is not followed; {_FOLLOWED}")
        self._read_values(check, schema)
        if "$ref" in schema:
            check.same.append(self._to(self._resolve(schema["$ref"])))
        for name in _SAME_EACH:
            if name == "allOf" and tags.exclusive(schema.get(name)):
                check.same += [self._to(member["if"]) for member in schema[name]]
                check.one_of = [self._to(member["then"]) for member in schema[name]]
            else:
                check.same += self._all(schema.get(name, ()))
        check.same += [self._to(schema[name]) for name in _SAME if name in schema]
        for name in ("dependentSchemas", "dependencies"):
            check.same += self._all(_values(schema, name))
        self._read_object(check, schema)
        self._read_array(check, schema)
        if "unevaluatedProperties" in schema or "unevaluatedItems" in schema:
            # To know what is left, what is applied to the same value is applied again, with all below it.
            check.same += 2 * check.same
            check.same += 2 * [self._add(Check(own=check.own + len(check.same)))]

    def _read_object(self, check: Check, schema: dict[str, Any]) -> None:
        check.keys = {name: [self._to(each)] for name, each in _items(schema, "properties")}
        check.rest = [self._to(schema[name]) for name in ("additionalProperties",) if name in schema]
        check.every = self._all(_values(schema, "patternProperties"))
        check.every += [self._to(schema[name]) for name in ("unevaluatedProperties",) if name in schema]
        check.names = [self._to(schema[name]) for name in ("propertyNames",) if name in schema]
        looked_for = [_pattern(name) for name, _ in _items(schema, "patternProperties")]
        if looked_for:
            check.names.append(self._add(Check(own=len(looked_for), per_char=sum(looked_for))))

    def _read_array(self, check: Check, schema: dict[str, Any]) -> None:
        items, before = schema.get("items"), schema.get("prefixItems", ())
        if isinstance(items, list):
            before, items = items, schema.get("additionalItems")
        check.prefix = self._all(before)
        check.tail = [] if items is None else [self._to(items)]
        check.each = [self._to(schema[name]) for name in ("contains", "unevaluatedItems") if name in schema]

    def _read_values(self, check: Check, schema: dict[str, Any]) -> None:
        check.own = 1 + (len(schema) + len(_items(schema, "properties"))) // 8
        for name in ("required", "dependentRequired", "dependencies"):
            check.own += _parts(schema.get(name)) // 8
        for options in (schema.get("enum"), [schema.get("const")]):
            # Scalars are looked up; arrays and objects are compared one after the other.
            if isinstance(options, list) and any(isinstance(each, dict | list) for each in options):
                check.own += 4 * _parts(options)
        if "pattern" in schema:
            check.per_char += _pattern(schema["pattern"])
        measured = ("maxLength", "minLength", "contentMediaType", "contentEncoding")
        check.per_char += sum(name in schema for name in measured)
        check.per_size += 4 * bool(schema.get("uniqueItems"))

    def _resolve(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise ValueError(f"the reference {patterns.shown(str(reference))} is not followed; {_FOLLOWED}")
        found = self._root
        for part in unquote(reference).split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if found is not self._root and isinstance(found, dict) and isinstance(found.get("$id"), str):
                raise ValueError(f"a part of it has an $id of its own; drop it and {_FOLLOWED}")
            try:
                found = found[int(part)] if isinstance(found, list) else found[part]
            except (KeyError, IndexError, ValueError, TypeError):
                where = patterns.shown(reference)
                raise ValueError(f"the reference {where} leads nowhere; correct it") from None
        return found


def _pattern(pattern: Any) -> int:
    if not isinstance(pattern, str):
        return 0  # not a schema: the validator says so
    if not patterns.is_linear(pattern):
        raise TooCostly(
            f"the pattern {patterns.shown(pattern)} is not taken by an engine that needs linear time; write it "
            "without look-around, back-references and large repetitions, or check it in the first step"
        )
    return patterns.per_char(pattern)


def _items(schema: dict[str, Any], name: str) -> list[tuple[str, Any]]:
    found = schema.get(name)
    return list(found.items()) if isinstance(found, dict) else []


def _values(schema: dict[str, Any], name: str) -> list[Any]:
    return [each for _, each in _items(schema, name)]


def _parts(root: Any) -> int:
    parts, open_values = 0, [root]
    while open_values:
        value = open_values.pop()
        parts += 1
        if isinstance(value, dict | list):
            open_values.extend(value.values() if isinstance(value, dict) else value)
    return parts
