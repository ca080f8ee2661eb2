"""The members topic behind the `Members` port, on whatever log there is.

Sessions are judged by broker time alone. The broker's current time is learned by writing a record (key `clock`,
null value, which compaction removes) and reading its LogAppendTime. A reader that may not write takes the newest
append time of the topic, which is right as long as any process announces.

Anybody who may write to the topic can write anything. Therefore only the records of the longest session are read,
the newest first, up to a number of records and bytes; what is no announcement is skipped.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from flowpilot.ports.log import Fetched, Producer, Reader, Record
from flowpilot.ports.members import Announced, LiveMembers
from flowpilot_schemas.codec import BadRecord, decode_object, parse
from flowpilot_schemas.members import CLOCK_KEY, LONGEST_SESSION_MS, EngineAnnounced, WorkerAnnounced
from flowpilot_schemas.topics import MEMBER_MESSAGE, MIB

_log = structlog.get_logger("flowpilot.members")

# What one look reads at most: what some 800 processes write in the longest session, at the default interval.
MOST_RECORDS = 10_000
MOST_BYTES = 64 * MIB
MOST_SECONDS = 5.0
_CHUNK = 250


class LogMembers:
    """See `flowpilot.ports.members.Members`. `topic` has one partition and is compacted.

    `producer`: for the broker's current time; without one, the newest append time of the topic counts as now.
    """

    def __init__(self, reader: Reader, topic: str, producer: Producer | None = None) -> None:
        self._reader, self._topic, self._producer = reader, topic, producer

    async def live(self) -> LiveMembers:
        """See the port."""
        now, end = await self._clock()
        start = await self._reader.offset_at(self._topic, 0, now - LONGEST_SESSION_MS)
        look = _Look(now)
        deadline = time.monotonic() + MOST_SECONDS
        lowest = max(start, end - MOST_RECORDS)
        while end > lowest and look.size < MOST_BYTES and time.monotonic() < deadline:
            begin = max(lowest, end - _CHUNK)
            for record in reversed(await self._reader.read(self._topic, 0, begin, end)):
                look.take(record)
            end = begin
            await asyncio.sleep(0)  # whoever shares the loop has a turn
        if look.skipped:
            _log.warning("bad records skipped", topic=self._topic, records=look.skipped, first=look.first_skipped)
        return look.found(is_complete=end <= start)

    async def _clock(self) -> tuple[int, int]:
        """The broker's time now, as exactly as can be known, and the log's end."""
        if self._producer is not None:
            [delivery] = await self._producer.send([Record(self._topic, CLOCK_KEY, None, partition=0)])
            if delivery.error is None:
                for record in await self._reader.read(self._topic, 0, delivery.offset, delivery.offset + 1):
                    return record.timestamp, delivery.offset + 1
        low, end = await self._reader.bounds(self._topic, 0)
        until = end
        while until > low:
            begin = max(low, until - _CHUNK)
            if found := await self._reader.read(self._topic, 0, begin, until):
                return found[-1].timestamp, end
            until = begin
        return 0, end


class _Look:
    """What one reading found, the newest record of a key first."""

    def __init__(self, now: int) -> None:
        self._now = now
        self._known: set[bytes] = set()
        self._workers: dict[str, WorkerAnnounced] = {}
        self._engines: dict[str, EngineAnnounced] = {}
        self.size = 0
        self.skipped = 0
        self.first_skipped = ""

    def take(self, record: Fetched) -> None:
        """Take a record that is older than all before."""
        self.size += len(record.key or b"") + len(record.value or b"")
        self.size += sum(len(name) + len(value) for name, value in record.headers)
        key = record.key
        if key is None or key == CLOCK_KEY or key in self._known or len(key) > MEMBER_MESSAGE:
            return
        try:
            announced = None if record.value is None else _announced(key, record.value)
        except BadRecord as bad:
            # An older announcement under the key counts, as long as its session lasts.
            self.skipped += 1
            self.first_skipped = f"offset {record.offset}: {bad.detail}"
            return
        self._known.add(key)
        if announced is None or self._now - record.timestamp > announced.session_ms:
            return
        if isinstance(announced, WorkerAnnounced):
            self._workers[announced.worker] = announced
        else:
            self._engines[announced.engine] = announced

    def found(self, *, is_complete: bool) -> LiveMembers:
        """All that was taken."""
        workers = [self._workers[name] for name in sorted(self._workers)]
        engines = [self._engines[name] for name in sorted(self._engines)]
        return LiveMembers(workers, engines, self._now, is_complete)


def _announced(key: bytes, value: bytes) -> Announced:
    """The announcement in a record. Raises `BadRecord`."""
    if len(value) > MEMBER_MESSAGE:
        raise BadRecord("too_large", f"an announcement has at most {MEMBER_MESSAGE} bytes, not {len(value)}")
    content = decode_object(value)
    kind = content.get("type")
    announced: Announced
    if kind == "worker.announced":
        announced = parse(WorkerAnnounced, content)
    elif kind == "engine.announced":
        announced = parse(EngineAnnounced, content)
    else:
        raise BadRecord("wrong_shape", "it is of no type that is announced")
    if announced.key != key:
        raise BadRecord("wrong_key", "the key names another process than the value")
    return announced
