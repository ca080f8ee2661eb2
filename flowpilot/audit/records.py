"""Records of the four topics as what they say, or as a divergence that keeps their bytes."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from flowpilot.ports.audit import DefinitionChange, Divergence, HistoryEvent, Letter, Pointed, Registered, Removed
from flowpilot.ports.log import Fetched, as_time
from flowpilot_schemas.codec import BadRecord, content_hash, decode_object, parse
from flowpilot_schemas.definition import DefinitionPointer, WorkflowDefinition, WorkflowDeletion
from flowpilot_schemas.history import HEADER_HASH, HEADER_PREV, chain
from flowpilot_schemas.ids import is_execution_id
from flowpilot_schemas.messages import DeadLetter
from flowpilot_schemas.triggers import TriggerFiltered

_INT32, _INT64 = 2**31, 2**63


def diverges(record: Fetched, reason: str, detail: str) -> Divergence:
    """A divergence that keeps the record itself."""
    return Divergence(
        reason, detail, record.topic, record.partition, record.offset, key=record.key, body=record.value
    )


def history_event(record: Fetched) -> tuple[HistoryEvent | None, Divergence | None]:
    """The event in a record, what is wrong with it, or both: an event with a wrong hash is still an event."""
    try:
        fields = decode_object(record.value)
        body: bytes = record.value  # type: ignore[assignment]  # decode_object refuses None
        if b"\\u0000" in body:
            fields = without_nul(fields)
        execution, run, seq, at = fields.get("execution"), fields.get("run"), fields.get("seq"), fields.get("at")
        kind, step, attempt = fields.get("type"), fields.get("step"), fields.get("attempt")
        if fields.get("v") != 1:
            raise BadRecord("future_version", f"the event has v={fields.get('v')!r}; this release reads v=1")
        if (
            type(execution) is not str
            or not is_execution_id(execution)
            or type(run) is not int
            or not 0 <= run < _INT64
            or type(seq) is not int
            or not 1 <= seq < _INT64
            or type(kind) is not str
            or type(at) is not str
            or not _is_broker_time(at)
            or not (step is None or type(step) is str)
            or not (attempt is None or (type(attempt) is int and 0 <= attempt < _INT32))
        ):
            raise BadRecord("wrong_shape", "the record is no history event")
        if record.key != execution.encode():
            raise BadRecord("wrong_key", "the record's key is not the execution that it names")
    except BadRecord as error:
        return None, diverges(record, error.reason, error.detail)
    previous = own = b""
    for name, value in record.headers:
        if name == HEADER_PREV:
            previous = value
        elif name == HEADER_HASH:
            own = value
    event = HistoryEvent(
        execution, run, seq, kind, at, step, attempt, fields, body, previous, own,
        record.topic, record.partition, record.offset,
    )  # fmt: skip
    if chain(previous, body) == own:
        return event, None
    detail = "its fp-hash is not sha256(fp-prev ‖ value)"
    place = (record.topic, record.partition, record.offset)
    return event, Divergence("hash_mismatch", detail, *place, execution, run, seq)


def _is_broker_time(at: str) -> bool:
    if len(at) != 24 or at[-1] != "Z":
        return False
    try:
        datetime.fromisoformat(at)
    except ValueError:
        return False
    return True


def without_nul(value: Any) -> Any:
    """`value` with U+2400 in place of NUL, in keys too: PostgreSQL stores no NUL. The record's bytes keep it."""
    if isinstance(value, str):
        return value.replace("\0", "␀")
    if isinstance(value, list):
        return [without_nul(item) for item in value]
    if isinstance(value, dict):
        return {without_nul(name): without_nul(item) for name, item in value.items()}
    return value


def dead_letter(record: Fetched) -> Letter | Divergence:
    """The dead letter in a record."""
    try:
        message = parse(DeadLetter, without_nul(decode_object(record.value)))
    except BadRecord as error:
        return diverges(record, error.reason, error.detail)
    return Letter(message, as_time(record.timestamp))


def filtered(record: Fetched) -> TriggerFiltered | Divergence:
    """What the router left out."""
    try:
        return parse(TriggerFiltered, without_nul(decode_object(record.value)))
    except BadRecord as error:
        return diverges(record, error.reason, error.detail)


def definition_change(record: Fetched) -> DefinitionChange | Divergence:
    """What a record of the definitions topic changes."""
    try:
        kind, _, name = (record.key or b"").decode().partition("/")
        if kind == "def" and name:
            return _definition(record, name)
        if kind == "name" and name:
            return _name(record, name)
    except BadRecord as error:
        return diverges(record, error.reason, error.detail)
    except UnicodeDecodeError:
        pass
    return diverges(record, "wrong_key", "the key is neither def/<hash> nor name/<workflow>[@<version>]")


def _definition(record: Fetched, hash_: str) -> DefinitionChange:
    if record.value is None:
        return Removed(hash=hash_)
    value = decode_object(record.value)
    if content_hash(value) != hash_:
        raise BadRecord("definition_mismatch", "the definition's hash is not the one in its key")
    return Registered(hash_, parse(WorkflowDefinition, without_nul(value)), as_time(record.timestamp))


def _name(record: Fetched, name: str) -> DefinitionChange:
    workflow, at_sign, version = name.partition("@")
    if record.value is None:
        return Removed(workflow=workflow, version=version if at_sign else None)
    content = decode_object(record.value)
    if not at_sign and "deleted" in content:
        parse(WorkflowDeletion, content)
        return Removed(workflow=workflow)
    pointer = parse(DefinitionPointer, content)
    return Pointed(workflow, version if at_sign else pointer.version, pointer.definition, current=not at_sign)
