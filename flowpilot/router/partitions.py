"""The partitions that the group gave this router: those that are read, and those that are not yet, or no more.

Each opens on its own. Whatever goes wrong with one (its topic is gone or was created again, it has no leader, its
log lost its tail) closes that one: what it did so far is kept to be committed, and it is opened again from its
positions, with a back-off of its own. All questions are asked in tasks; nothing changes but between two polls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from flowpilot.ports.log import LogUnavailable, TopicPartition
from flowpilot.router.beginning import Beginning, Beginnings
from flowpilot.router.identity import TopicIds, gone
from flowpilot.router.reading import Reading
from flowpilot.router.routing import Routes

_log = structlog.get_logger("flowpilot.router")

AT_ONCE = 32  # partitions that are being opened
_FIRST_DELAY, _LONGEST_DELAY = 0.05, 5.0  # seconds, between two tries
_STEADY = 10.0  # seconds: a partition that was open for so long is tried again at once
_SAY_AGAIN = 60.0  # seconds: how often the same failure of a partition is logged


class Opened(NamedTuple):
    """A partition with the workflows that join it."""

    reading: Reading
    beginnings: list[Beginning]


@dataclass(slots=True)
class Closed:
    """A partition that is assigned and not read: since when, why, and when it is tried next (monotonic seconds)."""

    since: float
    tries: int = 0
    due: float = 0.0
    reason: str | None = None
    logged: float = 0.0

    def failed(self, partition: TopicPartition, reason: str) -> None:
        """One more try was in vain."""
        now = time.monotonic()
        if self.tries > 0 and (reason != self.reason or now - self.logged > _SAY_AGAIN):
            # The first failure may be of the moment: a leader was elected, a topic is just being created.
            self.logged = now
            _log.warning("a partition is not read", partition=partition, error=reason)
        self.reason = reason
        self.due = now + min(_FIRST_DELAY * 2.0 ** min(self.tries, 16), _LONGEST_DELAY)
        self.tries += 1


class Partitions:
    """`know` reads positions and definitions to their ends; `where` gives the routes as they are then."""

    def __init__(
        self,
        ids: TopicIds,
        beginnings: Beginnings,
        know: Callable[[], Awaitable[None]],
        where: Callable[[], Routes],
    ) -> None:
        self._ids, self._beginnings, self._know, self._where = ids, beginnings, know, where
        self.readings: dict[TopicPartition, Reading] = {}
        self.closed: dict[TopicPartition, Closed] = {}
        self.retired: list[Reading] = []  # closed, and what they did is not committed
        self.read_to: dict[tuple[TopicPartition, str], int] = {}
        self._opened: dict[TopicPartition, tuple[float, Closed]] = {}
        self._tasks: dict[TopicPartition, asyncio.Task[Opened]] = {}

    def assigned(self, partitions: Iterable[TopicPartition]) -> None:
        """The group gave them to this router."""
        for partition in partitions:
            self._forget(partition)
            self.closed[partition] = Closed(time.monotonic())

    def revoked(self, partitions: Iterable[TopicPartition]) -> None:
        """They are somebody else's from now on."""
        for partition in partitions:
            self._forget(partition)

    def close(self, partition: TopicPartition, reason: str) -> None:
        """Read it no more, until it can be opened again; without effect if it is not open."""
        reading = self.readings.get(partition)
        if reading is None:
            return
        opened, before = self._opened[partition]
        self._forget(partition)
        self.retired.append(reading)
        place = (partition, reading.topic_id)
        self.read_to[place] = max(reading.cursor, self.read_to.get(place, 0))
        is_steady = time.monotonic() - opened > _STEADY
        self.closed[partition] = Closed(time.monotonic()) if is_steady else before
        self.closed[partition].failed(partition, reason)

    def _forget(self, partition: TopicPartition) -> None:
        self.readings.pop(partition, None)
        self.closed.pop(partition, None)
        self._opened.pop(partition, None)
        task = self._tasks.pop(partition, None)
        if task is not None:
            task.cancel()

    # ---- opening, and letting workflows join

    @property
    def is_asking(self) -> bool:
        """Whether an answer is awaited that has not failed before."""
        return any(self.closed[each].tries == 0 for each in self._tasks if each in self.closed)

    @property
    def all_tried(self) -> bool:
        """Whether each partition was opened, or tried at least."""
        return all(closed.tries for closed in self.closed.values())

    def begin(self) -> None:
        """Begin to open what is due."""
        now = time.monotonic()
        for partition, closed in self.closed.items():
            if len(self._tasks) >= AT_ONCE:
                return
            if closed.due <= now and partition not in self._tasks:
                self._tasks[partition] = asyncio.ensure_future(self._open(partition))

    def join(self, readings: Iterable[Reading]) -> None:
        """Begin to let newcomers join these."""
        for reading in readings:
            if self.newcomers(reading) and reading.partition not in self._tasks:
                self._tasks[reading.partition] = asyncio.ensure_future(self._join(reading))

    def newcomers(self, reading: Reading) -> list[str]:
        """The readers of its topic that have yet to join it. What was read for a registration that is over counts
        for nothing."""
        found = self._beginnings.newcomers(self._where(), reading)
        for name in found:
            reading.leave(name)
        return found

    def behind(self, reading: Reading) -> list[str]:
        """The readers of its topic that have yet to catch up with its cursor."""
        self.newcomers(reading)
        return reading.behind(self._where())

    def admit(self) -> list[Reading]:
        """Take over what was found out since; the partitions that are open now and were not before."""
        found = []
        for partition, task in [(each, task) for each, task in self._tasks.items() if task.done()]:
            del self._tasks[partition]
            closed = self.closed.get(partition)
            try:
                reading, beginnings = task.result()
            except LogUnavailable as error:
                if closed is not None:
                    closed.failed(partition, str(error))
                else:
                    self.close(partition, str(error))
                continue
            for beginning in beginnings:
                beginning.apply(reading)
            if closed is None:
                continue
            if closed.logged:
                _log.info("a partition is read again", partition=partition)
            del self.closed[partition]
            reading.cursor = max(reading.next.values(), default=0)
            self.readings[partition] = reading
            self._opened[partition] = (time.monotonic(), closed)
            found.append(reading)
        return found

    async def _open(self, partition: TopicPartition) -> Opened:
        found = await self._ids.of([partition.topic])
        if partition.topic not in found:
            raise LogUnavailable(gone(partition.topic))
        reading = Reading(partition, found[partition.topic])
        return await self._join(reading)

    async def _join(self, reading: Reading) -> Opened:
        await self._know()
        beginnings = await self._beginnings.find(self._where(), reading)
        await self._ids.require(reading.partition.topic, reading.topic_id)
        return Opened(reading, beginnings)

    async def stop(self) -> None:
        """Ask nothing more."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
