"""Catching up: what was on a partition before the cursor, for the workflows that have not come so far.

One slice is read at a time, beside what is live: a partition that does not answer delays only those that catch up,
and waits longer from time to time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from flowpilot.ports.log import LogUnavailable, Reader
from flowpilot.router.identity import IdentityChanged, TopicIds
from flowpilot.router.partitions import Partitions
from flowpilot.router.reading import Reading, Served, serve
from flowpilot.router.routing import Omitted, Routes
from flowpilot_schemas.triggers import ANY_WORKFLOW

_log = structlog.get_logger("flowpilot.router")

# Offsets at once: about as much as a live batch, so that neither keeps the other waiting.
SLICE = 1_000
_WAIT = 0.05  # seconds: a slice that takes longer is waited for beside what is live


class Backfill:
    """`refresh` reads the definitions, `where` gives the routes that follow from them."""

    def __init__(
        self,
        reader: Reader,
        ids: TopicIds,
        partitions: Partitions,
        refresh: Callable[[], Awaitable[None]],
        where: Callable[[], Routes],
    ) -> None:
        self._reader, self._ids, self._partitions = reader, ids, partitions
        self._refresh, self._where = refresh, where
        self._slice: tuple[Reading, asyncio.Task[Served]] | None = None

    @property
    def is_reading(self) -> bool:
        """Whether a slice is on its way."""
        return self._slice is not None

    def due(self) -> list[Reading]:
        """The partitions that some workflow has yet to catch up with, but for those that are put off."""
        now, where = time.monotonic(), self._where()
        return [
            each for each in self._partitions.readings.values() if each.catch_up_due <= now and each.behind(where)
        ]

    async def next(self, due: list[Reading]) -> Served | None:
        """One slice of one partition, the least recently served first, if it is there in a moment."""
        if self._slice is None:
            reading = min(due, key=lambda each: each.caught_up_at)
            reading.caught_up_at = time.monotonic()
            self._slice = reading, asyncio.ensure_future(self._read(reading))
        reading, task = self._slice
        await asyncio.wait({task}, timeout=_WAIT)
        if not task.done():
            return None
        self._slice = None
        if reading is not self._partitions.readings.get(reading.partition):
            task.exception()
            return None  # it was revoked or closed meanwhile
        try:
            served = task.result()
        except IdentityChanged as error:
            self._partitions.close(reading.partition, str(error))
        except LogUnavailable as error:
            self.put_off(reading, error)
        else:
            reading.catch_up_tries = 0
            return served if served.is_current else None
        return None

    def put_off(self, reading: Reading, error: LogUnavailable) -> None:
        """A slice could not be read, or what it starts was not taken."""
        if reading.catch_up_tries in (1, 10) or reading.catch_up_tries % 100 == 0:
            _log.warning("a slice cannot be read yet", partition=reading.partition, error=str(error))
        reading.put_off_catching_up(time.monotonic())

    def stop(self) -> None:
        """Read no more."""
        if self._slice is not None:
            self._slice[1].cancel()

    async def _read(self, reading: Reading) -> Served:
        """The next slice for those that are behind at present: one read for all of them."""
        # Another router may have brought the cursor here, past records that are newer than what this one knows.
        await self._refresh()
        low, _ = await self._reader.bounds(*reading.partition)
        cursor = reading.cursor
        places = {name: reading.place(name) for name in self._partitions.behind(reading)}
        start = min((max(low, place[1]) for place in places.values() if place is not None), default=cursor)
        end = min(start + SLICE, cursor)
        records = await self._reader.read(*reading.partition, start, end)
        first = records[0].offset if records else end
        if first > start:  # compaction left a gap, or retention came in between
            low = max(low, min(first, (await self._reader.bounds(*reading.partition))[0]))
        await self._ids.require(reading.partition.topic, reading.topic_id)
        workflows = [name for name in self._partitions.behind(reading) if places.get(name) == reading.place(name)]
        served = serve(self._where(), reading, workflows, records, max(end, low))
        for name in workflows:
            if reading.next[name] < low:
                expired = Omitted(None if name == ANY_WORKFLOW else name, "expired")
                served.ranges.append((expired, reading.next[name], low - 1))
        return served
