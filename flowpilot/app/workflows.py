"""Registering definitions and reading them, for the command line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.kafka.admin import KafkaAdmin
from flowpilot.adapters.kafka.config import producer_properties, reader_properties
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.authoring import Workflow
from flowpilot.settings import Settings
from flowpilot_schemas.definition import WorkflowDefinition


@asynccontextmanager
async def open_definitions(settings: Settings) -> AsyncIterator[LogDefinitions]:
    """The definitions on Kafka, refreshed. Raises `LogUnavailable`."""
    producer = KafkaProducer(producer_properties(settings))
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
