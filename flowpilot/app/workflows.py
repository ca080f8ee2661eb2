"""Registering definitions, reading and deleting them, for the command line and the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.kafka.admin import KafkaAdmin
from flowpilot.adapters.kafka.config import producer_properties, reader_properties
from flowpilot.adapters.kafka.producer import DeferredProducer
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.authoring import Workflow
from flowpilot.client.errors import UnknownWorkflow
from flowpilot.ports.definitions import Definitions, WorkflowDeleted
from flowpilot.settings import Settings
from flowpilot_schemas.definition import WorkflowDefinition

Standing = Literal["new workflow", "new version", "registered", "current", "changed", "deleted"]


Fields = dict[str, Any]


class Versions(NamedTuple):
    """What is registered under a workflow's name; `current` is one of `all`, or None between two commands."""

    current: WorkflowDefinition | None
    all: list[WorkflowDefinition]


@asynccontextmanager
async def open_definitions(settings: Settings) -> AsyncIterator[LogDefinitions]:
    """The definitions on Kafka, refreshed. Raises `LogUnavailable`."""
    producer = DeferredProducer(producer_properties(settings))
    reader = KafkaReader(reader_properties(settings), timeout=5.0)
    try:
        definitions = LogDefinitions(
            producer, reader, settings.topics.definitions, dev_versions=settings.dev_versions
        )
        await definitions.refresh()
        yield definitions
    finally:
        producer.close()
        reader.close()


async def apply_workflow(settings: Settings, workflow: Workflow) -> tuple[WorkflowDefinition, bool]:
    """Register the workflow and move its name's pointer to it: the definition as it is registered, and whether it
    was not before.

    Its queues' topics are made first, so that whoever starts an execution of it finds them.
    """
    definition = workflow.definition
    await asyncio.to_thread(KafkaAdmin(settings).ensure_step_topics, definition.queues)
    async with open_definitions(settings) as definitions:
        added = await definitions.register(definition, move_pointer=True)
        return definitions.registered(definition), added


async def current_workflows(settings: Settings) -> list[WorkflowDefinition]:
    """The current version of every workflow, by name."""
    async with open_definitions(settings) as definitions:
        found = [definitions.current(name) for name in definitions.workflows()]
        return [definition for definition in found if definition is not None]


async def workflow_versions(settings: Settings, name: str) -> Versions:
    """All versions of a workflow. Raises `UnknownWorkflow`, `WorkflowDeleted`, `LogUnavailable`."""
    async with open_definitions(settings) as definitions:
        return versions(definitions, name)


async def delete_workflow(settings: Settings, name: str) -> list[str]:
    """Delete a workflow: its triggers end and nothing starts it any more; the versions it had.

    The audit writer deletes its rows. Raises `UnknownWorkflow`, `WorkflowDeleted` (it was before),
    `LogUnavailable`.
    """
    async with open_definitions(settings) as definitions:
        deleted = await definitions.delete(name)
        if not deleted:
            versions(definitions, name)
        return deleted


async def standing(settings: Settings, wanted: list[WorkflowDefinition]) -> list[Standing]:
    """How each definition stands to what is registered; `changed` would be refused. Raises `LogUnavailable`."""
    async with open_definitions(settings) as definitions:
        return [_standing(definitions, definition) for definition in wanted]


def summary(definition: WorkflowDefinition) -> Fields:
    """A workflow in a list."""
    return {
        "workflow": definition.name,
        "version": definition.version,
        "steps": [step.name for step in definition.steps],
        "queues": list(definition.queues),
        "triggers": [trigger.topic for trigger in definition.triggers],
        "description": definition.description,
        "definition": definition.hash,
    }


def described(wanted: WorkflowDefinition, found: Versions) -> Fields:
    """All of one version, and which versions there are."""
    return {
        "workflow": wanted.name,
        **wanted.model_dump(mode="json", exclude={"v", "name"}),
        "definition": wanted.hash,
        "versions": [
            {"version": version.version, "definition": version.hash, "current": version == found.current}
            for version in found.all
        ],
    }


def chosen(found: Versions, version: str | None) -> WorkflowDefinition:
    """The current version, or `version`. Raises `UnknownWorkflow`."""
    if version is None:
        return found.current or found.all[-1]
    for definition in found.all:
        if definition.version == version:
            return definition
    raise UnknownWorkflow(found.all[0].name, version, [])


def versions(definitions: Definitions, name: str) -> Versions:
    """All versions of a workflow, as of the last refresh. Raises `UnknownWorkflow`, `WorkflowDeleted`."""
    if definitions.is_deleted(name):
        raise WorkflowDeleted(name)
    found = Versions(definitions.current(name), definitions.versions(name))
    if not found.all:
        raise UnknownWorkflow(name, None, definitions.workflows())
    return found


def _standing(definitions: LogDefinitions, definition: WorkflowDefinition) -> Standing:
    name = definition.name
    if definitions.is_deleted(name):
        return "deleted"
    registered = definitions.version(name, definition.version)
    if registered is None:
        return "new version" if definitions.versions(name) else "new workflow"
    if registered.hash != definition.hash:
        return "changed"
    return "current" if definitions.current(name) == registered else "registered"
