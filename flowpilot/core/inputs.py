"""A workflow's input, checked before anything is produced: by the router, the client and the API alike."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from flowpilot.core.bounds.checks import TooCostly
from flowpilot.core.bounds.validator import Validator
from flowpilot_schemas.codec import BadRecord, encode
from flowpilot_schemas.definition import WorkflowDefinition

# The decoder follows about 200 levels, and a value travels inside messages that add a few of their own:
# one that just passes here would be refused at the next hop.
MAX_DEPTH = 180


def check_input(definition: WorkflowDefinition, value: Any, limit: int) -> None:
    """Raises `BadRecord` if `value`, as JSON, is larger than `limit` bytes (`too_large`), nested deeper than
    `MAX_DEPTH` (`too_deep`), does not fit what the definition checks it against (`input_invalid`) or would take too
    long to check (`validation_too_costly`; see `flowpilot.core.bounds`).

    `value` is plain JSON values, as `codec.decode` gives them.
    """
    data = encode(value)
    if len(data) > limit:
        sentence = f"the input has {len(data)} bytes; the limit FLOWPILOT_TRIGGER_LIMIT is {limit}"
        raise BadRecord("too_large", sentence)
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and is_deeper(value, MAX_DEPTH):
        raise BadRecord("too_deep", f"the input is nested deeper than {MAX_DEPTH} levels")
    if definition.input_schema is None and definition.input_check is None:
        return
    validator = _validator(_ByHash(definition))
    if isinstance(validator, TooCostly):
        sentence = f"the input schema of {_name(definition)} cannot be checked in bounded time: {validator}"
        raise BadRecord("validation_too_costly", sentence)
    if isinstance(validator, str):
        raise BadRecord("input_invalid", f"the input schema of {_name(definition)} cannot be used: {validator}")
    try:
        misfit = validator.misfit(value, data)
    except TooCostly as costly:
        raise BadRecord("validation_too_costly", f"the input of {_name(definition)}: {costly}") from None
    if misfit is not None:
        where = ".".join(("input", *misfit.path))
        raise BadRecord("input_invalid", f"{where} does not fit {_name(definition)}: {misfit.problem}")


def is_deeper(value: Any, levels: int) -> bool:
    """Whether objects and arrays are nested in `value` more than `levels` deep."""
    layer = [value]
    for _ in range(levels + 1):
        layer = [item for item in layer if isinstance(item, dict | list)]
        if not layer:
            return False
        layer = [item for held in layer for item in (held.values() if isinstance(held, dict) else held)]
    return True


class _ByHash:
    """A definition as a cache key: equal where the hashes are."""

    __slots__ = ("definition",)

    def __init__(self, definition: WorkflowDefinition) -> None:
        self.definition = definition

    def __hash__(self) -> int:
        return hash(self.definition.hash)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByHash) and other.definition.hash == self.definition.hash


@lru_cache(maxsize=1_000)
def _validator(key: _ByHash) -> Validator | TooCostly | str:
    """The compiled validator, or why there is none."""
    definition = key.definition
    schema = definition.input_schema or {} if definition.input_check is None else definition.input_check
    try:
        return Validator(schema)
    except TooCostly as costly:
        return costly
    except ValueError as error:
        return str(error)


def _name(definition: WorkflowDefinition) -> str:
    return f"workflow {definition.name!r} version {definition.version!r}"
