"""The check of an input by a schema never refuses what its type accepts."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from flowpilot.authoring.accepted import accepted_schema
from flowpilot_schemas.codec import BadRecord, decode, encode
from tests.property.types import Made, types, values


def takes(schema: Any, value: Any) -> bool:
    """Whether `value` fits the schema."""
    return bool(jsonschema_rs.validator_for(schema, offline=True).is_valid(value))


def is_accepted(adapter: TypeAdapter[Any], data: bytes) -> bool:
    """As a worker validates it."""
    try:
        adapter.validate_json(data)
    except ValidationError:
        return False
    except Exception:  # noqa: BLE001 - a validator of the user's raised what it likes: the handler is not called either
        return False
    return True


@settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(made=types(), data=st.data())
def test_what_the_type_accepts_the_schema_accepts(made: Made, data: st.DataObject) -> None:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(made.annotation)
        schema = accepted_schema(adapter)
    except (PydanticUserError, TypeError, ValueError, SchemaError):
        event("no type")
        return
    note(f"{schema}")
    for _ in range(4):
        value = data.draw(made.near | values)
        try:
            encoded = encode(value)
            value = decode(encoded)
        except BadRecord:
            continue
        accepted = is_accepted(adapter, encoded)
        event(f"type accepts: {accepted}, schema accepts: {takes(schema, value)}")
        assert not accepted or takes(schema, value), f"{made.annotation} takes {value!r}, {schema} does not"
