"""The engine's announcement on the members topic: that it is live, which rule sets it has, and what it stopped."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time

from flowpilot.adapters.announcer import LogAnnouncer
from flowpilot.adapters.kafka.config import announcer_properties
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.app.release import release
from flowpilot.settings import Settings
from flowpilot_agents.contract import Engine
from flowpilot_schemas.history import iso
from flowpilot_schemas.members import EngineAnnounced, stopped_partitions
from flowpilot_schemas.messages import RULES


class EngineAnnouncement:
    """From the process's start, before it owns a partition, to its end."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._engine = engine
        self._announced = EngineAnnounced(
            engine=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}",
            started_at=iso(time.time_ns() // 1_000_000),
            release=release(),
            rules=RULES,
            session_ms=settings.member_session * 1_000,
        )
        # Not the engine's: that one writes nothing after a standstill, and ends with its first gap.
        self._producer = KafkaProducer(announcer_properties(settings))
        self._announcer = LogAnnouncer(self._producer, settings.topics.members)

    async def run(self) -> None:
        """Announce until cancelled."""
        await self._announcer.run(self._now)

    def _now(self) -> EngineAnnounced:
        stopped = stopped_partitions(self._engine.stopped)
        return self._announced.model_copy(update={"stopped": stopped}) if stopped else self._announced

    def leave(self) -> None:
        """Take it back, once the engine's loop has ended."""
        asyncio.run(self._announcer.leave())
        self._producer.close(timeout=0.5)
