"""Values of any type of ours, built from its declared fields: a new one is built without being named here."""

from __future__ import annotations

import importlib
import pkgutil
import types
from collections.abc import Callable, Iterator
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types as at
from hypothesis import strategies as st
from pydantic import BaseModel, JsonValue, StringConstraints

import flowpilot_schemas
from flowpilot_schemas.definition import StepDefinition, TriggerDefinition, WorkflowDefinition

# What JSON of ours can hold: 64-bit integers, finite doubles, text without lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | TEXT
_FLAT = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(TEXT, SCALARS, max_size=2)
JSON = SCALARS | st.lists(_FLAT, max_size=3) | st.dictionaries(TEXT, _FLAT, max_size=3)
_LETTERS = st.sampled_from("AZaz")
NAMES = st.tuples(_LETTERS, st.text("AZaz09._-", max_size=4), _LETTERS).map("".join)


def models() -> list[type[BaseModel]]:
    """Every model that `flowpilot_schemas` declares, its bases too."""
    found: dict[str, type[BaseModel]] = {}
    for info in pkgutil.iter_modules(flowpilot_schemas.__path__):
        module = importlib.import_module(f"flowpilot_schemas.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, BaseModel) and value.__module__ == module.__name__:
                found[f"{info.name}.{value.__name__}"] = value
    return [found[name] for name in sorted(found)]


def named_tuples(module: types.ModuleType) -> list[type[Any]]:
    """Every NamedTuple that `module` declares."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type) and hasattr(value, "_fields") and value.__module__ == module.__name__
    ]


@cache
def instances(model: type[BaseModel]) -> st.SearchStrategy[Any]:
    """Any instance of `model` that it takes itself. Raises TypeError for a field that cannot be built."""
    special = _SPECIAL.get(model)
    if special is not None:
        return special()
    return st.builds(model.model_validate, _fields(model))


def tuples(cls: type[Any], **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Any instance of a NamedTuple, by its annotations, but for the fields that are `given`."""
    hints = get_type_hints(cls, include_extras=True)
    return st.builds(cls, **{name: given[name] if name in given else of(hints[name]) for name in cls._fields})


def of(kind: Any, *metadata: Any) -> st.SearchStrategy[Any]:
    """Any value of an annotation, within its constraints."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or kind is JsonValue:
        return JSON
    if origin is Annotated:
        return of(arguments[0], *arguments[1:], *metadata)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of([of(argument, *metadata) for argument in arguments])
    if origin is dict:
        return st.dictionaries(of(arguments[0]), of(arguments[1]), max_size=3)
    if origin is tuple and arguments[-1] is not ...:
        return st.tuples(*[of(argument) for argument in arguments])
    if origin in (list, tuple):
        return st.lists(of(arguments[0]), max_size=3).map(origin)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return instances(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(kind)
    if isinstance(kind, type) and hasattr(kind, "_fields"):
        return tuples(kind)
    return _plain(kind, dict(_bounds(metadata)))


def _plain(kind: Any, bounds: dict[str, Any]) -> st.SearchStrategy[Any]:
    if kind is type(None):
        return st.none()
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(bounds.get("ge", -(2**63)), bounds.get("le", 2**63 - 1))
    if kind is float:
        return st.floats(bounds.get("ge"), bounds.get("le"), allow_nan=False, allow_infinity=False)
    if kind is bytes:
        return st.binary(min_size=32, max_size=32)  # all of ours are hashes
    if kind is str:
        alphabet = st.characters(exclude_categories=["Cs"])
        return st.text(alphabet, min_size=bounds.get("min", 0), max_size=min(bounds.get("max", 20), 20))
    raise TypeError(f"no values of {kind!r} can be built: say here how")


def _bounds(metadata: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    for item in metadata:
        if isinstance(item, at.Ge):
            yield "ge", item.ge
        elif isinstance(item, at.Le):
            yield "le", item.le
        elif isinstance(item, at.MinLen):
            yield "min", item.min_length
        elif isinstance(item, at.MaxLen):
            yield "max", item.max_length
        elif isinstance(item, StringConstraints):
            yield "min", item.min_length or 0
            yield "max", item.max_length or 20
        elif hasattr(item, "metadata"):  # a pydantic Field
            yield from _bounds(tuple(item.metadata))


def _fields(model: type[BaseModel], **given: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    fields = {
        name: given[name] if name in given else of(field.annotation, *field.metadata)
        for name, field in model.model_fields.items()
    }
    # A field with a default may be missing.
    required = {name: fields[name] for name, field in model.model_fields.items() if field.is_required()}
    return st.fixed_dictionaries(required, optional={n: s for n, s in fields.items() if n not in required})


# Models whose own validators refuse most of what their fields would allow.


def _steps() -> st.SearchStrategy[Any]:
    return st.builds(
        StepDefinition.model_validate,
        _fields(StepDefinition, name=NAMES, queue=NAMES, depends_on=st.just(()), takes=st.just(())),
    )


def _triggers() -> st.SearchStrategy[Any]:
    starts = st.sampled_from(("registration", "earliest", "2026-01-31T00:00:00.000Z"))
    return st.builds(TriggerDefinition.model_validate, _fields(TriggerDefinition, start=starts))


@st.composite
def _workflows(draw: st.DrawFn) -> Any:
    fields = draw(_fields(WorkflowDefinition, name=NAMES, steps=st.just(())))
    steps: list[dict[str, Any]] = []
    for step in draw(st.lists(instances(StepDefinition), min_size=1, max_size=3, unique_by=lambda step: step.name)):
        above = draw(st.sets(st.sampled_from([s["name"] for s in steps]))) if steps else set()
        takes = draw(st.sets(st.sampled_from(sorted(above)))) if above else set()
        last = step.output and not any(s["output"] for s in steps)
        steps.append(step.model_dump() | {"depends_on": sorted(above), "takes": sorted(takes), "output": last})
    return WorkflowDefinition.model_validate(fields | {"steps": steps})


_SPECIAL: dict[type[BaseModel], Callable[[], st.SearchStrategy[Any]]] = {
    StepDefinition: _steps,
    TriggerDefinition: _triggers,
    WorkflowDefinition: _workflows,
}
