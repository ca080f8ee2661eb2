"""Where a workflow begins on a partition: at its committed position, or where its trigger says.

A position beyond the log's end is either forged, or the log has lost its tail (an unclean leader election). The
group's own committed offset tells them apart: it is another record of how far the partition was read, with the
topic's id beside it. The position is read before the end, so an honest one is never beyond it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import structlog

from flowpilot.ports.definitions import Definitions, Registration
from flowpilot.ports.log import LogUnavailable, Offsets, TopicPartition
from flowpilot.router.positions import Positions
from flowpilot.router.reading import Reading
from flowpilot.router.routing import Omitted, Routes
from flowpilot_schemas.definition import TriggerDefinition
from flowpilot_schemas.triggers import ANY_WORKFLOW, FilterReason, PositionKey, TriggerPosition

_log = structlog.get_logger("flowpilot.router")

ReadTo = Callable[[TopicPartition, str], Awaitable[int]]
_LOGGED = 1_000


class TailLost(LogUnavailable):
    """The log ends before what was read of it."""

    def __init__(self, partition: TopicPartition, end: int, read: int) -> None:
        topic, number = partition
        super().__init__(
            f"{topic}/{number} has lost its last records: it was read to offset {read} and ends at {end}. Nothing "
            f"of it is read until `flowpilot trigger rewind {topic} {number} {end}` lets the router go on there"
        )
        self.end = end


class Beginning(NamedTuple):
    """Where a workflow begins; `saved` is what the log has of it, `omitted` what lies before, as [first, last].

    Of what lies before, only that which no earlier registration of the workflow has read is left out now.
    """

    workflow: str
    registered: int
    offset: int
    saved: TriggerPosition | None = None
    omitted: Sequence[tuple[Omitted, int, int]] = ()

    def apply(self, reading: Reading) -> None:
        """Let the workflow join the partition."""
        reading.registered[self.workflow] = self.registered
        reading.next[self.workflow] = self.offset
        reading.saved.pop(self.workflow, None)
        if self.saved is not None:
            reading.saved[self.workflow] = self.saved
        for omitted in self.omitted:
            reading.omissions.add(*omitted)
        _log.info("serving", workflow=self.workflow, partition=reading.partition, offset=self.offset)


class Beginnings:
    """Finds out where workflows begin. `read_to` gives how far the partition of this topic id is known to have
    been read, 0 if that is not known."""

    def __init__(self, offsets: Offsets, definitions: Definitions, positions: Positions, read_to: ReadTo) -> None:
        self._offsets, self._definitions, self._positions = offsets, definitions, positions
        self._read_to = read_to
        self._ignored: set[tuple[PositionKey, TriggerPosition]] = set()  # logged
        self._ends: dict[tuple[TopicPartition, str], int] = {}  # where a log ended when its loss was found

    def newcomers(self, where: Routes, reading: Reading) -> list[str]:
        """The readers of the topic that have no position on the partition yet, and those that were deleted and
        registered again since."""
        return [
            name
            for name in reading.readers(where)
            if name not in reading.next or _is_over(reading.registered[name], self._registration(name))
        ]

    async def find(self, where: Routes, reading: Reading) -> list[Beginning]:
        """Where each newcomer begins. Positions and definitions were read before. Raises `LogUnavailable`,
        `TailLost`."""
        newcomers = self.newcomers(where, reading)
        if not newcomers:
            return []
        low, end = await self._offsets.bounds(*reading.partition)
        found = []
        for name in newcomers:
            registration = self._registration(name)
            last = await self._stored(reading, name, registration, end)
            read = 0 if last is None else last.next_offset
            stored = None if last is None or _is_over(last.registered, registration) else last
            if stored is None:
                triggers = reading.readers(where)[name]
                start = await self._start(reading.partition, triggers, registration.at, low)
                if all(trigger.start == "registration" for trigger in triggers):
                    # What an earlier registration has read came before this one, whatever the records' clocks say.
                    start = max(start, read)
                registered = registration.at
            else:
                start, registered = max(low, read), stored.registered
            left_out: list[tuple[FilterReason, int, int]] = [
                ("expired", read, min(low, start)),
                ("before_start", max(low, read), start),
            ]
            omitted = [
                (Omitted(None if name == ANY_WORKFLOW else name, reason), first, behind - 1)
                for reason, first, behind in left_out
                if first < behind
            ]
            found.append(Beginning(name, registered, start, stored, omitted))
        self._ends.pop((reading.partition, reading.topic_id), None)
        return found

    def _registration(self, name: str) -> Registration:
        return self._definitions.registration(name) or Registration(0)

    async def _stored(
        self, reading: Reading, name: str, registration: Registration, end: int
    ) -> TriggerPosition | None:
        """The greatest position that can be true, be it of an earlier registration; None if there is none."""
        key, place = reading.key(name), (reading.partition, reading.topic_id)
        known = [each for each in self._positions.of(key) if each.registered <= registration.at]
        end = min(end, self._ends.get(place, end))
        if any(each.next_offset > end for each in known):
            read = await self._read_to(*place)
            if read > end:
                self._ends[place] = end
                raise TailLost(reading.partition, end, read)
        true = [each for each in known if each.next_offset <= end]
        for each in self._positions.of(key):
            if each not in true:
                self._ignore(key, each, end)
        return true[0] if true else None

    def _ignore(self, key: PositionKey, position: TriggerPosition, end: int) -> None:
        if (key, position) in self._ignored or len(self._ignored) >= _LOGGED:
            return
        self._ignored.add((key, position))
        _log.warning(
            "a position that cannot be true is ignored",
            key=key.encode().decode(),
            next_offset=position.next_offset,
            registered=position.registered,
            end=end,
            remedy="see who may write to the positions topic; `flowpilot doctor` lists such positions",
        )

    async def _start(
        self, partition: TopicPartition, triggers: Sequence[TriggerDefinition], registered: int, low: int
    ) -> int:
        """Where the earliest of a workflow's triggers on the topic begins."""
        starts = []
        for trigger in triggers:
            if trigger.start == "earliest":
                return low
            at = registered if trigger.start_at is None else trigger.start_at
            starts.append(await self._offsets.offset_at(*partition, at))
        return max(low, min(starts))


def _is_over(registered: int, registration: Registration) -> bool:
    """Whether the workflow was deleted since."""
    return registration.deleted is not None and registered < registration.deleted
