"""Trigger records for the command line: published, what became of one, and what would."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flowpilot.adapters.kafka.admin import AdminError, KafkaAdmin, UnknownTopic
from flowpilot.adapters.kafka.catalog import KafkaTopicCatalog
from flowpilot.adapters.kafka.config import producer_properties
from flowpilot.adapters.kafka.groups import KafkaGroups
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.adapters.postgres.queries import AuditQueries
from flowpilot.app.database import Asked, Database, querying
from flowpilot.app.workflows import open_definitions
from flowpilot.core.errors import FlowPilotError
from flowpilot.ports.log import Fetched, Headers, LogUnavailable, Record
from flowpilot.router.routing import Omitted, Outcome, route, routes
from flowpilot.settings import Settings
from flowpilot_schemas.ids import record_execution_id
from flowpilot_schemas.messages import StartExecution

Fields = dict[str, Any]

# Seconds: until Kafka's silence is an error, or only means that it cannot be asked; between two looks at the audit.
_PATIENCE, _SHORTLY, _LOOK = 10.0, 3.0, 0.2
_NAMED = 10

_REASONS = {
    "tombstone": "the record has no value",
    "where": "the trigger's where is not true for it",
    "before_start": "it is older than the trigger's start",
    "expired": "retention removed it before it was read",
}


class NobodyReads(FlowPilotError):
    """No registered workflow reads the topic. `readers`: those that are read, each with its workflows."""

    def __init__(self, topic: str, triggers: str, readers: Mapping[str, Sequence[str]]) -> None:
        self.topic, self.readers = topic, readers
        listed = "; ".join(f"{name} starts {', '.join(readers[name])}" for name in sorted(readers)[:_NAMED])
        if len(readers) > _NAMED:
            listed += f"; and {len(readers) - _NAMED} more"
        super().__init__(
            f"no registered workflow reads {topic} ({listed or 'no workflow has a trigger'}); publish there, name "
            f"a workflow in a record on {triggers}, or apply a workflow that reads {topic}"
        )


class TopicMissing(FlowPilotError):
    """The topic is not there, and a topic made by accident would have the wrong partitions for life."""

    def __init__(self, topic: str) -> None:
        super().__init__(
            f"there is no topic {topic} on Kafka, and publishing creates none: create it with the partitions that "
            "it shall have (`flowpilot dev` does for the workflows of its folder)"
        )


class NotTaken(FlowPilotError):
    """Kafka refused the record for good."""


class Place(NamedTuple):
    """Where a record is."""

    topic: str
    partition: int
    offset: int


def fates(asked: Asked, topic: str, partition: int, offset: int) -> list[Fields]:
    """What became of a record, workflow by workflow. Raises `DatabaseUnreachable`, `DatabaseRefused`."""
    with querying(asked, AuditQueries) as queries:
        found = queries.fates(topic, partition, offset)
    return [{**fate._asdict(), "detail": fate.detail or _REASONS.get(fate.reason or "")} for fate in found]


def absence(settings: Settings, place: Place) -> str | None:
    """Why no record is at `place`, as a sentence; None if there is one, or if Kafka does not say."""
    topic, partition, offset = place
    try:
        count = KafkaAdmin(settings, timeout=_SHORTLY).partitions(topic)
        if partition >= count:
            has = "partition 0 alone" if count == 1 else f"partitions 0 to {count - 1}"
            return f"topic {topic} has no partition {partition}, it has {has}"
        first, following = KafkaGroups(settings, timeout=_SHORTLY).bounds(topic)[topic, partition]
    except UnknownTopic:
        return f"there is no topic {topic} on Kafka; `flowpilot workflow list` shows which topics start workflows"
    except (AdminError, LogUnavailable, KeyError):
        return None
    if offset >= following:
        return f"{topic}/{partition} has no record {offset} yet: the next one there will be {following}"
    if offset < first:
        return f"the audit knows no {topic}/{partition}/{offset}, and the first one left on Kafka is {first}"
    return None


def await_fates(settings: Settings, place: Place, foretold: Sequence[Fields], timeout: float) -> list[Fields]:
    """What became of a record, once the audit record knows it for as many workflows as `foretold` (see `dry_run`),
    or as far as it does after `timeout` seconds. Raises as `fates`.

    Outcomes at the same place of a topic that had the name before are left out, if Kafka gives the topic's id.
    """
    deadline = time.monotonic() + timeout
    topic_id = _topic_id(settings, place.topic)
    database = Database(settings, application="flowpilot-cli", connections=1)
    try:
        while True:
            found = of_topic(fates(database, *place), topic_id)
            if all_told(found, foretold) or time.monotonic() >= deadline:
                return found
            time.sleep(_LOOK)
    finally:
        database.close()


def of_topic(found: Sequence[Fields], topic_id: str | None) -> list[Fields]:
    """Those of `found` that have this topic id, or none; all if `topic_id` is None."""
    return [fate for fate in found if topic_id is None or fate["topic_id"] in (None, topic_id)]


def _topic_id(settings: Settings, topic: str) -> str | None:
    """The id of the topic that has this name now; None if there is none, or if Kafka does not answer."""
    try:
        return asyncio.run(KafkaTopicCatalog(settings).topic_ids([topic])).get(topic)
    except LogUnavailable:
        return None


def all_told(found: Sequence[Fields], foretold: Sequence[Fields]) -> bool:
    """Whether nothing of a record's fates is missing; one without a workflow is that of all."""
    return len(found) >= len(foretold) or any(fate["workflow"] is None for fate in found)


async def dry_run(settings: Settings, topic: str, value: bytes | None, headers: Headers) -> list[Fields]:
    """What a record on `topic` would start now, or why not, workflow by workflow.

    Nothing is written. Raises `NobodyReads`, `LogUnavailable`.
    """
    async with open_definitions(settings) as definitions:
        where = routes(definitions, settings.topics, settings.limits)
    now = time.time_ns() // 1_000_000
    record = Fetched(topic, 0, 0, now, None, value, headers)
    told = [_told(outcome, record) for outcome in route(where, record, "")]
    if not told:
        readers = {name: sorted(of) for name, of in where.readers.items() if name != where.triggers}
        raise NobodyReads(topic, where.triggers, readers)
    return told


async def publish(
    settings: Settings, topic: str, value: bytes | None, *, key: bytes | None = None, headers: Headers = ()
) -> Place:
    """Publish a record; its place, once Kafka has acknowledged it.

    Raises `TopicMissing`, `NotTaken`, `AdminError`, and `LogUnavailable`: it may be there all the same.
    """
    if not await asyncio.to_thread(KafkaAdmin(settings).exists, [topic]):
        raise TopicMissing(topic)
    producer = KafkaProducer({**producer_properties(settings), "message.timeout.ms": int(_PATIENCE * 1_000)})
    try:
        [delivery] = await producer.send([Record(topic, key, value, headers=headers)])
    finally:
        producer.close()
    if delivery.error is not None:
        raise NotTaken(f"Kafka does not take the record on {topic}: {delivery.error}")
    return Place(topic, delivery.partition, delivery.offset)


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
