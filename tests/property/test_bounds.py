"""Verdicts within bounds: over random recursive schemas and types, and values made to be dear.

Where the bound lets a value through, the verdict is that of the validator without bounds, and it comes in time.
"""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Literal

import jsonschema_rs
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, create_model

from flowpilot.authoring.bounds import TypeBounds
from flowpilot.core.bounds.checks import MAX_OPERATIONS, TooCostly
from flowpilot.core.bounds.schema import schema_graph
from flowpilot.core.bounds.validator import Validator

THOROUGH = settings(max_examples=150, deadline=None)
GENEROUS = 3.0  # seconds, for what takes 0.2 at most where nothing else runs

NAMES = ("a", "b", "c")
LEAVES: st.SearchStrategy[Any] = st.sampled_from(
    [{"type": "string"}, {"type": "integer"}, {"type": "null"}, {"maxLength": 2}, {"enum": ["x", [1]]}, {}]
)
REFERENCES = st.sampled_from([{"$ref": f"#/$defs/{name}"} for name in NAMES])
FEW = {"min_size": 1, "max_size": 3}


def _around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, **FEW)
    return st.one_of(
        st.builds(lambda how, each: {how: each}, st.sampled_from(["anyOf", "oneOf", "allOf"]), some),
        st.builds(lambda each: {"type": "array", "items": each}, inner),
        st.builds(lambda some, each: {"prefixItems": some, "items": each}, some, inner),
        st.builds(lambda each: {"type": "object", "additionalProperties": each}, inner),
        st.builds(lambda each: {"properties": each}, st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)),
        st.builds(lambda each: {"patternProperties": {"^a": each}, "propertyNames": {"maxLength": 1}}, inner),
        st.builds(lambda how, each: {how: each}, st.sampled_from(["not", "contains", "unevaluatedItems"]), inner),
        st.builds(lambda test, then: {"if": test, "then": then, "unevaluatedProperties": False}, inner, inner),
    )


SCHEMAS = st.recursive(LEAVES | REFERENCES, _around, max_leaves=6)


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, Any]:
    """Definitions that refer to one another as they like."""
    return {"$ref": "#/$defs/a", "$defs": {name: draw(SCHEMAS) for name in NAMES}}


@st.composite
def values(draw: st.DrawFn) -> Any:
    """JSON that is deep rather than wide, and small."""
    value: Any = draw(st.sampled_from([None, 1, "x", "long", [], {}]))
    for _ in range(draw(st.integers(0, 60))):
        shape = draw(st.integers(0, 4))
        name = draw(st.sampled_from(NAMES))
        value = [[value], {name: value}, [value, value], {"a": value, "b": 1}, [1, value]][shape]
    # Shared parts are written out only as far as that is small.
    return value if _size(value) < 3_000 else 1


def _size(root: Any) -> int:
    size, open_values = 0, [root]
    while open_values and size < 3_000:
        value = open_values.pop()
        size += 1
        open_values.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
    return size


def in_time(begun: float) -> bool:
    return time.monotonic() - begun < GENEROUS


@THOROUGH
@given(schemas(), st.lists(values(), min_size=1, max_size=3))
def test_a_schemas_verdict_is_the_unbounded_one_or_too_costly(schema: Any, some: list[Any]) -> None:
    begun = time.monotonic()
    try:
        validator = Validator(schema)
    except (TooCostly, ValueError):
        assert in_time(begun)
        return
    for value in some:
        begun = time.monotonic()
        try:
            misfit = validator.misfit(value, json.dumps(value).encode())
        except TooCostly:
            assert in_time(begun)
            continue
        assert in_time(begun)
        plain = jsonschema_rs.validator_for(schema, offline=True)
        assert (misfit is None) == plain.is_valid(value)


@THOROUGH
@given(schemas(), values())
def test_the_static_bound_is_never_below_the_price(schema: Any, value: Any) -> None:
    try:
        graph = schema_graph(schema)
    except (TooCostly, ValueError):
        return
    data = json.dumps(value).encode()
    if graph.is_linear and graph.covers(data):
        try:
            price = graph.price(value)
        except TooCostly:
            price = MAX_OPERATIONS
        assert graph.width is not None
        assert price <= (graph.width + graph._per_char) * (len(data) + 2)


# -- types ----------------------------------------------------------------------------------------------------


class Left(BaseModel):
    items: list[Left | Right | int]
    other: Left | None = None


class Right(BaseModel):
    items: list[Right | Left | str]
    more: dict[str, Left | Right] = {}


class One(BaseModel):
    kind: Literal["one"]
    items: list[Annotated[One | Two, Field(discriminator="kind")] | int]


class Two(BaseModel):
    kind: Literal["two"]
    items: tuple[One | Two, ...] = ()


PARTS = st.sampled_from([int, str, None, Left, Right, One, Two, list[Left], dict[str, Right], list[One | Two]])
TYPES = st.recursive(
    PARTS,
    lambda inner: st.one_of(
        st.builds(lambda each: list[each], inner),
        st.builds(lambda each: dict[str, each], inner),
        st.builds(lambda one, two: one | two if one is not None else two, inner, inner.filter(bool)),
        st.builds(lambda one, two: create_model("Made", items=(one, ...), other=(two, None)), inner, inner),
    ),
    max_leaves=5,
)


@st.composite
def filters(draw: st.DrawFn) -> Any:
    """What the models above look like, with a leaf that may fit."""
    value: Any = draw(st.sampled_from([1, "x", None, 1.5]))
    if draw(st.booleans()):  # the same at every level: every union on the way down is tried in vain
        kind = draw(st.sampled_from([{}, {"kind": "two"}]))
        for _ in range(draw(st.sampled_from([3, 12, 17]))):
            value = {**kind, "items": [value]}
        return value
    for _ in range(draw(st.integers(0, 25))):
        kind = draw(st.sampled_from([{}, {"kind": "one"}, {"kind": "two"}]))
        value = draw(st.sampled_from([{**kind, "items": [value]}, {"items": [], "other": value}, [value]]))
    return value


@THOROUGH
@given(TYPES, st.lists(filters(), min_size=1, max_size=3))
def test_what_a_type_is_given_it_validates_in_time(annotation: Any, some: list[Any]) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    begun = time.monotonic()
    try:
        bounds = TypeBounds(adapter.core_schema)
    except TooCostly:
        assert in_time(begun)
        return
    for value in some:
        data = json.dumps(value).encode()
        begun = time.monotonic()
        try:
            bounds.check(value, data)
            adapter.validate_json(data)
        except (TooCostly, ValidationError):
            pass
        assert in_time(begun)
