"""A JSON Schema compiled, whose verdicts take bounded time and memory.

The price comes first, then the verdict, which stops at the first failure; only if that is no, the place is looked
for. jsonschema-rs collects the errors of all members of a union, and theirs again, which took seconds where the
verdict took microseconds. Therefore the place is looked for in a schema whose unions stand behind a double `not`:
it fails where they fail, and says no more of it than "none of these", which is all that is told.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import jsonschema_rs

from flowpilot.core.bounds import patterns, tags
from flowpilot.core.bounds.schema import schema_graph

_UNIONS = ("anyOf", "oneOf")
_NO_MEMBER = "it is none of the types that it may be"
_LONGEST = 300  # characters of a problem: an error lists all options of an enum, and all keys that are too many
_LONGEST_PATH, _LONGEST_NAME = 20, 60


class Misfit(NamedTuple):
    """Where a value does not fit, and why."""

    path: list[str]
    problem: str


class Validator:
    """Raises `TooCostly` for a schema that nothing may be checked against, ValueError for what is no schema."""

    def __init__(self, schema: Any) -> None:
        self._schema = tags.with_chains(schema)
        self._graph = schema_graph(self._schema)
        self._fits = _compiled(self._schema)

    def misfit(self, value: Any, data: bytes) -> Misfit | None:
        """What is wrong first with `value`, whose JSON is `data`, without the value itself; None: it fits.

        Raises `TooCostly`.
        """
        if not self._graph.covers(data):
            self._graph.price(value)
        if self._fits.is_valid(value):
            return None
        try:
            self._explainer.validate(value)
        except jsonschema_rs.ValidationError as error:
            path = [str(part) for part in error.instance_path]
            if len(path) > _LONGEST_PATH:
                path = [*path[:_LONGEST_PATH], "…"]
            problem = _NO_MEMBER if error.kind.name == "not" else error.message
            return Misfit([_short(part, _LONGEST_NAME) for part in path], _short(problem, _LONGEST))
        except ValueError:
            pass
        return Misfit([], "the schema does not allow it")

    @cached_property
    def _explainer(self) -> Any:
        return _compiled(tags.rewritten(self._schema, _without_unions))


def _compiled(schema: Any) -> Any:
    """It follows no reference out of the schema, and its errors do not repeat the value, which may be large or
    nobody's business. Formats are left to the type in the worker: some take more than linear time."""
    options = patterns.options()
    try:
        return jsonschema_rs.validator_for(
            schema, offline=True, mask="the value", validate_formats=False, pattern_options=options
        )
    except (jsonschema_rs.ValidationError, ValueError) as error:
        raise ValueError(_short(str(error).partition("\n")[0], _LONGEST)) from None


def _without_unions(part: dict[str, Any]) -> dict[str, Any]:
    unions = {name: part[name] for name in _UNIONS if name in part}
    if not unions:
        return part
    plain = {name: each for name, each in part.items() if name not in unions}
    return {**plain, "allOf": [*plain.get("allOf", ()), {"not": {"not": unions}}]}


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
