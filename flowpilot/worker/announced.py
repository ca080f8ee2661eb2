"""What a worker announces: the partitions that it has now, and the definitions for which it has the handlers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from flowpilot.ports.members import Announcer
from flowpilot.worker.intake import Intake
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.history import iso
from flowpilot_schemas.members import ServedDefinition, WorkerAnnounced, worker_announced


class Announced:
    """`intakes`: by topic; those of `queues` are announced, in that order. Without `announcer` nothing is."""

    def __init__(
        self,
        worker_id: str,
        announcer: Announcer | None,
        *,
        queues: Sequence[str],
        topic: Callable[[str], str],
        intakes: Mapping[str, Intake],
        session: float,
        release: str,
    ) -> None:
        self._worker_id, self._announcer = worker_id, announcer
        self._queues, self._topic, self._intakes = queues, topic, intakes
        self._session_ms, self._release = round(session * 1_000), release
        self._started_at = iso(time.time_ns() // 1_000_000)
        self._definitions: list[ServedDefinition] = []

    @property
    def is_on(self) -> bool:
        """Whether anything is announced."""
        return self._announcer is not None

    async def run(self, definitions: Sequence[WorkflowDefinition]) -> None:
        """Announce that `definitions` are served, until `leave` or cancelled. Never raises."""
        self._definitions = [
            ServedDefinition(workflow=each.name, version=each.version, definition=each.hash) for each in definitions
        ]
        if self._announcer is not None:
            await self._announcer.run(self._now)

    def changed(self) -> None:
        """A queue's partitions have changed."""
        if self._announcer is not None:
            self._announcer.changed()

    async def leave(self) -> None:
        """Nothing more is begun here. Returns within a second in any case."""
        if self._announcer is not None:
            await self._announcer.leave()

    def _now(self) -> WorkerAnnounced:
        return worker_announced(
            self._worker_id,
            started_at=self._started_at,
            release=self._release,
            queues={queue: self._intakes[self._topic(queue)].partitions for queue in self._queues},
            definitions=self._definitions,
            session_ms=self._session_ms,
        )
