"""The committed positions, one a workflow, topic and partition, on a compacted topic of FlowPilot's own.

A consumer group's offsets expire while no member runs, and there is one for all workflows. Several routers may
write the same key, one of them long after it lost the partition; what it has served it has served, so the
greatest position counts. Compaction keeps the last, so the router that owns the partition writes its own again
over any other.

Anybody who may write to the topic may write a position. One that cannot be true (of a registration that there was
not, or beyond the log's end) is passed over for the greatest that can be; therefore more than one is kept of a key.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import structlog

from flowpilot.ports.log import Fetched, Producer, Reader, Record
from flowpilot.router.errors import RouterStopped
from flowpilot_schemas.codec import BadRecord, decode_object, encode_message, parse
from flowpilot_schemas.triggers import PositionKey, TriggerPosition

_log = structlog.get_logger("flowpilot.router")

# Records at once, and positions kept of a key beside the greatest: what somebody else writes must not fill memory.
CHUNK = 5_000
KEPT = 8
# No topic has so many partitions.
MOST_PARTITIONS = 100_000
_LOGGED = 100

Scope = frozenset[tuple[str, str, str]]


class Positions:
    """What the topic says, as of the last `refresh`."""

    def __init__(self, producer: Producer, reader: Reader, topic: str) -> None:
        self._producer, self._reader, self._topic = producer, reader, topic
        self._scope: Scope | None = None  # None: every key
        self._read = 0
        self._held: dict[PositionKey, list[TriggerPosition]] = {}
        self._bad = 0
        self.others = 0
        """Positions that were read and are not in scope."""

    async def refresh(self, scope: Scope | None = None) -> None:
        """Read what was written since, to the end; not twice at the same time.

        With `scope`, only keys with these (workflow, topic, topic id) need be kept; after one that was not in
        scope before, everything is read again. Raises `LogUnavailable`.
        """
        anew = scope is not None and (self._scope is None or not scope <= self._scope)
        held, position = ({}, 0) if anew else (self._held, self._read)
        kept = scope if anew else self._scope
        _, end = await self._reader.bounds(self._topic, 0)
        while position < end:
            following = min(end, position + CHUNK)
            for record in await self._reader.read(self._topic, 0, position, following):
                try:
                    self._take(record, held, kept)
                except BadRecord as bad:
                    self._skip(record, bad)
            position = following
            if not anew:
                self._read = position
        self._held, self._read, self._scope = held, position, kept

    def of(self, key: PositionKey) -> list[TriggerPosition]:
        """What was written of the key, the greatest first."""
        return sorted(self._held.get(key, ()), key=rank, reverse=True)

    def get(self, key: PositionKey) -> TriggerPosition | None:
        """The greatest position, None if there is none yet."""
        return max(self._held.get(key, ()), key=rank, default=None)

    def last(self, key: PositionKey) -> TriggerPosition | None:
        """The last that was written: what compaction leaves."""
        held = self._held.get(key)
        return held[-1] if held else None

    def known(self) -> list[PositionKey]:
        """All keys that have a position."""
        return list(self._held)

    async def write(
        self, positions: Mapping[PositionKey, TriggerPosition], removed: Collection[PositionKey] = ()
    ) -> None:
        """Write all and await them; what was written of the keys in `removed` before counts no more. Raises
        `LogUnavailable`, `RouterStopped`."""
        records = [Record(self._topic, key.encode(), None, 0) for key in removed]
        records += [Record(self._topic, key.encode(), encode_message(held), 0) for key, held in positions.items()]
        for delivery in await self._producer.send(records) if records else ():
            if delivery.error is not None:
                raise RouterStopped(f"the topic {self._topic} refused a position for good: {delivery.error}")

    def _take(self, record: Fetched, into: dict[PositionKey, list[TriggerPosition]], scope: Scope | None) -> None:
        key = PositionKey.decode(record.key)
        if scope is not None and (key.workflow, key.topic, key.topic_id) not in scope:
            self.others += 1
            return
        if not 0 <= key.partition < MOST_PARTITIONS:
            raise BadRecord("wrong_key", f"no topic has a partition {key.partition}")
        if record.value is None:
            into.pop(key, None)
            return
        found = parse(TriggerPosition, decode_object(record.value))
        held = into.setdefault(key, [])
        if found in held:
            held.remove(found)
        held.append(found)
        if len(held) > KEPT:
            greatest = max(held, key=rank)
            held.remove(next(each for each in held if each is not greatest))

    def _skip(self, record: Fetched, bad: BadRecord) -> None:
        self._bad += 1
        if self._bad <= _LOGGED:
            _log.warning("bad position skipped", offset=record.offset, reason=bad.reason, detail=bad.detail)


def rank(position: TriggerPosition) -> tuple[int, int]:
    """What is compared: a later registration goes before an earlier one, whatever the offsets."""
    return position.registered, position.next_offset
