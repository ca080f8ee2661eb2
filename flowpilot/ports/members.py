"""The live processes of a FlowPilot, as they announce themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from flowpilot_schemas.members import EngineAnnounced, WorkerAnnounced

Announced = WorkerAnnounced | EngineAnnounced


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


class Announcer(Protocol):
    """Announces one process. Whatever goes wrong is a warning: the process goes on."""

    async def run(self, what: Callable[[], Announced]) -> None:
        """Announce `what()` now, after `changed` and every third of its session, until `leave`. Never raises."""
        ...

    def changed(self) -> None:
        """What is announced has changed. Called on the event loop."""
        ...

    async def leave(self) -> None:
        """Take the announcement back; returns within a second in any case."""
        ...
