"""The committed positions, one a workflow, topic and partition, on a compacted topic of FlowPilot's own.

A consumer group's offsets expire while no member runs, and there is one for all workflows. Several routers may
write the same key, one of them long after it lost the partition; what it has served it has served, so the
greatest position counts. Compaction keeps the last, so whoever has the partition now writes a lesser one over.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from flowpilot.ports.log import Fetched, Producer, Reader, Record
from flowpilot.router.errors import RouterStopped
from flowpilot_schemas.codec import BadRecord, decode_object, encode_message, parse
from flowpilot_schemas.triggers import PositionKey, TriggerPosition

_log = structlog.get_logger("flowpilot.router")


class Positions:
    """What the topic says, as of the last `refresh`."""

    def __init__(self, producer: Producer, reader: Reader, topic: str) -> None:
        self._producer, self._reader, self._topic = producer, reader, topic
        self._read = 0
        self._greatest: dict[PositionKey, TriggerPosition] = {}
        self._last: dict[PositionKey, TriggerPosition] = {}

    async def refresh(self) -> None:
        """Read what was written since, to the end. Raises `LogUnavailable`."""
        _, end = await self._reader.bounds(self._topic, 0)
        for record in await self._reader.read(self._topic, 0, self._read, end):
            try:
                self._take(record)
            except BadRecord as bad:
                _log.warning("bad position skipped", offset=record.offset, reason=bad.reason, detail=bad.detail)
        self._read = end

    def get(self, key: PositionKey) -> TriggerPosition | None:
        """The position, None if there is none yet."""
        return self._greatest.get(key)

    def is_outdated(self, key: PositionKey) -> bool:
        """Whether the key's last record is not its greatest, and has to be written over."""
        return self._last.get(key) != self._greatest.get(key)

    async def write(self, positions: Mapping[PositionKey, TriggerPosition]) -> None:
        """Write all and await them. Raises `LogUnavailable`, `RouterStopped`."""
        records = [Record(self._topic, key.encode(), encode_message(held), 0) for key, held in positions.items()]
        for delivery in await self._producer.send(records) if records else ():
            if delivery.error is not None:
                raise RouterStopped(f"the topic {self._topic} refused a position for good: {delivery.error}")

    def _take(self, record: Fetched) -> None:
        key = PositionKey.decode(record.key)
        if record.value is None:
            self._greatest.pop(key, None)
            self._last.pop(key, None)
            return
        found = self._last[key] = parse(TriggerPosition, decode_object(record.value))
        held = self._greatest.get(key)
        if held is None or _rank(found) > _rank(held):
            self._greatest[key] = found


def _rank(position: TriggerPosition) -> tuple[int, int]:
    return position.registered, position.next_offset
