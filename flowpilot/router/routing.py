"""What one trigger record starts: a function of the record, its topic's id and the definitions known.

| record | outcome |
|---|---|
| no value | omitted: a tombstone starts nothing, with CloudEvents' headers or without |
| on `<namespace>.triggers` | the workflow that it names: one start, or one dead letter |
| on a user topic | one start, omission or dead letter for each trigger that names the topic, of current versions |

A CloudEvent stands for its data (`flowpilot.router.cloudevents`). The record's header `traceparent`, else that
attribute of a CloudEvent, goes with what it starts.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from flowpilot.core.dead_letters import dead_letter
from flowpilot.core.inputs import check_input
from flowpilot.core.where import compiled
from flowpilot.ports.log import Fetched
from flowpilot.router.cloudevents import Arrived, read
from flowpilot_schemas.codec import BadRecord, as_object, parse
from flowpilot_schemas.definition import TriggerDefinition, WorkflowDefinition
from flowpilot_schemas.ids import event_execution_id, keyed_execution_id, record_execution_id
from flowpilot_schemas.limits import MAX_KEY, Limits
from flowpilot_schemas.messages import DeadLetter, Origin, StartExecution, Trigger
from flowpilot_schemas.topics import Topics
from flowpilot_schemas.tracing import HEADER, as_traceparent, in_headers
from flowpilot_schemas.triggers import ANY_WORKFLOW, FilterReason

SOURCE = "router"


class Omitted(NamedTuple):
    """A record that a workflow does not want; `workflow` is None on `<namespace>.triggers`."""

    workflow: str | None
    reason: FilterReason


Outcome = StartExecution | DeadLetter | Omitted


class KnownDefinitions(Protocol):
    """The part of `flowpilot.ports.definitions.Definitions` that routing asks."""

    def current(self, workflow: str) -> WorkflowDefinition | None: ...

    def version(self, workflow: str, version: str) -> WorkflowDefinition | None: ...

    def workflows(self) -> list[str]: ...


class Subscription(NamedTuple):
    """A workflow that a topic's records start."""

    definition: WorkflowDefinition
    trigger: TriggerDefinition


@dataclass(frozen=True, slots=True)
class Routes:
    """Where records go: `triggers` is the topic whose records name their workflow.

    `readers`: by topic, the workflows that read it, each with its triggers; who is named by the records is `*`.
    """

    triggers: str
    limits: Limits
    definitions: KnownDefinitions
    subscriptions: dict[str, tuple[Subscription, ...]]
    readers: dict[str, dict[str, list[TriggerDefinition]]]

    @property
    def topics(self) -> frozenset[str]:
        """Every topic to be read."""
        return frozenset((self.triggers, *self.subscriptions))


def routes(definitions: KnownDefinitions, topics: Topics, limits: Limits) -> Routes:
    """The routes of the current version of every workflow. A trigger on one of FlowPilot's own topics is left
    out: it would feed FlowPilot its own records."""
    found: dict[str, list[Subscription]] = {}
    named = TriggerDefinition(topic=topics.triggers, start="earliest")
    readers: dict[str, dict[str, list[TriggerDefinition]]] = {topics.triggers: {ANY_WORKFLOW: [named]}}
    ours = {topic.name for topic in topics.core()}
    for workflow in sorted(definitions.workflows()):
        definition = definitions.current(workflow)
        for trigger in definition.triggers if definition is not None else ():
            is_ours = trigger.topic in ours or trigger.topic.startswith(topics.steps(""))
            if definition is not None and not is_ours:
                found.setdefault(trigger.topic, []).append(Subscription(definition, trigger))
                readers.setdefault(trigger.topic, {}).setdefault(workflow, []).append(trigger)
    subscriptions = {topic: tuple(each) for topic, each in found.items()}
    return Routes(topics.triggers, limits, definitions, subscriptions, readers)


def route(where: Routes, record: Fetched, topic_id: str, only: Container[str] | None = None) -> list[Outcome]:
    """What `record` starts, or why it does not; with `only`, for these of the topic's readers.

    Empty: no workflow reads the topic any more.
    """
    named = record.topic == where.triggers
    subscriptions = where.subscriptions.get(record.topic, ())
    wanted: list[Subscription] = []
    outcomes: list[Outcome] = []
    for each in subscriptions:
        name, trigger = each.definition.name, each.trigger
        if only is not None and name not in only:
            continue
        if record.value is None:
            outcomes.append(Omitted(name, "tombstone"))
        elif trigger.start_at is not None and record.timestamp < trigger.start_at:
            outcomes.append(Omitted(name, "before_start"))
        else:
            wanted.append(each)
    if record.value is None:
        return [Omitted(None, "tombstone")] if named else outcomes
    if not named and not wanted:
        return outcomes
    # Not to be blamed on one workflow if several read the topic.
    workflow = subscriptions[0].definition.name if len(subscriptions) == 1 else None
    try:
        if len(record.value) > where.limits.input:
            limit = where.limits.input
            sentence = f"the record has {len(record.value)} bytes; the limit FLOWPILOT_TRIGGER_LIMIT is {limit}"
            raise BadRecord("too_large", sentence)
        arrived = read(record)
        if named:
            named_one = parse(Trigger, as_object(arrived.data))
            workflow = named_one.workflow
            return [_named_start(where, record, topic_id, named_one, arrived)]
    except BadRecord as bad:
        return [*outcomes, dead_letter(record, bad.reason, bad.detail, SOURCE, workflow, topic_id)]
    return [*outcomes, *(_subscribed(where, record, topic_id, arrived, each) for each in wanted)]


def _named_start(
    where: Routes, record: Fetched, topic_id: str, trigger: Trigger, arrived: Arrived
) -> StartExecution:
    definition = where.definitions.current(trigger.workflow)
    if trigger.version is not None:
        version = where.definitions.version(trigger.workflow, trigger.version)
        if version is None and definition is not None:
            sentence = f"workflow {trigger.workflow!r} has no version {trigger.version!r}"
            raise BadRecord("unknown_version", sentence)
        definition = version
    if definition is None:
        sentence = f"there is no workflow {trigger.workflow!r}; `flowpilot workflow apply` registers one"
        raise BadRecord("unknown_workflow", sentence)
    arrived = arrived._replace(data=trigger.input)
    return _start(where, record, topic_id, definition, arrived, trigger.key, trigger.created_by)


def _subscribed(
    where: Routes, record: Fetched, topic_id: str, arrived: Arrived, subscription: Subscription
) -> Outcome:
    definition, trigger = subscription
    try:
        if trigger.where is not None:
            matches = compiled(trigger.where)
            if isinstance(matches, str):
                raise BadRecord("where_failed", f"where {trigger.where!r} cannot be used: {matches}")
            if not matches(arrived.data, arrived.event):
                return Omitted(definition.name, "where")
        key = None if trigger.unique_by is None else key_of(arrived.data, trigger.unique_by)
        return _start(where, record, topic_id, definition, arrived, key, None)
    except BadRecord as bad:
        return dead_letter(record, bad.reason, bad.detail, SOURCE, definition.name, topic_id)


def _start(
    where: Routes,
    record: Fetched,
    topic_id: str,
    definition: WorkflowDefinition,
    arrived: Arrived,
    key: str | None,
    created_by: str | None,
) -> StartExecution:
    check_input(definition, arrived.data, where.limits.input)
    if key is not None:
        execution = keyed_execution_id(definition.name, key)
    elif arrived.event is not None:
        execution = event_execution_id(definition.name, arrived.event["source"], arrived.event["id"])
    else:
        execution = record_execution_id(definition.name, topic_id, record.partition, record.offset)
    trace = in_headers(record.headers) if record.headers else None
    if trace is None and arrived.event is not None:
        trace = as_traceparent(arrived.event.get(HEADER))
    return StartExecution(
        execution=execution,
        workflow=definition.name,
        version=definition.version,
        definition=definition.hash,
        limits=where.limits,
        key=key,
        input=arrived.data,
        origin=Origin(
            topic=record.topic,
            topic_id=topic_id,
            partition=record.partition,
            offset=record.offset,
            timestamp=record.timestamp,
        ),
        created_by=created_by or f"trigger:{record.topic}",
        traceparent=trace,
    )


def key_of(value: Any, path: str) -> str:
    """The key at the dotted `path`: a string as it is, an integer or boolean as its JSON text.

    Raises `BadRecord`: `key_missing` if there is no such value there, `key_too_long` beyond `MAX_KEY` characters.
    """
    found = value
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    if isinstance(found, bool):
        key = "true" if found else "false"
    elif isinstance(found, int):
        key = str(found)
    elif isinstance(found, str) and found:
        key = found
    else:
        raise BadRecord("key_missing", f"unique_by {path!r} finds no string, integer or boolean in the record")
    if len(key) > MAX_KEY:
        raise BadRecord("key_too_long", f"the key at {path!r} has {len(key)} characters; at most {MAX_KEY}")
    return key
