"""Appending to the changelog: acknowledged, and surely by the only writer (rules 3 and 4).

A partition of the changelog has one lawful writer, so its delivery offsets are consecutive. A hole in them is
somebody else's record: of a newer owner, then this process ends; or of an older one that was slow, then its
keys are written again with what this owner holds, whether the foreign record is behind or ahead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from flowpilot.engine.errors import EngineHalt
from flowpilot.engine.owned import OwnedPartition, Watermark
from flowpilot.engine.table import WATERMARK_KEY, Entry, entry_of, headers_of
from flowpilot.ports.log import Delivery, Fetched, Producer, Reader, Record

Entries = Mapping[bytes, Entry]

log = structlog.get_logger()


class Changelog:
    """The changelog topic of the table, for the partitions that this process owns."""

    def __init__(self, topic: str, producer: Producer, reader: Reader) -> None:
        self.topic = topic
        self._producer = producer
        self._reader = reader

    async def send(self, partition: int, entries: Entries) -> list[int]:
        """Append to one partition; the offsets. Raises `EngineHalt` if the broker refuses one."""
        return _offsets(await self._producer.send(self._records(partition, entries)))

    async def read(self, partition: int, start: int, end: int) -> list[Fetched]:
        """The records with start ≤ offset < end."""
        return await self._reader.read(self.topic, partition, start, end)

    async def append(self, batches: Sequence[tuple[OwnedPartition, Entries]]) -> None:
        """Append what each partition's owner writes, in one go; return when all of it stands unchallenged."""
        records = [record for owned, entries in batches for record in self._records(owned.partition, entries)]
        offsets = _offsets(await self._producer.send(records))
        taken = 0
        for owned, entries in batches:
            mine = offsets[taken : taken + len(entries)]
            taken += len(entries)
            if mine:
                await self._settle(owned, entries, mine, mine[-1] + 1)

    async def check_end(self, owned: OwnedPartition) -> None:
        """The gap check of an idle partition, against the log's end."""
        _, end = await self._reader.bounds(self.topic, owned.partition)
        await self._settle(owned, {}, [], end)

    async def _settle(self, owned: OwnedPartition, written: Entries, mine: list[int], end: int) -> None:
        while True:
            start = owned.table.next_changelog_offset
            if end < start or (mine and mine[0] < start):
                raise EngineHalt(
                    f"changelog partition {owned.partition} ends before offset {start}, up to which this process "
                    "knows it: acknowledged records are gone, so this process ends without acknowledging anything"
                )
            if end - start <= len(mine):
                owned.table.next_changelog_offset = end
                return
            known = frozenset(mine)
            foreign = [item for item in await self.read(owned.partition, start, end) if item.offset not in known]
            if len(foreign) + len(mine) < end - start:
                raise EngineHalt(
                    f"changelog partition {owned.partition} was compacted between offsets {start} and {end}, which "
                    "this process had not looked at: it stood still for longer than the compaction lag, and there "
                    "may be a newer owner"
                )
            owned.table.next_changelog_offset = end
            again = _answer(owned, written, foreign)
            if not again:
                return
            mine = await self.send(owned.partition, again)
            end = mine[-1] + 1

    def _records(self, partition: int, entries: Entries) -> list[Record]:
        return [
            Record(self.topic, key, entry.value, partition, headers_of(entry.src, entry.epoch, bars=entry.bars))
            for key, entry in entries.items()
        ]


def _answer(owned: OwnedPartition, written: Entries, foreign: Sequence[Fetched]) -> dict[bytes, Entry]:
    """What this owner writes over foreign records. Raises `EngineHalt` if one is of a newer owner."""
    again: dict[bytes, Entry] = {}
    for record in foreign:
        entry, key = entry_of(record), record.key
        if entry.epoch > owned.epoch or (
            entry.epoch == owned.epoch
            and key == WATERMARK_KEY
            and Watermark.of(entry.value).nonce != owned.watermark.nonce
        ):
            raise EngineHalt(
                f"partition {owned.partition} has a newer owner (claim {entry.epoch}, this process holds "
                f"{owned.epoch}): this process ends without acknowledging anything"
            )
        if key is None:
            continue
        mine = owned.durable(key, written)
        if mine is not None:
            again[key] = owned.table.once_more(key, mine, owned.epoch)
        elif entry.src <= owned.watermark.offset:
            again[key] = Entry(None, entry.src, owned.epoch)
        else:  # ahead of this owner, who will come to the same; whoever recovers weighs it
            owned.table.passed_over = True
    if foreign:
        log.warning(
            "late records of an earlier owner were overwritten",
            partition=owned.partition,
            records=len(foreign),
            keys=len(again),
        )
    return again


def _offsets(deliveries: Sequence[Delivery]) -> list[int]:
    for delivery in deliveries:
        if delivery.error is not None:
            raise EngineHalt(f"the changelog refused a record of partition {delivery.partition}: {delivery.error}")
    return [delivery.offset for delivery in deliveries]
