"""What the binding asks of the engine. `flowpilot.engine.engine.Engine` has it; so has the tests' recorder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from flowpilot.ports.log import Fetched


class Table(Protocol):
    """One partition's table while its changelog is read."""

    next_changelog_offset: int
    """The changelog is known below this offset: read, or acknowledged as written. 0: nothing is known."""

    def load(self, record: Fetched) -> None:
        """Take one changelog record, in the order of the log."""
        ...


class Engine(Protocol):
    """The commit protocol. `process`, `tick`, `assign` and `revoke` are never called while one of them runs."""

    def table(self, partition: int) -> Table:
        """The table of a partition: new and empty, or the one that was kept since it was last revoked."""
        ...

    async def assign(self, partition: int, committed: int | None) -> int:
        """Claim a partition whose changelog was read to its end; the offset of events to start at.

        Called after every rebalance for every partition that is assigned, also for one that was kept.
        """
        ...

    async def process(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        """Fold a batch, write, send; the records that may be acknowledged, in order.

        All of a partition, or its first ones: of one that is in `stopped` now, or after `cut_short`.
        """
        ...

    def cut_short(self) -> None:
        """Let the `process` under way return soon, with what it has finished; the rest is read again."""
        ...

    def revoke(self, partition: int) -> None:
        """The partition is somebody else's: drop its table."""
        ...

    async def tick(self) -> None:
        """Timers and housekeeping."""
        ...

    @property
    def stopped(self) -> Mapping[int, str]:
        """The partitions that do not go on, each with the sentence that says why."""
        ...
