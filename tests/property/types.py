"""Types as users write them, each with JSON that is nearly what it takes: for laws about every type."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import ipaddress
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Required, Union

from hypothesis import reject
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    AnyUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    InstanceOf,
    Json,
    PlainValidator,
    PydanticUserError,
    RootModel,
    SkipValidation,
    StringConstraints,
    Tag,
    WithJsonSchema,
    WrapValidator,
    computed_field,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import SchemaError, core_schema
from typing_extensions import TypedDict


class Made(NamedTuple):
    """A type, and a strategy of JSON values near to what it accepts."""

    annotation: Any
    near: st.SearchStrategy[Any]


class Plain(enum.Enum):
    """Values of several kinds."""

    A = "a"
    B = 1
    C = True
    D = 2.5


class Word(enum.StrEnum):
    """Texts."""

    A = "a"
    ONE = "1"


class Number(enum.IntEnum):
    """Whole numbers."""

    ONE = 1
    TWO = 2


class Lenient(enum.Enum):
    """Anything is a member."""

    A = "a"

    @classmethod
    def _missing_(cls, value: object) -> Lenient:
        return cls.A


class Own:
    """A class that says itself how it is validated."""

    def __init__(self, value: Any) -> None:
        self.value = value

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(
            str, core_schema.no_info_after_validator_function(cls, core_schema.str_schema(max_length=4))
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "const": "never"}


class Pair(NamedTuple):
    """A named tuple."""

    x: int
    y: str = "y"


class Tree(BaseModel):
    """It refers to itself."""

    model_config = ConfigDict(extra="forbid")

    n: int = 0
    below: list[Tree] = []
    also: Tree | None = None


KEYS = ("a", "b", "c", "d", "e")
numbers = (
    st.sampled_from([0, 1, -1, 2, 3, 1.0, 0.0, -0.0, 2.5, 1e300, -1e19, 2**53 + 1, 2**63 - 1, 1_700_000_000])
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)
texts = st.sampled_from(
    [
        *("", " ", "a", "A", "ab", "abcdef", " abcdef ", "1", " 1 ", "1.0", "1_0", "+1", "-3", "٣", "1e3"),
        *("true", "no", "null", "inf", "nan", "2020-01-01", "2020-01-01T00:00:00Z", "12:30", "P1D", "1/2", "İ"),
        *("127.0.0.1", "http://a.b/", "[1]", '{"a": 1}', '"a"', "1+2j", "00000000-0000-0000-0000-000000000001"),
        *("x" * 50, "9" * 30, "ß", "a\n", "٣٣"),
    ]
) | st.text(max_size=8)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | texts, inner, max_size=4),
    max_leaves=8,
)


def _keep(value: Any) -> Any:
    return value


def _wrap(value: Any, handler: Callable[[Any], Any]) -> Any:
    try:
        return handler(value)
    except ValueError:
        return None


def _tag_of(value: Any) -> str:
    return "t" if isinstance(value, str) else "n"


_bound = st.sampled_from([None, 0, 1, 2, 2.5, -1, 2**53, 2**53 + 1, 2**60])


@st.composite
def _numeric(draw: st.DrawFn) -> Made:
    kind = draw(st.sampled_from([int, float, decimal.Decimal]))
    bounds = st.sampled_from(["ge", "gt", "le", "lt"])
    bound = _bound.filter(lambda bound: kind is not int or bound != 2.5)
    limits: Any = {name: draw(bound) for name in draw(st.sets(bounds, max_size=2))}
    multiple = draw(st.sampled_from([None, None, 2]))
    strict = draw(st.sampled_from([None, None, True, False]))
    return Made(Annotated[kind, Field(multiple_of=multiple, strict=strict, **limits)], numbers | texts)


@st.composite
def _texts(draw: st.DrawFn) -> Made:
    options = ("strip_whitespace", "to_upper", "to_lower")
    flags: Any = {name: draw(st.sampled_from([None, None, True])) for name in options}
    pattern = draw(st.sampled_from([None, None, r"^\d+$", re.compile("^A"), re.compile(r"a$"), r"^\w+$"]))
    least, most = draw(st.sampled_from([None, 1, 2])), draw(st.sampled_from([None, 2, 3]))
    strict = draw(st.sampled_from([None, None, True]))
    limits = StringConstraints(min_length=least, max_length=most, pattern=pattern, strict=strict, **flags)
    return Made(Annotated[str, limits], texts)


def _fixed() -> list[Made]:
    moments = numbers | texts
    return [
        *(Made(kind, moments | st.booleans()) for kind in (int, float, bool, str, decimal.Decimal)),
        *(Made(kind, moments) for kind in (bytes, fractions.Fraction, complex, uuid.UUID, AnyUrl)),
        Made(datetime.date, moments),
        Made(datetime.datetime, moments),
        Made(datetime.time, moments),
        Made(datetime.timedelta, moments),
        Made(ipaddress.IPv4Address, moments),
        Made(Any, values),
        Made(None, st.none()),
        *(Made(kind, scalars) for kind in (Plain, Word, Number, Lenient)),
        Made(Literal["a", "b"], texts),
        Made(Literal[1, "a", True, None], scalars),
        Made(Literal[2, 3], scalars),
        Made(Literal[Plain.B, Word.A], scalars),
        Made(Pair, values),
        Made(Own, values),
        Made(Tree, st.recursive(
            st.fixed_dictionaries({}, optional={"n": numbers | texts}),
            lambda inner: st.fixed_dictionaries({}, optional={"below": st.lists(inner, max_size=2), "also": inner}),
            max_leaves=4,
        )),
        Made(re.Pattern, texts),
        Made(collections.Counter[str], values),
        Made(collections.OrderedDict[str, int], values),
        Made(Annotated[Any, InstanceOf[Own]], values),
    ]  # fmt: skip


def _containers(inner: st.SearchStrategy[Made]) -> st.SearchStrategy[Made]:
    length = st.sampled_from([None, None, 1, 2])

    @st.composite
    def arrays(draw: st.DrawFn) -> Made:
        of = draw(inner)
        kind = draw(
            st.sampled_from([list, set, frozenset, tuple, collections.deque, Sequence, collections.abc.Iterable])
        )
        annotation = tuple[of.annotation, ...] if kind is tuple else kind[of.annotation]
        if kind is not collections.abc.Iterable:
            annotation = Annotated[annotation, Field(min_length=draw(length), max_length=draw(length))]
        item = of.near.flatmap(lambda value: st.lists(of.near | st.just(value), max_size=3))
        return Made(annotation, item)

    @st.composite
    def tuples(draw: st.DrawFn) -> Made:
        parts = draw(st.lists(inner, min_size=1, max_size=3))
        near = st.tuples(*(part.near for part in parts)).map(list)
        return Made(tuple[tuple(part.annotation for part in parts)], near | st.lists(values, max_size=4))

    @st.composite
    def mappings(draw: st.DrawFn) -> Made:
        of, key = draw(inner), draw(st.sampled_from([str, int, Word, datetime.date, bool, float]))
        kind = draw(st.sampled_from([dict, Mapping, collections.defaultdict]))
        limits = Field(min_length=draw(length), max_length=draw(length))
        return Made(Annotated[kind[key, of.annotation], limits], st.dictionaries(texts, of.near, max_size=3))

    @st.composite
    def unions(draw: st.DrawFn) -> Made:
        parts = draw(st.lists(inner, min_size=2, max_size=3))
        annotation = Union[tuple(part.annotation for part in parts)]  # noqa: UP007 - of any number
        return Made(annotation, st.one_of(part.near for part in parts))

    @st.composite
    def wrapped(draw: st.DrawFn) -> Made:
        of = draw(inner)
        how = draw(
            st.sampled_from(
                [
                    *(BeforeValidator(_keep), AfterValidator(_keep), WrapValidator(_wrap), PlainValidator(_keep)),
                    *(Field(strict=True), Field(json_schema_extra={"type": "null"}), SkipValidation()),
                    WithJsonSchema({"type": "null"}),
                ]
            )
        )
        return Made(Annotated[of.annotation, how], of.near)

    def json(of: Made) -> Made:
        import orjson

        encoded = of.near.map(lambda value: orjson.dumps(value).decode())
        return Made(Json[of.annotation], encoded | texts)

    def tagged(of: Made) -> Made:
        first = create_model("First", kind=(Literal["f"], ...), of=(of.annotation, ...))
        second = create_model("Second", kind=(Literal["s", 2], ...))
        named = Annotated[first | second, Field(discriminator="kind")]
        near = st.fixed_dictionaries({"kind": st.sampled_from(["f", "s", 2, "x"])}, optional={"of": of.near})
        return Made(named, near)

    def called(of: Made) -> Made:
        members = Union[Annotated[str, Tag("t")], Annotated[of.annotation, Tag("n")]]  # noqa: UP007 - forms
        return Made(Annotated[members, Discriminator(_tag_of)], of.near | texts)

    return st.one_of(
        *(arrays(), tuples(), mappings(), unions(), wrapped(), _models(inner), _dataclasses(inner)),
        *(_typed_dicts(inner), inner.map(json), inner.map(tagged), inner.map(called)),
        inner.map(lambda of: Made(Union[of.annotation, None], of.near | st.none())),  # noqa: UP007
        inner.map(lambda of: Made(RootModel[of.annotation], of.near)),
    )


_serial = count()
_alias: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(None, None, None, "a", "b", "x", AliasChoices("a", "x"), AliasChoices("x", AliasPath("y", 0))),
        *(AliasPath("x", "y"), AliasPath("x", 0), AliasChoices(AliasPath("a", "b"), "c")),
    ]
)
_default: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {}, {}, {"default": None}, {"default_factory": list}]
)
_extra = st.sampled_from([None, "allow", "forbid", "forbid", "ignore"])


@st.composite
def _near_fields(draw: st.DrawFn, fields: dict[str, Made]) -> Any:
    """Objects with the fields' names and aliases, one missing or more than asked for at times."""
    found = {}
    for name, made in fields.items():
        if draw(st.integers(0, 9)) < 8:
            found[name] = draw(made.near)
    for name in draw(st.lists(st.sampled_from([*KEYS, "x", "y"]), max_size=2)):
        value = draw(st.one_of([made.near for made in fields.values()] or [values]))
        found[name] = draw(st.sampled_from([value, [value], {"y": value, "b": value}]))
    return found


@st.composite
def _models(draw: st.DrawFn, inner: st.SearchStrategy[Made]) -> Made:
    fields, near = {}, {}
    for name in draw(st.lists(st.sampled_from(KEYS), max_size=3, unique=True)):
        made, alias = draw(inner), draw(_alias)
        how = draw(st.sampled_from(["validation_alias", "alias"])) if isinstance(alias, str) else "validation_alias"
        options: Any = {} if alias is None else {how: alias}
        fields[name] = (made.annotation, Field(**options, **draw(_default)))
        near[name if alias is None or not isinstance(alias, str) else draw(st.sampled_from([alias, name]))] = made
    by_name = draw(st.booleans())
    config = ConfigDict(
        extra=draw(_extra),
        validate_by_name=by_name,
        validate_by_alias=draw(st.booleans()) if by_name else True,
        coerce_numbers_to_str=draw(st.sampled_from([False, False, True])),
        str_strip_whitespace=draw(st.booleans()),
        str_to_lower=draw(st.sampled_from([False, False, True])),
        strict=draw(st.sampled_from([None, None, True])),
        defer_build=draw(st.sampled_from([False, False, True])),
        use_enum_values=draw(st.booleans()),
    )
    base = create_model(f"Base{next(_serial)}", __config__=config)
    own = draw(st.sampled_from(["", "", "computed", "before", "field", "init"]))
    model: Any = create_model(f"Made{next(_serial)}", __base__=_with(base, own), **fields)
    return Made(model, _near_fields(near))


def _with(base: Any, own: str) -> Any:
    if own == "computed":

        class Computed(base):
            @computed_field  # type: ignore[prop-decorator]
            @property
            def z(self) -> int:
                return 1

        return Computed
    if own == "before":

        class Before(base):
            @model_validator(mode="before")
            @classmethod
            def _take(cls, value: Any) -> Any:
                return {} if isinstance(value, str) else value

        return Before
    if own == "field":

        class Checked(base):
            @field_validator("*", mode="before")
            @classmethod
            def _empty(cls, value: Any) -> Any:
                return None if value == "" else value

        return Checked
    if own == "init":

        class Initialised(base):
            def __init__(self, **given: Any) -> None:
                given.setdefault("a", 1)
                super().__init__(**given)

        return Initialised
    return base


@st.composite
def _dataclasses(draw: st.DrawFn, inner: st.SearchStrategy[Made]) -> Made:
    fields: dict[str, Made] = {name: draw(inner) for name in draw(st.sets(st.sampled_from(KEYS), max_size=3))}
    specs: list[Any] = []
    for name, made in fields.items():
        kind = draw(st.sampled_from(["required", "required", "default", "no init"]))
        options: dict[str, Any] = {"kw_only": True}
        if kind != "required":
            options["default"] = None
        if kind == "no init":
            options["init"] = False
        specs.append((name, made.annotation, dataclasses.field(**options)))
    made_class: Any = dataclasses.make_dataclass(f"Data{next(_serial)}", specs)
    if draw(st.booleans()):
        made_class = pydantic_dataclass(config=ConfigDict(extra=draw(_extra)))(made_class)
    return Made(made_class, _near_fields(fields))


@st.composite
def _typed_dicts(draw: st.DrawFn, inner: st.SearchStrategy[Made]) -> Made:
    fields: dict[str, Made] = {name: draw(inner) for name in draw(st.sets(st.sampled_from(KEYS), max_size=3))}
    how = st.sampled_from([NotRequired, Required, None])
    annotations: dict[str, Any] = {}
    for name, made in fields.items():
        mark = draw(how)
        annotations[name] = made.annotation if mark is None else mark[made.annotation]
    made_dict: Any = TypedDict(f"Dict{next(_serial)}", annotations, total=draw(st.booleans()))  # type: ignore[operator]
    made_dict.__pydantic_config__ = ConfigDict(extra=draw(_extra))
    return Made(made_dict, _near_fields(fields))


leaves: st.SearchStrategy[Made] = st.one_of(st.sampled_from(_fixed()), _numeric(), _texts())
_types: st.SearchStrategy[Made] = st.recursive(leaves, _containers, max_leaves=5)


@st.composite
def types(draw: st.DrawFn) -> Made:
    """Any of them that pydantic takes."""
    try:
        return draw(_types)
    except (PydanticUserError, SchemaError, TypeError, ValueError, NameError):
        reject()
