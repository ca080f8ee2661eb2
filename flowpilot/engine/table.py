"""One partition's table in memory: what recovery keeps of the changelog, and what the engine puts there.

Every changelog record carries (`src`, epoch): the offset of the event it was folded from, and the claim under
which it was written. A writer that was replaced may append late, so the last record of a key is not always the
right one: the highest (`src`, epoch) is, and among equals the later (design, section 6, rule 1). Only where a
record was given up there is another rule: what its owner put there bars what earlier claims write, however high;
unless a later claim was there first, whose owner may have built on what this one bars.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from flowpilot.ports.log import Fetched, Headers

WATERMARK_KEY = b"wm"
HEADER_SRC = "fp-src"
HEADER_EPOCH = "fp-epoch"
HEADER_BARS = "fp-bars"


class Entry(NamedTuple):
    """What a key holds: `value` None is a tombstone, kept only until recovery is over.

    `bars`: no record of an earlier claim wins over it, whose owner may have folded what this one's gave up.
    """

    value: bytes | None
    src: int
    epoch: int
    bars: bool = False


class PartitionTable:
    """The entries of one partition, and how far its changelog is known."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.next_changelog_offset = 0
        self.highest_epoch = 0
        self.claimed_at = 0
        # Whether records before `next_changelog_offset` were left out: a next claim has to read from the start.
        self.passed_over = False
        self._entries: dict[bytes, Entry] = {}
        self._overtaken: set[bytes] = set()
        self._barring: dict[bytes, Entry] = {}  # the last of each key; few, and kept while the table is
        # The claim under which tombstones were last forgotten: what is older and not known was removed by it.
        self._settled_epoch = -1

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, record: Fetched) -> None:
        """Take one changelog record, in offset order, in recovery or from a gap.

        `claimed_at` is the time (ms) of the latest sign of an owner at work: a watermark record's by the
        broker's clock, or this process's own checks.
        """
        self.next_changelog_offset = max(self.next_changelog_offset, record.offset + 1)
        if record.key is None:
            return
        entry, key = entry_of(record), record.key
        if key == WATERMARK_KEY:
            self.claimed_at = record.timestamp
        is_late = entry.epoch < self.highest_epoch
        self.highest_epoch = max(self.highest_epoch, entry.epoch)
        known, barring = self._entries.get(key), self._barring.get(key)
        if barring is not None and entry.epoch < barring.epoch:
            self._entries.setdefault(key, barring)
            self._overtaken.add(key)
        elif known is None and entry.value is not None and self._was_removed(entry):
            self._entries[key] = Entry(None, entry.src, entry.epoch)
            self._overtaken.add(key)
        elif known is None or _wins(entry, known, is_late=is_late):
            self._entries[key] = entry
            if known is None and is_late:
                self._overtaken.add(key)  # it may be compaction that left it alone (rule 8)
            else:
                self._overtaken.discard(key)
            if entry.bars:
                self._bar(key, entry)
        else:
            self._overtaken.add(key)

    def _bar(self, key: bytes, entry: Entry) -> None:
        self._barring[key] = entry._replace(value=None)

    def _was_removed(self, entry: Entry) -> bool:
        """Whether an unknown key's record is a late one of before the claim under which its key was removed."""
        watermark = self._entries.get(WATERMARK_KEY)
        return entry.epoch < self._settled_epoch and watermark is not None and entry.src <= watermark.src

    def overtaken(self) -> list[tuple[bytes, Entry]]:
        """The winners that are not the last record of their key: they have to be written again."""
        return [(key, self._entries[key]) for key in sorted(self._overtaken)]

    def settle(self) -> None:
        """Recovery and repair are over: forget the tombstones."""
        self._overtaken.clear()
        self._settled_epoch = self.highest_epoch
        for key in [key for key, entry in self._entries.items() if entry.value is None]:
            del self._entries[key]

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        entry = self._entries.get(key)
        return entry.value if entry is not None else None

    def entry(self, key: bytes) -> Entry | None:
        """The entry of `key`, or None."""
        return self._entries.get(key)

    def barring(self, key: bytes) -> Entry | None:
        """What bars earlier claims' records of `key`, as if it were a tombstone; None if nothing does."""
        return self._barring.get(key)

    def once_more(self, key: bytes, entry: Entry, epoch: int) -> Entry:
        """`entry` as it is written over a foreign record of `key`, which may outlive in the log what bars it."""
        return entry._replace(epoch=epoch, bars=entry.bars or key in self._barring)

    def put(self, key: bytes, entry: Entry) -> None:
        """What was acknowledged by the changelog becomes visible; a tombstone removes."""
        if entry.bars:
            self._bar(key, entry)
        if entry.value is None:
            self._entries.pop(key, None)
        else:
            # An encoder's bytes keep its whole buffer of some KiB; a copy has the size of the value.
            self._entries[key] = Entry(bytes(memoryview(entry.value)), entry.src, entry.epoch)

    def items(self) -> Iterator[tuple[bytes, Entry]]:
        """All entries, in no order that matters."""
        return iter(self._entries.items())


def _wins(entry: Entry, known: Entry, *, is_late: bool) -> bool:
    """Whether `entry` replaces `known`, which precedes it. `is_late`: so does a claim newer than the entry's."""
    if entry.bars:  # of the same `src` they are not the same: what is barred has folded the record
        return not is_late or entry.src > known.src
    return (entry.src, entry.epoch) >= (known.src, known.epoch)


def headers_of(src: int, epoch: int, *, bars: bool = False) -> Headers:
    """The headers of a changelog record."""
    headers: Headers = ((HEADER_SRC, b"%d" % src), (HEADER_EPOCH, b"%d" % epoch))
    return (*headers, (HEADER_BARS, b"1")) if bars else headers


def entry_of(record: Fetched) -> Entry:
    """The entry in a changelog record. Without its headers it is nobody's: it loses against any other."""
    src = epoch = -1
    bars = False
    try:
        for name, value in record.headers:
            if name == HEADER_SRC:
                src = int(value)
            elif name == HEADER_EPOCH:
                epoch = int(value)
            elif name == HEADER_BARS:
                bars = True
    except ValueError:  # headers of somebody else's
        return Entry(record.value, -1, -1)
    return Entry(record.value, src, epoch, bars)
