"""A handler's signature: where each parameter's value comes from, and how it is validated."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import TypeAdapter

from flowpilot.authoring.bounds import bounds_of
from flowpilot.authoring.context import StepContext
from flowpilot.core.bounds.checks import TooCostly

_EMPTY = inspect.Parameter.empty
_MAPPINGS = (collections.abc.Mapping, collections.abc.MutableMapping, dict)


class Misfit(Exception):
    """What is wrong with a signature: the part of a sentence after the step's name."""


@dataclass(frozen=True, slots=True)
class OutputOf:
    """The marker that `output_of` puts into an annotation."""

    step: Any


def output_of(step: Any) -> OutputOf:
    """In `Annotated[T, output_of(step)]`: this parameter takes the output of `step` (function, Step or name)."""
    return OutputOf(step)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. `of` is the step whose output it takes, where the annotation says so."""

    name: str
    annotation: Any
    required: bool
    of: OutputOf | None = None

    @property
    def is_context(self) -> bool:
        """Whether it takes the StepContext."""
        return _is_context(self.annotation)

    @property
    def adapter(self) -> TypeAdapter[Any]:
        """Validates its value. Raises `Misfit`."""
        return adapter_of(self.annotation, f"the parameter {self.name!r}")


@dataclass(frozen=True, slots=True)
class Signature:
    """What a handler takes and gives."""

    parameters: Mapping[str, Parameter]
    returns: Any
    is_async: bool
    extras: bool = False
    """Whether it has `**kwargs`, which takes any of `args`."""


def read_signature(handler: Callable[..., Any], names: Mapping[str, Any]) -> Signature:
    """The signature of `handler`; `names` are the local names its annotations may use. Raises `Misfit`."""
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        raise Misfit(f"{handler!r} has no signature; wrap it in a function") from None
    if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
        raise Misfit("the handler is a generator; return one value instead of yielding several")
    hints = _hints(handler, names)
    parameters, extras = {}, False
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            extras = True
        elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY and parameter.default is _EMPTY:
            raise Misfit(
                f"the parameter {name!r} is positional-only; parameters are given by name, so drop the '/'"
            )
        elif parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            annotation, of = _split(hints.get(name, Any))
            parameters[name] = Parameter(name, annotation, parameter.default is _EMPTY, of)
    is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 - asks for the method, not whether it is callable
    )
    return Signature(types.MappingProxyType(parameters), hints.get("return", Any), is_async, extras)


def _hints(handler: Callable[..., Any], names: Mapping[str, Any]) -> dict[str, Any]:
    target: Any = inspect.unwrap(handler)
    while isinstance(target, functools.partial):
        target = inspect.unwrap(target.func)
    if not isinstance(target, types.FunctionType | types.MethodType | type):
        target = getattr(type(target), "__call__", target)  # noqa: B004 - the method's annotations are wanted
    module_names = getattr(target, "__globals__", {})
    try:
        return typing.get_type_hints(target, module_names, {**names, **_closure(target)}, include_extras=True)
    except NameError as error:
        name = error.name or str(error)
        raise Misfit(
            f"the annotation {name!r} is not known here; define or import it above the step, "
            "and not under TYPE_CHECKING"
        ) from None
    except Exception as error:  # noqa: BLE001 - an annotation is any expression
        raise Misfit(f"its annotations cannot be read ({error}); correct them") from None


def _closure(target: Any) -> dict[str, Any]:
    code, cells = getattr(target, "__code__", None), getattr(target, "__closure__", None)
    if code is None or not cells:
        return {}
    found = {}
    for name, cell in zip(code.co_freevars, cells, strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def _split(annotation: Any) -> tuple[Any, OutputOf | None]:
    """The annotation without `output_of`, and what that names."""
    if get_origin(annotation) is not Annotated:
        return annotation, None
    plain, *extras = get_args(annotation)
    marks = [extra for extra in extras if isinstance(extra, OutputOf)]
    rest = [extra for extra in extras if not isinstance(extra, OutputOf)]
    return (Annotated[(plain, *rest)] if rest else plain), (marks[0] if marks else None)


def _is_context(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    members = get_args(annotation) if get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)
    return any(isinstance(member, type) and issubclass(member, StepContext) for member in members)


def element_of(annotation: Any) -> Any:
    """T of `Mapping[str, T]`, the annotation of `parents`. Raises `Misfit`."""
    if annotation is Any:
        return Any
    if (get_origin(annotation) or annotation) not in _MAPPINGS:
        raise Misfit("the parameter 'parents' takes all parents' outputs; annotate it Mapping[str, T]")
    arguments = get_args(annotation)
    if arguments and arguments[0] not in (str, Any):
        raise Misfit("the parameter 'parents' is keyed by step names; annotate it Mapping[str, T]")
    return arguments[1] if arguments else Any


def adapter_of(annotation: Any, what: str) -> TypeAdapter[Any]:
    """Validates and serialises `annotation`. Raises `Misfit`, also if that cannot be done in bounded time."""
    try:
        adapter = _adapter(annotation)
    except Exception:  # noqa: BLE001 - not hashable, or no schema: the second build tells, and names `what`
        adapter = _build(annotation, what)
    try:
        bounds_of(adapter)
    except TooCostly as costly:
        raise Misfit(f"{what} has a type that cannot be checked in bounded time: {costly}") from None
    return adapter


@functools.lru_cache(maxsize=4096)
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _build(annotation: Any, what: str) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except Exception as error:  # noqa: BLE001 - pydantic raises several
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Misfit(
            f"{what} has a type that does not travel as JSON ({reason}); "
            "use a pydantic model, a dataclass or plain types"
        ) from None
