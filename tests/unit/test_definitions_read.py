"""Reading definitions while the topic is compacted, which only the log in memory does on command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.ports.log import Fetched, Reader
from flowpilot_schemas.definition import StepDefinition, WorkflowDefinition

TOPIC = "definitions"


class Paused:
    """A reader whose process stands still between asking for the end and reading up to it."""

    def __init__(self, reader: Reader, meanwhile: Callable[[], Any]) -> None:
        self._reader, self._meanwhile = reader, meanwhile
        self._has_stood = False

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        return await self._reader.bounds(topic, partition)

    async def read(self, topic: str, partition: int, start: int, end: int) -> list[Fetched]:
        if not self._has_stood:
            self._has_stood = True
            await self._meanwhile()
        return await self._reader.read(topic, partition, start, end)


def workflow(version: str) -> WorkflowDefinition:
    return WorkflowDefinition(name="onboarding", version=version, steps=(StepDefinition(name="a", queue="q"),))


def test_what_is_compacted_away_while_it_is_read_is_found_further_on() -> None:
    """A worker that starts would take the workflow for one without a current version, and move the pointer back."""
    log = MemoryLog()
    log.create_topic(TOPIC, 1, max_message_bytes=10 << 20, compacted=True)
    deployer = LogDefinitions(log.producer(), log.reader(), TOPIC)

    async def deploy() -> None:
        await deployer.register(workflow("2"), move_pointer=True)
        log.compact(TOPIC)

    async def scenario() -> None:
        await deployer.register(workflow("1"))
        worker = LogDefinitions(log.producer(), Paused(log.reader(), deploy), TOPIC)
        await worker.register(workflow("1"))
        late = LogDefinitions(log.producer(), log.reader(), TOPIC)
        await late.refresh()
        assert worker.current("onboarding") == late.current("onboarding") == workflow("2")

    asyncio.run(scenario())
