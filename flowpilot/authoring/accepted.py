"""The JSON that a type accepts, as a JSON Schema: all that its validation takes, and as little else as is safe.

pydantic's own JSON Schema describes a type, and validation takes more: lax mode takes `"3"` for an int, an alias
may have several names, a set takes an array with repetitions, and a validator of the user's may take anything. A
check by that schema would refuse what the type accepts. This schema is therefore derived from the core schema that
pydantic validates by (`TypeAdapter.core_schema`), read in lax JSON mode. Its law, held by
`tests/property/test_accepted.py`: what `validate_json` takes, the schema takes. What the user's code decides, or
what is not known here, becomes `true`. The worker, which validates by the type, refuses the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter

from flowpilot.authoring import accepted_values as values
from flowpilot.authoring.accepted_values import ANYTHING, NOTHING, Core, Schema, any_of


def accepted_schema(adapter: TypeAdapter[Any]) -> Schema:
    """The schema of all JSON that `adapter.validate_json` takes, and maybe more."""
    walk = _Walk(adapter.core_schema)
    schema = walk.schema(adapter.core_schema, {})
    if isinstance(schema, dict) and walk.defined:
        return {**schema, "$defs": walk.defined}
    return schema


class _Walk:
    """One walk through a core schema; `defined` are the definitions that references name."""

    def __init__(self, root: Core) -> None:
        self.defined: dict[str, Any] = {}
        self._root = root
        self._cores: dict[str, Core] = {}
        self._names: dict[str, str] = {}

    def schema(self, core: Core, config: Core) -> Schema:
        """`config`: that of the nearest model, dataclass or typed dict around."""
        leaf = values.KINDS.get(core["type"])
        if leaf is not None:
            return leaf(core, config)
        kind = _KINDS.get(core["type"])
        return ANYTHING if kind is None else kind(self, core, config)

    # -- what has parts ------------------------------------------------------------------------------------

    def definitions(self, core: Core, config: Core) -> Schema:
        """Types that refer to themselves, or are used several times."""
        self._cores |= {each["ref"]: each for each in core["definitions"]}
        return self.schema(core["schema"], config)

    def reference(self, core: Core, config: Core) -> Schema:
        """Of a definition; its own is walked once, when it is met first."""
        ref = core["schema_ref"]
        if ref not in self._cores:
            return ANYTHING
        if ref not in self._names:
            self._names[ref] = name = f"d{len(self._names)}"
            self.defined[name] = self.schema(self._cores[ref], values.config_of_definitions(self._root))
        return {"$ref": f"#/$defs/{self._names[ref]}"}

    def inner(self, core: Core, config: Core) -> Schema:
        """What only passes on, or checks afterwards."""
        return self.schema(core["schema"], config)

    def with_default(self, core: Core, config: Core) -> Schema:
        """A default may also stand in for what is wrong."""
        return ANYTHING if core.get("on_error", "raise") != "raise" else self.schema(core["schema"], config)

    def nullable(self, core: Core, config: Core) -> Schema:
        """It, or null."""
        return any_of([self.schema(core["schema"], config), {"type": "null"}])

    def union(self, core: Core, config: Core) -> Schema:
        """Any of its members."""
        members = [each[0] if isinstance(each, tuple) else each for each in core["choices"]]
        return any_of([self.schema(member, config) for member in members])

    def tagged_union(self, core: Core, config: Core) -> Schema:
        """The member that the discriminator names; any of them where that is a function, a path or no text.

        In the form that `flowpilot.core.bounds.tags` knows: at most one member is looked into.
        """
        name, choices = core["discriminator"], core["choices"]
        members = {tag: self.schema(member, config) for tag, member in choices.items()}
        if not isinstance(name, str) or not all(type(tag) is str for tag in members):
            return any_of(list(members.values()))

        def is_one_of(tags: list[str]) -> dict[str, Any]:
            return {"type": "object", "properties": {name: {"enum": tags}}, "required": [name]}

        chain = [{"if": is_one_of([tag]), "then": member} for tag, member in members.items()]
        return {**is_one_of(list(members)), "allOf": chain}

    def chain(self, core: Core, config: Core) -> Schema:
        """What the first takes; the others get its result."""
        return self.schema(core["steps"][0], config)

    def lax_or_strict(self, core: Core, config: Core) -> Schema:
        """Either."""
        return any_of([self.schema(core[name], config) for name in ("lax_schema", "strict_schema")])

    def json_or_python(self, core: Core, config: Core) -> Schema:
        """It is JSON that is read."""
        return self.schema(core["json_schema"], config)

    def array(self, core: Core, config: Core) -> Schema:
        """Lists; sets too, whose items may be repeated."""
        items = core.get("items_schema")
        found: dict[str, Any] = {"type": "array"}
        may_omit = items is not None and items.get("on_error") == "omit"
        if items is not None:
            _set(found, "items", self.schema(items, config))
        if core.get("min_length") and not may_omit:
            found["minItems"] = core["min_length"]
        if core.get("max_length") is not None and core["type"] == "list" and not may_omit:
            found["maxItems"] = core["max_length"]
        return found

    def positions(self, core: Core, config: Core) -> Schema:
        """Positions of their own, up to the variadic one."""
        items, variadic = core["items_schema"], core.get("variadic_item_index")
        if variadic is not None:
            fixed = [self.schema(item, config) for item in items[:variadic]]
            return _positions(fixed, self._required(items[:variadic]))
        found = _positions([self.schema(item, config) for item in items], self._required(items))
        return found if isinstance(found, bool) else {**found, "maxItems": len(items)}

    def _required(self, items: list[Core]) -> int:
        """How many items must be there: what has a default at the end need not."""
        return max((place for place, item in enumerate(items, 1) if not self._has_default(item)), default=0)

    def mapping(self, core: Core, config: Core) -> Schema:
        """An object. Its names are left to the key's type; several may be one key."""
        found: dict[str, Any] = {"type": "object"}
        if "values_schema" in core:
            _set(found, "additionalProperties", self.schema(core["values_schema"], config))
        if core.get("min_length"):
            found["minProperties"] = core["min_length"]
        return found

    # -- what has fields -----------------------------------------------------------------------------------

    def model(self, core: Core, config: Core) -> Schema:
        """A model with an `__init__` of its own, or whose class is asked, is the user's code."""
        if core.get("custom_init"):
            return ANYTHING
        return self.schema(core["schema"], core.get("config") or {})

    def model_fields(self, core: Core, config: Core) -> Schema:
        """The fields of a model: a name for each."""
        return self._object(core, config, core["fields"].items())

    def typed_dict(self, core: Core, config: Core) -> Schema:
        """Here a field says itself whether it is required."""
        own = core.get("config") or config
        return self._object(core, own, core["fields"].items(), total=core.get("total", True))

    def dataclass(self, core: Core, config: Core) -> Schema:
        """Its arguments."""
        return self.schema(core["schema"], core.get("config") or {})

    def dataclass_args(self, core: Core, config: Core) -> Schema:
        """A field that is not given to `__init__` is none of the input's."""
        fields = [(field["name"], field) for field in core["fields"] if field.get("init", True)]
        return self._object(core, config, fields)

    def _object(self, core: Core, config: Core, fields: Any, total: bool | None = None) -> Schema:
        properties: dict[str, Schema] = {}
        required: list[list[str]] = []
        for name, field in fields:
            names = names_of(name, field, config)
            wanted = self.schema(field["schema"], config)
            for place, (key, is_whole) in enumerate(names):
                # The value of a later name counts only where the earlier ones are missing.
                own = wanted if place == 0 and is_whole else ANYTHING
                properties[key] = _both(properties.get(key, ANYTHING), own)
            must = field.get("required", total) if total is not None else not self._has_default(field["schema"])
            if must and not self._has_default(field["schema"]):
                if wanted is NOTHING:
                    return NOTHING
                required.append(list(dict.fromkeys(key for key, _ in names)))
        found: dict[str, Any] = {"type": "object"}
        if properties:
            found["properties"] = properties
        if always := [names[0] for names in required if len(names) == 1]:
            found["required"] = list(dict.fromkeys(always))
        if either := [names for names in required if len(names) > 1]:
            found["allOf"] = [{"anyOf": [{"required": [name]} for name in names]} for names in either]
        if self._forbids_extras(core, config):
            found["additionalProperties"] = False
        return found

    def _forbids_extras(self, core: Core, config: Core) -> bool:
        return (core.get("extra_behavior") or config.get("extra_fields_behavior")) == "forbid"

    def _has_default(self, core: Core, depth: int = 0) -> bool:
        """Whether a missing value may be made up, as far as can be told; if not, that it may."""
        if core["type"] == "default":
            return True
        if core["type"] == "definition-ref":
            core = self._cores.get(core["schema_ref"], core)
            return depth > 8 or self._has_default(core, depth + 1)
        if core["type"] == "union":
            members = [each[0] if isinstance(each, tuple) else each for each in core["choices"]]
            return any(self._has_default(member, depth + 1) for member in members)
        if core["type"] == "chain":
            return self._has_default(core["steps"][0], depth + 1)
        names = ("schema", "lax_schema", "json_schema")
        wrapped = next((core[name] for name in names if name in core), None) if core["type"] in _WRAPPERS else None
        return wrapped is not None and self._has_default(wrapped, depth + 1)


def names_of(name: str, field: Core, config: Core) -> list[tuple[str, bool]]:
    """The properties that a field's value is looked for in, in their order; False: within that property."""
    alias = field.get("validation_alias")
    by_alias, by_name = config.get("validate_by_alias", True), config.get("validate_by_name", False)
    if alias is None:
        return [(name, True)]
    found: list[tuple[str, bool]] = []
    if by_alias is not False:
        paths = [alias] if isinstance(alias, str) or not isinstance(alias[0], list) else alias
        for path in paths:
            whole = [path] if isinstance(path, str) else path
            found.append((str(whole[0]), len(whole) == 1))
    if by_name or not found:
        found.append((name, True))
    return found


def _positions(items: list[Schema], required: int) -> Schema:
    if NOTHING in items[:required]:
        return NOTHING
    found: dict[str, Any] = {"type": "array"}
    if items:
        found["prefixItems"] = items
    if required:
        found["minItems"] = required
    return found


def _set(found: dict[str, Any], keyword: str, schema: Schema) -> None:
    if schema is not ANYTHING:
        found[keyword] = schema


def _both(one: Schema, other: Schema) -> Schema:
    if one is ANYTHING or other is NOTHING:
        return other
    return one if other is ANYTHING or one is NOTHING else {"allOf": [one, other]}


_WRAPPERS = frozenset(
    {
        *("function-after", "function-before", "function-wrap", "nullable", "custom-error", "definitions"),
        *("lax-or-strict", "json-or-python", "json"),
    }
)

# What is not here (validators of the user's, generators, complex numbers, named tuples, …) may take anything.
_KINDS: dict[str, Callable[[_Walk, Core, Core], Schema]] = {
    "definitions": _Walk.definitions,
    "definition-ref": _Walk.reference,
    "function-after": _Walk.inner,
    "custom-error": _Walk.inner,
    "default": _Walk.with_default,
    "nullable": _Walk.nullable,
    "union": _Walk.union,
    "tagged-union": _Walk.tagged_union,
    "chain": _Walk.chain,
    "lax-or-strict": _Walk.lax_or_strict,
    "json-or-python": _Walk.json_or_python,
    "list": _Walk.array,
    "set": _Walk.array,
    "frozenset": _Walk.array,
    "tuple": _Walk.positions,
    "dict": _Walk.mapping,
    "model": _Walk.model,
    "model-fields": _Walk.model_fields,
    "typed-dict": _Walk.typed_dict,
    "dataclass": _Walk.dataclass,
    "dataclass-args": _Walk.dataclass_args,
}
