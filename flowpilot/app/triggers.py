"""Trigger records for the command line: what became of one, and what would."""

from __future__ import annotations

import time
from typing import Any

from flowpilot.adapters.postgres.engine import connect
from flowpilot.adapters.postgres.queries import AuditQueries
from flowpilot.app.database import explained
from flowpilot.app.workflows import open_definitions
from flowpilot.ports.log import Fetched, Headers
from flowpilot.router.routing import Omitted, Outcome, route, routes
from flowpilot.settings import Settings
from flowpilot_schemas.ids import record_execution_id
from flowpilot_schemas.messages import StartExecution

Fields = dict[str, Any]

_REASONS = {
    "tombstone": "the record has no value",
    "where": "the trigger's where is not true for it",
    "before_start": "it is older than the trigger's start",
    "expired": "retention removed it before it was read",
}


def fates(settings: Settings, topic: str, partition: int, offset: int) -> list[Fields]:
    """What became of a record, workflow by workflow. Raises `DatabaseUnreachable`, `DatabaseRefused`."""
    engine = connect(settings.database_url.get_secret_value(), application="flowpilot-cli")
    try:
        with explained(settings):
            found = AuditQueries(engine).fates(topic, partition, offset)
    finally:
        engine.dispose()
    return [{**fate._asdict(), "detail": fate.detail or _REASONS.get(fate.reason or "")} for fate in found]


async def dry_run(settings: Settings, topic: str, value: bytes | None, headers: Headers) -> list[Fields]:
    """What a record on `topic` would start now, or why not; empty if no workflow reads the topic.

    Nothing is written. Raises `LogUnavailable`.
    """
    async with open_definitions(settings) as definitions:
        where = routes(definitions, settings.topics, settings.limits)
    now = time.time_ns() // 1_000_000
    record = Fetched(topic, 0, 0, now, None, value, headers)
    return [_told(outcome, record) for outcome in route(where, record, "")]


def _told(outcome: Outcome, record: Fetched) -> Fields:
    told: Fields = {"workflow": outcome.workflow, "outcome": "dead_letter", "reason": None, "detail": None}
    if isinstance(outcome, Omitted):
        return {**told, "outcome": "filtered", "reason": outcome.reason, "detail": _REASONS[outcome.reason]}
    if not isinstance(outcome, StartExecution):
        return {**told, "reason": outcome.reason, "detail": outcome.detail}
    # Without key and CloudEvent the id comes from the place that the record would get.
    placed = outcome.execution == record_execution_id(outcome.workflow, "", record.partition, record.offset)
    return {
        **told,
        "outcome": "start",
        "version": outcome.version,
        "key": outcome.key,
        "execution": None if placed else outcome.execution,
        "detail": "its own execution, named after its place on the topic" if placed else None,
        "input": outcome.input,
    }
