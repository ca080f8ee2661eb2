"""The graph of a pydantic type: what the work of validating a value by it is at most.

It is read from what pydantic validates by (`TypeAdapter.core_schema`), not from the JSON Schema, which a type may
describe as it likes. pydantic tries all members of an untagged union, also when one fits (it looks for the best).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pydantic_core
from pydantic import TypeAdapter

from flowpilot.authoring.accepted_values import config_of_definitions
from flowpilot.core.bounds import patterns
from flowpilot.core.bounds.checks import MAX_NODES, Check, TooCostly
from flowpilot.core.bounds.collisions import check_collisions
from flowpilot.core.bounds.graph import Graph

_Core = Mapping[str, Any]
_REMEDY = (
    "give the union a discriminator, make the type smaller, or declare dict[str, Any] and check it in the step"
)


class TypeBounds:
    """What validating by one type may take. Raises `TooCostly`, with the remedy."""

    def __init__(self, core: _Core) -> None:
        reader = _Reader(core)
        try:
            self._graph = Graph(reader.checks)
        except TooCostly as costly:
            raise TooCostly(f"{costly}; {_REMEDY}") from None
        self._hashes_numbers = reader.hashes_numbers
        self.runs_user_code = reader.runs_user_code
        """Whether validators of the user's run, which may take any time."""

    @property
    def is_quick(self) -> bool:
        """Whether validating takes moments, and no code but pydantic's."""
        return not self.runs_user_code and self._graph.is_linear

    def check(self, value: Any, data: bytes) -> None:
        """Raises `TooCostly` if `value`, plain JSON values whose JSON is `data`, would take too long."""
        if self._hashes_numbers:
            check_collisions(value)
        if not self._graph.covers(data):
            try:
                self._graph.price(value)
            except TooCostly as costly:
                raise TooCostly(f"{costly}; {_REMEDY}") from None

    def check_python(self, value: Any) -> None:
        """The same for a value whose JSON is not at hand. Instances of models were validated already."""
        if not self._graph.is_linear:
            self.check(value, b"")

    def check_written(self, value: Any) -> None:
        """The same for a value to be written: there too the members of a union are tried one after the other."""
        if not self._graph.is_linear:
            self.check(pydantic_core.to_jsonable_python(value, by_alias=True), b"")


@lru_cache(maxsize=4_096)
def _known(core: _ByIdentity) -> TypeBounds | TooCostly:
    try:
        return TypeBounds(core.held.core_schema)
    except TooCostly as costly:
        return costly


class _ByIdentity:
    __slots__ = ("held",)

    def __init__(self, held: TypeAdapter[Any]) -> None:
        self.held = held

    def __hash__(self) -> int:
        return id(self.held)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.held is self.held


def bounds_of(adapter: TypeAdapter[Any]) -> TypeBounds:
    """Those of the adapter's type, read once. Raises `TooCostly`."""
    found = _known(_ByIdentity(adapter))
    if isinstance(found, TooCostly):
        raise found
    return found


class _Reader:
    """The checks of a core schema, each part read when something leads to it first."""

    def __init__(self, core: _Core) -> None:
        self.checks: list[Check] = []
        self.runs_user_code = self.hashes_numbers = False  # sets or keys may be of numbers
        self._defined: dict[str, tuple[_Core, _Core]] = {}
        self._root = core
        self._numbers: dict[str, int] = {}
        self._unread: list[tuple[Check, _Core, _Core]] = []
        self._to(core, {})
        while self._unread:
            self._read(*self._unread.pop())

    def _add(self, check: Check) -> int:
        if len(self.checks) == MAX_NODES:
            raise TooCostly(f"its type has more than {MAX_NODES} parts; {_REMEDY}")
        self.checks.append(check)
        return len(self.checks) - 1

    def _to(self, core: _Core, config: _Core) -> int:
        while core["type"] == "definitions":
            found = config_of_definitions(self._root)
            self._defined |= {each["ref"]: (each, found) for each in core["definitions"]}
            core = core["schema"]
        ref = core["schema_ref"] if core["type"] == "definition-ref" else None
        if ref in self._numbers:
            return self._numbers[ref]
        number = self._add(check := Check())
        if ref is not None:
            self._numbers[ref] = number
            if ref not in self._defined:
                return number
            core, config = self._defined[ref]
        self._unread.append((check, core, config))
        return number

    def _read(self, check: Check, core: _Core, config: _Core) -> None:
        kind = core["type"]
        config = core.get("config") or config
        read = _READERS.get(kind, _Reader._anything)
        if kind.startswith("function-") and not _is_pydantics(core.get("function")):
            self.runs_user_code = True
        if core.get("custom_init") or core.get("post_init"):
            self.runs_user_code = True
        read(self, check, core, config)

    # ---- kinds of core schemas

    def _inner(self, check: Check, core: _Core, config: _Core) -> None:
        if "schema" in core:
            check.same = [self._to(core["schema"], config)]

    def _union(self, check: Check, core: _Core, config: _Core) -> None:
        members = (each[0] if isinstance(each, tuple) else each for each in core["choices"])
        check.same = [self._to(each, config) for each in members]

    def _tagged(self, check: Check, core: _Core, config: _Core) -> None:
        if callable(core["discriminator"]):
            self.runs_user_code = True
        members = (each for each in core["choices"].values() if isinstance(each, Mapping))
        check.one_of = list(dict.fromkeys(self._to(each, config) for each in members))

    def _alternatives(self, check: Check, core: _Core, config: _Core) -> None:
        names = ("lax_schema", "strict_schema", "json_schema", "python_schema")
        check.one_of = [self._to(core[name], config) for name in names if name in core]

    def _chain(self, check: Check, core: _Core, config: _Core) -> None:
        check.same = [self._to(each, config) for each in core["steps"]]

    def _array(self, check: Check, core: _Core, config: _Core) -> None:
        if core["type"] in ("set", "frozenset"):
            self.hashes_numbers = True
        if "items_schema" in core:
            check.each = [self._to(core["items_schema"], config)]

    def _tuple(self, check: Check, core: _Core, config: _Core) -> None:
        numbers = [self._to(each, config) for each in core["items_schema"]]
        variadic = core.get("variadic_item_index")
        check.prefix, check.tail = (numbers, []) if variadic is None else (numbers[:variadic], numbers[variadic:])

    def _mapping(self, check: Check, core: _Core, config: _Core) -> None:
        if core.get("keys_schema", {"type": "str"})["type"] != "str":
            self.hashes_numbers = True
        check.rest = [self._to(core["values_schema"], config)] if "values_schema" in core else []
        check.names = [self._to(core["keys_schema"], config)] if "keys_schema" in core else []

    def _fields(self, check: Check, core: _Core, config: _Core) -> None:
        fields = core["fields"]
        named = list(fields.items()) if isinstance(fields, Mapping) else [(each["name"], each) for each in fields]
        for name, each in named:
            self._field(check, name, each, config)
        for extra in ("extras_schema", "extras_keys_schema"):
            if extra in core:
                to = check.rest if extra == "extras_schema" else check.names
                to.append(self._to(core[extra], config))
        if core["type"] == "named-tuple":
            check.prefix = [self._to(each["schema"], config) for _, each in named]
        check.own = 1 + len(check.keys) // 8

    def _arguments(self, check: Check, core: _Core, config: _Core) -> None:
        for each in core["arguments_schema"]:
            self._field(check, each["name"], {"validation_alias": each.get("alias"), **each}, config)
            check.prefix.append(self._to(each["schema"], config))
        for name in ("var_args_schema", "var_kwargs_schema"):
            if name in core:
                (check.tail if name == "var_args_schema" else check.rest).append(self._to(core[name], config))

    def _field(self, check: Check, name: str, core: _Core, config: _Core) -> None:
        """Its own name counts too, which some models take beside the alias."""
        number = self._to(core["schema"], config)
        for path in _paths(name, core.get("validation_alias")):
            check.keys.setdefault(str(path[0]), []).append(self._under(path[1:], number))

    def _under(self, path: Sequence[Any], number: int) -> int:
        """The node that applies `number` at the end of `path`."""
        for part in reversed(path):
            deeper = Check(keys={part: [number]}) if isinstance(part, str) else Check(each=[number])
            number = self._add(deeper)
        return number

    def _call(self, check: Check, core: _Core, config: _Core) -> None:
        check.same = [self._to(core["arguments_schema"], config)]

    def _json(self, check: Check, core: _Core, config: _Core) -> None:
        check.per_char = 1
        if "schema" in core:
            check.parsed = [self._to(core["schema"], config)]

    def _text(self, check: Check, core: _Core, config: _Core) -> None:
        check.per_char = 1
        pattern = core.get("pattern")
        if pattern is None:
            return
        if isinstance(pattern, re.Pattern) or config.get("regex_engine") == "python-re":
            text, flags = (pattern, 0) if isinstance(pattern, str) else (pattern.pattern, pattern.flags)
            check.power = patterns.power(text, flags)
            check.longest = core.get("max_length")
            check.per_char = 2
        else:
            check.per_char += patterns.per_char(pattern)

    def _anything(self, check: Check, core: _Core, config: _Core) -> None:
        """Of a kind that is not known here: whatever it holds may be applied to the value and to its parts."""
        numbers = [self._to(each, config) for each in _held(core)]
        check.same, check.rest, check.each = numbers, numbers[:], numbers[:]


def _is_pydantics(function: Any) -> bool:
    """Whether a validator came with pydantic: those for types of the standard library."""
    called = function.get("function") if isinstance(function, Mapping) else function
    called = getattr(called, "func", called)
    module = getattr(called, "__module__", None) or type(called).__module__
    return str(module).split(".")[0] in ("pydantic", "pydantic_core", "builtins")


def _paths(name: str, alias: Any) -> Iterator[Sequence[Any]]:
    yield [name]
    if isinstance(alias, str):
        yield [alias]
    for each in alias if isinstance(alias, list) else ():
        if isinstance(each, list) and each:
            yield each
        elif isinstance(each, str):
            yield alias
            return


def _held(core: _Core) -> Iterable[_Core]:
    unread = ("metadata", "serialization", "cls")
    open_values: list[Any] = [each for name, each in core.items() if name not in unread]
    while open_values:
        value = open_values.pop()
        if isinstance(value, Mapping) and isinstance(value.get("type"), str):
            yield value
        elif isinstance(value, Mapping):
            open_values.extend(value.values())
        elif isinstance(value, list | tuple):
            open_values.extend(value)


_READERS: dict[str, Callable[[_Reader, Check, _Core, _Core], None]] = {
    **dict.fromkeys(("list", "set", "frozenset", "generator", "deque"), _Reader._array),
    **dict.fromkeys(("dict", "frozendict", "ordered-dict", "counter"), _Reader._mapping),
    **dict.fromkeys(("model-fields", "typed-dict", "dataclass-args", "named-tuple"), _Reader._fields),
    **dict.fromkeys(("lax-or-strict", "json-or-python"), _Reader._alternatives),
    **dict.fromkeys(
        (
            *("function-before", "function-after", "function-wrap", "function-plain"),
            *("default", "nullable", "model", "dataclass", "custom-error"),
        ),
        _Reader._inner,
    ),
    **dict.fromkeys(("arguments", "arguments-v3"), _Reader._arguments),
    "union": _Reader._union,
    "tagged-union": _Reader._tagged,
    "chain": _Reader._chain,
    "tuple": _Reader._tuple,
    "call": _Reader._call,
    "json": _Reader._json,
    "str": _Reader._text,
}
