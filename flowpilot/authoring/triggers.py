"""Which records of which topics start a workflow."""

from __future__ import annotations

import re

from flowpilot_schemas.definition import TriggerDefinition

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}\Z")


def on_topic(topic: str, *, unique_by: str | None = None) -> TriggerDefinition:
    """Each JSON record of `topic` starts an execution with the record as its input.

    `unique_by` is a dotted path into the record (`"patient.id"`): records that agree there are one execution.
    Without it every record is its own. Raises ValueError where either is not usable.
    """
    if not isinstance(topic, str) or not _TOPIC.match(topic) or topic in {".", ".."}:
        raise ValueError(f"on_topic({topic!r}): a Kafka topic's name has 1–249 of A–Z a–z 0–9 . _ -")
    if unique_by is not None and (not isinstance(unique_by, str) or not all(unique_by.split("."))):
        raise ValueError(f'on_topic({topic!r}, unique_by={unique_by!r}): write a dotted path such as "patient.id"')
    return TriggerDefinition(topic=topic, unique_by=unique_by)
