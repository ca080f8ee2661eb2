"""What the router checks an input against, what clients send, and which types cannot work at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    InstanceOf,
    Json,
    RootModel,
    SkipValidation,
    Tag,
    TypeAdapter,
    WithJsonSchema,
    computed_field,
    model_validator,
)
from typing_extensions import TypeAliasType, TypedDict

from flowpilot import DefinitionError, InputInvalid, Workflow
from flowpilot.authoring.accepted import accepted_schema
from flowpilot.core.inputs import check_input
from flowpilot_schemas.codec import BadRecord, decode, encode
from flowpilot_schemas.limits import Limits


def refuse_at_length(value: str) -> str:
    raise ValueError("too long" * 10_000)


class Area(BaseModel):
    model_config = ConfigDict(extra="forbid")

    width: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def size(self) -> int:
        return self.width**2


class Renamed(BaseModel):
    patient: str = Field(validation_alias=AliasChoices("patient_id", AliasPath("patient", "id")))
    age: int = Field(default=0, alias="Age")


class ByName(Renamed):
    model_config = ConfigDict(validate_by_name=True, extra="forbid")


class Packed(BaseModel):
    inner: Json[list[int]]


class Coded(BaseModel):
    code: Annotated[str, Field(pattern=re.compile(r"\A(?=.*\d)[A-Z\d]+\Z"))]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    born: date
    tags: frozenset[str] = frozenset()


class Loose(BaseModel):
    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return {} if isinstance(value, str) else value


class Colour(Enum):
    RED = "red"
    BLUE = 2


class Typed(TypedDict, total=False):
    n: int


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]
Called = Annotated[
    Annotated[Cat, Tag("cat")] | Annotated[int, Tag("n")],
    Discriminator(lambda value: "cat" if isinstance(value, dict) else "n"),
]


def check(annotation: Any, data: bytes) -> str:
    """What the router says of a record: a sentence, or "fits"."""
    workflow = Workflow("w", version="1", input=annotation)

    @workflow.step
    def only() -> None: ...

    try:
        check_input(workflow.definition, decode(data), Limits().input)
    except BadRecord as bad:
        return f"{bad.reason}: {bad.detail}"
    return "fits"


Short = TypeAliasType("Short", Annotated[str, Field(max_length=3)])


class Coercing(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True, str_strip_whitespace=True)

    one: Short
    other: Short


class Shorts(BaseModel):
    one: Short
    config: Coercing


@pytest.mark.parametrize(
    ("annotation", "data"),
    [
        (Coercing, b'{"one":1,"other":" abc "}'),
        (Shorts, b'{"one":"abc","config":{"one":1,"other":" abc "}}'),
        (int, b'"3"'),
        (int, b"1.0"),
        (int, b"true"),
        (float, b'"1e3"'),
        (bool, b'"yes"'),
        (Decimal, b'"1.10"'),
        (date, b"1704067200"),
        (set[int], b"[1,1]"),
        (Annotated[set[int], Field(min_length=1)], b"[1,1]"),
        (Annotated[str, Field(max_length=2), AfterValidator(str.strip)], b'"ab"'),
        (Renamed, b'{"patient_id":"p"}'),
        (Renamed, b'{"patient":{"id":"p"},"Age":"7"}'),
        (ByName, b'{"patient":"p","age":1}'),
        (Area, b'{"width":2}'),
        (Packed, b'{"inner":"[1,2]"}'),
        (Coded, b'{"code":"A1"}'),
        (Strict, b'{"born":"2020-01-01","tags":["a","a"]}'),
        (Loose, b'"text"'),
        (Colour, b'"red"'),
        (Colour, b"2.0"),
        (Typed, b"{}"),
        (Pet, b'{"kind":"cat","lives":"9"}'),
        (Called, b"3"),
        (RootModel[list[int]], b'["1"]'),
        (Annotated[int, BeforeValidator(lambda value: 1)], b'{"any":"thing"}'),
        (Annotated[int, WithJsonSchema({"type": "null"})], b"1"),
        (Annotated[int, Field(json_schema_extra={"type": "null"})], b"1"),
        (Annotated[int, SkipValidation], b'"x"'),
    ],
    ids=lambda value: str(value)[:50],
)
def test_the_router_takes_what_the_type_takes(annotation: Any, data: bytes) -> None:
    TypeAdapter(annotation).validate_json(data)
    assert check(annotation, data) == "fits"


@pytest.mark.parametrize(
    ("annotation", "data", "told"),
    [
        (Renamed, b'{"Age":1}', "none of the types"),
        (ByName, b'{"patient_id":"p","x":1}', "'x'"),
        (Area, b"{}", '"width" is a required property'),
        (Area, b'{"width":1,"size":1}', "'size'"),
        (Area, b'{"width":"wide"}', "input.width"),
        (Area, b'{"width":1.5}', "input.width"),
        (Area, b'{"width":[]}', "input.width"),
        (list[int], b'[1,"x"]', "input.1"),
        (list[Area], b'[{"width":1},{}]', "input.1"),
        (dict[str, int], b'{"a":[]}', "input.a"),
        (Annotated[int, Field(ge=1)], b"0", "minimum"),
        (Annotated[list[int], Field(min_length=1)], b"[]", "input"),
        (Pet, b'{"kind":"cow"}', "input.kind"),
        (Pet, b'{"kind":"cat"}', "lives"),
        (Literal["a", "b"], b'"c"', "input"),
        (Strict, b'{"born":[]}', "input.born"),
        (Typed, b"[]", "input"),
        (Packed, b'{"inner":[1]}', "input.inner"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_the_router_still_refuses_other_shapes(annotation: Any, data: bytes, told: str) -> None:
    refusal = check(annotation, data)
    assert refusal.startswith("input_invalid: input")
    assert told in refusal


def test_what_describes_the_input_stays_as_pydantic_has_it() -> None:
    workflow = Workflow("w", version="1", input=Area)
    assert workflow._input.schema == TypeAdapter(Area).json_schema()
    assert workflow._input.check == {
        "type": "object",
        "properties": {"width": {"type": ["boolean", "number", "string"], "multipleOf": 1, "pattern": "[0-9]"}},
        "required": ["width"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("annotation", "value", "sent"),
    [
        (Area, Area(width=2), {"width": 2}),
        (Packed, Packed(inner="[1, 2]"), {"inner": "[1,2]"}),  # type: ignore[arg-type]
        (Renamed, {"patient_id": "p", "Age": 1}, {"patient_id": "p", "Age": 1}),
        (Strict, {"born": "2020-01-01"}, {"born": "2020-01-01"}),
        (ByName, ByName(patient="p", age=3), {"patient": "p", "Age": 3}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_client_sends_what_the_type_reads_again(annotation: Any, value: Any, sent: Any) -> None:
    found = Workflow("w", version="1", input=annotation).input_json(value)
    assert found == sent
    TypeAdapter(annotation).validate_json(encode(found))


def test_an_object_that_cannot_be_read_again_is_refused_at_once() -> None:
    with pytest.raises(InputInvalid, match="patient"):
        Workflow("w", version="1", input=Renamed).input_json(Renamed(patient_id="p"))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("annotation", "value", "told"),
    [
        (Pet, {"kind": "s3cret" * 10_000}, "'kind' is none of 'cat', 'dog'"),
        (dict[str, int], {"k" * 100_000: "s3cret"}, "valid integer"),
        (dict[str, Pet], {"k": {"kind": "s3cret"}}, "k: 'kind' is none of"),
        (Annotated[str, AfterValidator(refuse_at_length)], "short", "too long"),
    ],
    ids=["tag", "name", "tag within", "validator"],
)
def test_a_refusal_is_short_and_leaves_the_value_out(annotation: Any, value: Any, told: str) -> None:
    with pytest.raises(InputInvalid, match=told) as refused:
        Workflow("w", version="1", input=annotation).input_json(value)
    assert "s3cret" not in str(refused.value)
    assert len(str(refused.value)) < 1_500


# -- what cannot work ---------------------------------------------------------------------------------------------


class Socket:
    pass


@pytest.mark.parametrize("annotation", [Callable[[], int], InstanceOf[Socket], type[int]], ids=str)
def test_a_parameter_that_no_json_fits_is_refused(annotation: Any) -> None:
    assert accepted_schema(TypeAdapter(annotation)) is False
    workflow = Workflow("w", version="1")

    def take(input: Any) -> None: ...

    take.__annotations__["input"] = annotation
    with pytest.raises(DefinitionError, match="the parameter 'input' has a type that no JSON fits"):
        workflow.add_step(take)


def test_an_input_that_no_json_fits_is_refused() -> None:
    described = Annotated[Socket, InstanceOf(), WithJsonSchema({"type": "string"})]
    with pytest.raises(DefinitionError, match="no JSON fits"):
        Workflow("w", version="1", input=described)


class Hidden(BaseModel):
    secret: str = Field(exclude=True)


class OneWay(BaseModel):
    a: int = Field(validation_alias="b")


class Split(BaseModel):
    a: int = Field(validation_alias="b", serialization_alias="c")


class Both(BaseModel):
    a: int = Field(alias="b")


class Nested(BaseModel):
    areas: list[Area]


class Made(NamedTuple):
    n: int


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (Area, "Area writes its computed field 'size' and forbids it as an extra"),
        (Nested, "computed field 'size'"),
        (list[Area], "computed field 'size'"),
        (Packed, "Json"),
        (OneWay, "'a' which it writes as 'a' and does not read there"),
        (Split, "writes as 'c'"),
        (Hidden, "does not write"),
        (Renamed, "'patient'"),
    ],
    ids=str,
)
def test_a_result_that_its_type_does_not_read_is_refused(result: Any, told: str) -> None:
    workflow = Workflow("w", version="1")

    def make() -> Any: ...
    def take(make: Any) -> None: ...

    make.__annotations__["return"] = take.__annotations__["make"] = result
    workflow.add_step(make)
    with pytest.raises(DefinitionError, match=re.escape(told)) as refusal:
        workflow.add_step(take)
    assert refusal.value.step == "take"


@pytest.mark.parametrize("result", [Both, ByName, Strict, Made, Pet, dict[str, Any], int, Loose], ids=str)
def test_a_result_that_its_type_reads_is_taken(result: Any) -> None:
    workflow = Workflow("w", version="1")

    def make() -> Any: ...
    def take(make: Any) -> None: ...

    make.__annotations__["return"] = take.__annotations__["make"] = result
    workflow.add_step(make)
    workflow.add_step(take)
    assert workflow.definition


def test_a_result_that_nobody_reads_by_its_type_may_be_anything() -> None:
    workflow = Workflow("w", version="1")

    @workflow.step
    def make() -> Area: ...

    @workflow.step
    def take(make: dict[str, int]) -> None: ...

    assert workflow.definition


def test_args_are_read_as_the_worker_reads_them() -> None:
    workflow = Workflow("w", version="1")

    def take(one: OneWay) -> None: ...

    with pytest.raises(DefinitionError, match="'one'"):
        workflow.add_step(take, args={"one": OneWay(b=1)})  # type: ignore[call-arg]
