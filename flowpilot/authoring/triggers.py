"""Which records of which topics start a workflow."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from flowpilot_schemas.definition import TriggerDefinition
from flowpilot_schemas.history import iso
from flowpilot_schemas.limits import MAX_WHERE

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}\Z")


def on_topic(
    topic: str, *, unique_by: str | None = None, where: str | None = None, start: str | datetime = "registration"
) -> TriggerDefinition:
    """Each JSON record or CloudEvent of `topic` starts an execution; the record, or the event's data, is its input.

    `unique_by` is a dotted path into the data (`"patient.id"`): records that agree there are one execution.
    Without it every record, or CloudEvent, is its own.
    `where` is a CEL expression over `data` and a CloudEvent's `event` (`'data.sum > 100 && event.type == "paid"'`);
    records for which it is not true start nothing. It is checked where the workflow is declared.
    `start` says which records count if none was read for this workflow yet: those since its first
    `"registration"`, all from the `"earliest"` on, or those from a time on (ISO 8601 with a zone, or a datetime).
    Raises ValueError where one is not usable.
    """
    if not isinstance(topic, str) or not _TOPIC.match(topic) or topic in {".", ".."}:
        raise ValueError(f"on_topic({topic!r}): a Kafka topic's name has 1–249 of A–Z a–z 0–9 . _ -")
    if unique_by is not None and (not isinstance(unique_by, str) or not all(unique_by.split("."))):
        raise ValueError(f'on_topic({topic!r}, unique_by={unique_by!r}): write a dotted path such as "patient.id"')
    if where is not None and (not isinstance(where, str) or not 0 < len(where) <= MAX_WHERE):
        raise ValueError(
            f"on_topic({topic!r}, where=…): write a CEL expression of at most {MAX_WHERE} characters, "
            "such as 'data.amount > 100'"
        )
    return TriggerDefinition(topic=topic, unique_by=unique_by, where=where, start=_start(topic, start))


def _start(topic: str, start: str | datetime) -> str:
    if start in ("registration", "earliest"):
        return str(start)
    try:
        moment = start if isinstance(start, datetime) else datetime.fromisoformat(start)
        if moment.tzinfo is not None:
            return iso(round(moment.astimezone(UTC).timestamp() * 1000))
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(
        f'on_topic({topic!r}, start={start!r}): write "registration", "earliest" or a time with its zone '
        'such as "2026-01-31T00:00:00Z"'
    )
