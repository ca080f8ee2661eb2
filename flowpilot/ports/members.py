"""The live processes of a FlowPilot, as they announce themselves."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from flowpilot_schemas.members import EngineAnnounced, WorkerAnnounced


class LiveMembers(NamedTuple):
    """Who was live at `at` (broker time, ms since the epoch), in the order of their ids.

    `is_complete` is False if more was written than is read: there may be others. A process that does not announce,
    as a worker in another language need not, is not here.
    """

    workers: list[WorkerAnnounced]
    engines: list[EngineAnnounced]
    at: int
    is_complete: bool = True

    def of_queue(self, queue: str) -> list[WorkerAnnounced]:
        """The workers that serve `queue`, also those that have no partition of it now."""
        return [worker for worker in self.workers if queue in worker.queues or worker.queues_left_out]

    def engines_know(self, rules: int) -> bool:
        """Whether every live engine knows the fold rules `rules`; False if none is live, or not all were read."""
        return self.is_complete and bool(self.engines) and all(engine.rules >= rules for engine in self.engines)


class Members(Protocol):
    """Who is live."""

    async def live(self) -> LiveMembers:
        """Everybody whose session has not ended, as of now. Raises `LogUnavailable`."""
        ...
