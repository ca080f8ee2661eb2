"""The public messages and their JSON Schemas: what travels on which topic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from pydantic import BaseModel

from flowpilot_schemas import members, triggers
from flowpilot_schemas import messages as m
from flowpilot_schemas.definition import DefinitionPointer, WorkflowDefinition, WorkflowDeletion
from flowpilot_schemas.history import FIELDS
from flowpilot_schemas.topics import Topics


class PublicMessage(NamedTuple):
    """One message: its type on the wire (or a name, where it has none), its topic, and a sentence."""

    name: str
    topic: str
    description: str
    schema: Callable[[], dict[str, Any]]


def public_messages(topics: Topics) -> list[PublicMessage]:
    """All of them: first what users and foreign workers write and read, last what FlowPilot tells itself."""
    steps, events = topics.steps("<queue>"), topics.events
    for_users: list[tuple[str, type[BaseModel]]] = [
        (topics.triggers, m.Trigger),
        (steps, m.StepReady),
        (events, m.StepCompleted),
        (events, m.StepFailed),
        (events, m.StepStarted),
        (events, m.StepHeartbeat),
        (topics.control, m.Cancelled),
        (topics.control, m.Superseded),
        (topics.replies, m.ExecutionEnded),
        (topics.replies, m.RetryAnswered),
        (topics.dead_letters, m.DeadLetter),
        (topics.members, members.WorkerAnnounced),
    ]
    for_flowpilot: list[tuple[str, type[BaseModel]]] = [
        (topics.definitions, WorkflowDefinition),
        (topics.definitions, DefinitionPointer),
        (topics.definitions, WorkflowDeletion),
        (topics.positions, triggers.TriggerPosition),
        (topics.fates, triggers.TriggerFiltered),
        (topics.members, members.EngineAnnounced),
        (events, m.StartExecution),
        (events, m.CancelExecution),
        (events, m.RetryExecution),
        (events, m.RetryEnded),
        (events, m.RetryCheck),
        (events, m.RetryForget),
        (events, m.TimerFired),
        (events, m.Forget),
        (events, m.RulesPermitted),
    ]
    events_of_history = partial(_history_schema, FIELDS)
    history = PublicMessage("history", topics.history, "A fact that the engine decided.", events_of_history)
    return [*map(_public, for_users), history, *map(_public, for_flowpilot)]


def _public(place: tuple[str, type[BaseModel]]) -> PublicMessage:
    topic, model = place
    return PublicMessage(_name(model), topic, _sentence(model), model.model_json_schema)


_NAMES: dict[type[BaseModel], str] = {
    m.Trigger: "trigger",
    WorkflowDefinition: "definition",
    DefinitionPointer: "definition-pointer",
    WorkflowDeletion: "workflow-deletion",
}


def _name(model: type[BaseModel]) -> str:
    return _NAMES.get(model) or str(model.model_fields["type"].default)


def _sentence(model: type[BaseModel]) -> str:
    text = " ".join((model.__doc__ or "").split())
    return text.partition(". ")[0].rstrip(".") + "."


def _history_schema(fields: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """One object an event type. What a field holds is told in the documentation, not here."""
    common = {
        "v": {"const": 1},
        "execution": {"type": "string"},
        "run": {"type": "integer", "minimum": 0},
        "seq": {"type": "integer", "minimum": 1},
        "at": {"type": "string", "format": "date-time"},
        "cause": {"type": "integer", "minimum": 0},
    }
    return {
        "title": "HistoryEvent",
        "oneOf": [
            {
                "title": kind,
                "type": "object",
                "properties": {"type": {"const": kind}, **common, **{name.rstrip("?"): {} for name in names}},
                "required": ["type", *common, *(name for name in names if not name.endswith("?"))],
            }
            for kind, names in fields.items()
        ],
    }
