"""Checking a value takes bounded time and memory, whatever the schema and the value."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Json, JsonValue, TypeAdapter, create_model
from typing_extensions import TypeAliasType

from flowpilot import DefinitionError, Workflow
from flowpilot.authoring.bounds import bounds_of
from flowpilot.authoring.errors import InputInvalid
from flowpilot.authoring.results import NotSerialisable, to_json
from flowpilot.core.bounds.checks import MAX_OPERATIONS, TooCostly
from flowpilot.core.bounds.schema import schema_graph
from flowpilot.core.bounds.validator import Validator
from flowpilot.core.inputs import check_input
from flowpilot_schemas.codec import BadRecord, encode
from flowpilot_schemas.definition import StepDefinition, WorkflowDefinition
from tests.unit.filters import And, Or, Tagged, nested

GENEROUS = 5.0  # seconds: the hostile ones below take hours, or end the process


def definition(schema: Any) -> WorkflowDefinition:
    return WorkflowDefinition(
        name="filters", version="1", input_schema=schema, steps=(StepDefinition(name="only", queue="filters"),)
    )


def quickly(check: Callable[[], Any]) -> Any:
    begun = time.monotonic()
    try:
        return check()
    finally:
        assert time.monotonic() - begun < GENEROUS


def verdict(schema: Any, value: Any) -> str:
    """The reason why `value` is refused, or "fits"."""
    try:
        quickly(lambda: check_input(definition(schema), value, 10_000_000))
    except BadRecord as bad:
        return bad.reason
    return "fits"


def doubled(levels: int, through: str = "allOf") -> dict[str, Any]:
    """A schema whose definitions each refer to the next one twice."""

    def twice(to: int) -> dict[str, Any]:
        both = [{"$ref": f"#/$defs/d{to}"}, {"$ref": f"#/$defs/d{to}"}]
        return {"items": {"allOf": both}} if through == "items" else {through: both}

    defs = {f"d{i}": twice(i + 1) for i in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{levels}": {"type": "string"}}}


def chained(links: int) -> dict[str, Any]:
    defs: dict[str, Any] = {
        f"d{i}": {"anyOf": [{"type": "string"}, {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}]}]} for i in range(links)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{links}": {"items": {"$ref": "#/$defs/d0"}}}}


def test_unions_within_themselves_are_refused_by_their_price() -> None:
    schema = And.model_json_schema()
    assert [verdict(schema, nested(n)) for n in (1, 6, 24, 80)] == ["input_invalid"] * 2 + [
        "validation_too_costly"
    ] * 2
    assert [verdict(schema, nested(n, "a")) for n in (1, 6, 24)] == ["fits", "fits", "validation_too_costly"]


def test_a_discriminator_makes_deep_unions_cheap() -> None:
    schema = TypeAdapter(Tagged).json_schema()
    for levels in (1, 24, 80):
        assert verdict(schema, nested(levels, "a", kind="or")) == "fits"
        assert verdict(schema, nested(levels, 1, kind="and")) == "input_invalid"
        assert verdict(schema, nested(levels, "a", kind="xor")) == "input_invalid"
    assert Validator(schema)._graph.is_linear
    assert bounds_of(TypeAdapter(Tagged)).is_quick


@pytest.mark.parametrize(
    "schema",
    [
        doubled(60),
        doubled(60, "anyOf"),
        doubled(60, "items"),
        chained(1_000),
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"type": "string"}, {"not": {"$ref": "#/$defs/a"}}]}}},
        {"pattern": "(?=(a+)+$)b"},
        {"pattern": r"(a)\1"},
        {"pattern": "((a{100}){100}){100}"},
        {"patternProperties": {"(?!x)": {}}},
        {"pattern": "[ab]*a[ab]{1600}x"},
        {"enum": [{"a": i} for i in range(20_000)]},
        {"properties": {f"p{i}": {"type": "string"} for i in range(20_000)}},
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_a_schema_beyond_all_bounds_is_refused_quickly(schema: Any) -> None:
    assert verdict(schema, "a" * 100) == "validation_too_costly"
    assert verdict(schema, [[["a"]]]) == "validation_too_costly"


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:1/schema"},
        {"$ref": "#/$defs/missing"},
        {"$dynamicRef": "#x"},
        {"properties": {"a": {"$id": "http://x/y", "$ref": "#"}}},
        {"$schema": "http://json-schema.org/draft-04/schema#"},
        {"type": "no such type"},
    ],
    ids=str,
)
def test_a_schema_that_cannot_be_read_is_refused(schema: Any) -> None:
    assert verdict(schema, {}) == "input_invalid"


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        ({"items": {"type": "string"}}, list(range(200_000)), "input_invalid"),
        ({"items": {"anyOf": [{"type": "string"}, {"type": "null"}]}}, list(range(200_000)), "input_invalid"),
        ({"additionalProperties": False}, {f"k{i}": 1 for i in range(100_000)}, "input_invalid"),
        ({"uniqueItems": True}, list(range(50_000)), "fits"),
        ({"pattern": "(a+)+$"}, "a" * 1_000_000 + "!", "input_invalid"),
        ({"pattern": "[ab]*a[ab]{500}x"}, "ab" * 400_000, "validation_too_costly"),
        ({"items": {"enum": [{"a": i} for i in range(1_000)]}}, [{"a": -1}] * 100_000, "validation_too_costly"),
        ({"propertyNames": {"maxLength": 3}}, {"k" * 500_000: 1}, "input_invalid"),
        (JsonValue, nested(80, ["x"] * 1_000), "fits"),
        (list[dict[str, int | str | None]], [{"a": i, "b": None} for i in range(50_000)], "fits"),
    ],
    ids=[*("integers", "union", "keys", "unique", "plus", "states", "objects", "names", "json", "records")],
)
def test_a_large_value_gets_its_verdict_quickly(schema: Any, value: Any, expected: str) -> None:
    schema = schema if isinstance(schema, dict) else TypeAdapter(schema).json_schema()
    assert verdict(schema, value) == expected


def test_a_misfit_names_the_place_briefly_and_not_the_value() -> None:
    schema = {"type": "object", "properties": {"a": And.model_json_schema()["$defs"]["And"]}, "$defs": {}}
    schema["$defs"] = And.model_json_schema()["$defs"]
    with pytest.raises(BadRecord, match=r"input\.a\.args\.0 does not fit .*: it is none of the types") as found:
        check_input(definition(schema), {"a": nested(4, 4711)}, 10_000)
    assert "4711" not in found.value.detail
    with pytest.raises(BadRecord) as found:
        check_input(definition({"enum": ["x" * 50] * 3 + [f"o{i}" for i in range(9_000)]}), "secret", 100_000)
    assert len(found.value.detail) < 500
    assert "secret" not in found.value.detail


def test_ordinary_schemas_are_never_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    class Node(BaseModel):
        value: int
        left: Node | None = None
        right: Node | None = None
        children: list[Node] = []

    monkeypatch.setattr("flowpilot.core.bounds.graph.Pricing", None)
    value: dict[str, Any] = {"value": 1}
    for _ in range(50):
        value = {"value": 1, "left": value, "children": [{"value": 2}] * 20}
    assert verdict(Node.model_json_schema(), value) == "fits"
    bounds_of(TypeAdapter(Node)).check(value, encode(value))


def test_the_price_is_the_work_of_every_branch() -> None:
    graph = schema_graph(And.model_json_schema())
    prices = [graph.price(nested(n)) for n in range(1, 10)]
    assert all(1.9 < after / before < 4 for before, after in pairwise(prices[2:]))
    assert prices[-1] < MAX_OPERATIONS


# -- types ----------------------------------------------------------------------------------------------------


class Strange(BaseModel):
    model_config = ConfigDict(regex_engine="python-re")
    code: str = Field(pattern=r"^(?=.*[A-Z]).{3,}$")


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (And, nested(24)),
        (list[And | Or], [nested(24, "a")]),
        (Json[And], encode(nested(24)).decode()),
        (Json[dict[str, And]], f'{{"a": {encode(nested(14)).decode()}, "a": {{"args": []}}}}'),
        (Annotated[str, Field(pattern=re.compile("a+b+c+$"))], "a" * 5_000),
        (Annotated[And, BeforeValidator(lambda value: value)], nested(24)),
    ],
    ids=["and", "list", "json", "json twice", "python-re", "before"],
)
def test_the_type_refuses_by_its_price_too(annotation: Any, value: Any) -> None:
    bounds = bounds_of(TypeAdapter(annotation))
    with pytest.raises(TooCostly, match="operations"):
        quickly(lambda: bounds.check(value, encode(value)))


MULTIPLES = [str(n * (2**61 - 1)) for n in range(1, 8_000)]


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (dict[int, int], dict.fromkeys(MULTIPLES, 1)),
        (dict[float | str, int], dict.fromkeys(MULTIPLES, 1)),
        (set[int], MULTIPLES),
        (list[frozenset[Decimal]], [[], MULTIPLES]),
        (set[float], [n * (2**61 - 1) for n in range(1, 4)] + [f"1e{n * 61}" for n in range(5)] + MULTIPLES),
    ],
    ids=["keys", "keys of a union", "set", "sets of decimals", "floats"],
)
def test_numbers_of_one_hash_are_refused(annotation: Any, value: Any) -> None:
    """A dict or set of them takes the square of their number to build."""
    with pytest.raises(TooCostly, match="hash"):
        quickly(lambda: bounds_of(TypeAdapter(annotation)).check(value, encode(value)))


@pytest.mark.parametrize(
    "value",
    [list(range(50_000)), ["1"] * 50_000, [n / 7 for n in range(20_000)], MULTIPLES[:900], ["a", None] * 9_000],
    ids=["ranges", "repeated", "fractions", "few", "no numbers"],
)
def test_a_large_set_of_numbers_is_taken(value: list[Any]) -> None:
    bounds_of(TypeAdapter(set[float | str | None])).check(value, encode(value))


@pytest.mark.parametrize("pattern", ["(a+)+$", r"(\w|\dx)*y", "(a|aa)+$"])
def test_an_exponential_pattern_of_pythons_is_no_definition(pattern: str) -> None:
    with pytest.raises(DefinitionError, match="exponential"):
        Workflow("w", version="1", input=Annotated[str, Field(pattern=re.compile(pattern))])


Code = TypeAliasType("Code", Annotated[str, Field(pattern="^(a+)+$")])


class Codes(BaseModel):
    model_config = ConfigDict(regex_engine="python-re")

    one: Code
    other: Code


@pytest.mark.parametrize("annotation", [Codes, list[Codes], dict[str, Codes]], ids=str)
def test_a_named_pattern_is_matched_by_its_models_engine(annotation: Any) -> None:
    with pytest.raises(DefinitionError, match="exponential"):
        Workflow("w", version="1", input=annotation)


def test_a_look_ahead_is_left_to_the_type() -> None:
    workflow = Workflow("w", version="1", input=Strange)
    assert "pattern" not in str(workflow._input.schema)
    assert verdict(workflow._input.schema, {"code": "abc"}) == "fits"
    with pytest.raises(InputInvalid):
        workflow.input_json({"code": "abc"})


def test_a_type_beyond_all_bounds_is_no_definition() -> None:
    inner: Any = str
    for level in range(30):
        pair = [create_model(f"{name}{level}", args=(list[inner], ...)) for name in ("A", "B")]
        inner = pair[0] | pair[1]
    with pytest.raises(DefinitionError, match="bounded time"):
        quickly(lambda: Workflow("w", version="1", input=inner))
    workflow = Workflow("w", version="1")
    with pytest.raises(DefinitionError, match="the parameter"):

        @workflow.step
        def make(input: inner) -> str: ...


def test_inputs_and_results_are_priced_before_pydantic_has_them() -> None:
    workflow = Workflow("w", version="1", input=And)
    with pytest.raises(InputInvalid, match="operations"):
        quickly(lambda: workflow.input_json(nested(30)))
    with pytest.raises(NotSerialisable, match="operations"):
        quickly(lambda: to_json(nested(30), TypeAdapter(And)))
    assert to_json(And(args=["a"]), TypeAdapter(And)) == b'{"args":["a"]}'
