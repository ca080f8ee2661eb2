"""Where a workflow begins on a partition: at its committed position, or where its trigger says."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from flowpilot.ports.definitions import Definitions, Registration
from flowpilot.ports.log import Reader, TopicPartition
from flowpilot.router.positions import Positions
from flowpilot.router.reading import Reading
from flowpilot.router.routing import Omitted, Routes
from flowpilot_schemas.definition import TriggerDefinition
from flowpilot_schemas.triggers import ANY_WORKFLOW, FilterReason

_log = structlog.get_logger("flowpilot.router")


class Opening:
    """Opens partitions and lets workflows join those that are open. Methods raise `LogUnavailable`."""

    def __init__(self, reader: Reader, definitions: Definitions, positions: Positions) -> None:
        self._reader, self._definitions, self._positions = reader, definitions, positions

    async def open(self, where: Routes, partition: TopicPartition, topic_id: str) -> Reading:
        """The partition, its cursor at the position of whoever came furthest: the others catch up with it."""
        reading = Reading(partition, topic_id)
        await self.join(where, reading)
        reading.cursor = max(reading.next.values(), default=0)
        return reading

    async def join(self, where: Routes, reading: Reading) -> None:
        """Give each reader of the topic that has none yet its position, and a new one to a workflow that was
        deleted and registered again."""
        newcomers = []
        for name, triggers in reading.readers(where).items():
            registration = self._definitions.registration(name) or Registration(0)
            if name not in reading.next or _is_over(reading.registered[name], registration):
                newcomers.append((name, triggers, registration))
        if not newcomers:
            return
        low, end = await self._reader.bounds(*reading.partition)
        for name, triggers, registration in newcomers:
            stored = self._positions.get(reading.key(name))
            reason: FilterReason
            if stored is None or _is_over(stored.registered, registration):
                reading.saved.pop(name, None)
                reading.registered[name] = registration.at
                asked, reason = low, "before_start"
                start = await self._start(reading.partition, triggers, registration.at, low)
            else:
                reading.saved[name] = stored
                reading.registered[name] = stored.registered
                asked, reason = stored.next_offset, "expired"
                start = max(low, min(asked, end))
            if asked < start:
                reading.omissions.add(Omitted(None if name == ANY_WORKFLOW else name, reason), asked, start - 1)
            elif asked > start:
                _log.warning("the log lost records that were served", topic=reading.partition.topic, end=end)
            reading.next[name] = start
            _log.info("serving", workflow=name, partition=reading.partition, offset=start)

    async def _start(
        self, partition: TopicPartition, triggers: Sequence[TriggerDefinition], registered: int, low: int
    ) -> int:
        """Where the earliest of a workflow's triggers on the topic begins."""
        starts = []
        for trigger in triggers:
            if trigger.start == "earliest":
                return low
            at = registered if trigger.start_at is None else trigger.start_at
            starts.append(await self._reader.offset_at(*partition, at))
        return max(low, min(starts))


def _is_over(registered: int, registration: Registration) -> bool:
    """Whether the workflow was deleted since."""
    return registration.deleted is not None and registered < registration.deleted
