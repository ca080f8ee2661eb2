"""Catching up: what was on a partition before the cursor, for the workflows that have not come so far."""

from __future__ import annotations

from flowpilot.ports.log import Reader
from flowpilot.router.reading import Reading, Served, serve
from flowpilot.router.routing import Omitted, Routes
from flowpilot_schemas.triggers import ANY_WORKFLOW

# Offsets at once: about as much as a live batch, so that neither keeps the other waiting.
SLICE = 1_000


async def next_slice(where: Routes, reader: Reader, reading: Reading) -> Served:
    """The next slice for those that are behind: one read for all of them. Raises `LogUnavailable`."""
    low, _ = await reader.bounds(*reading.partition)
    for name in reading.behind(where):
        if reading.next[name] < low:
            expired = Omitted(None if name == ANY_WORKFLOW else name, "expired")
            reading.omissions.add(expired, reading.next[name], low - 1)
            reading.next[name] = low
    behind = reading.behind(where)
    start = min((reading.next[name] for name in behind), default=reading.cursor)
    end = min(start + SLICE, reading.cursor)
    records = await reader.read(*reading.partition, start, end)
    return serve(where, reading, behind, records, end)
