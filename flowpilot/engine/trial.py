"""The first records after a claim: a record that ends the process every time has to become known.

What is in hand is written down first, in the watermark record; the watermark at the batch's end takes it back.
A trial that stays there names the records over which a process ended: they are taken one by one from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import NamedTuple

from flowpilot.engine.owned import OwnedPartition
from flowpilot.engine.reading import is_folded
from flowpilot.engine.rule_sets import is_raise
from flowpilot.ports.log import Fetched

# A record in hand at this many crashes is not folded any more.
CRASHES = 3


class Fate(Enum):
    """What becomes of records in hand."""

    FOLDED = "folded"
    GIVEN_UP = "given up"
    # Giving it up ended processes too: to read the record may be what ends them.
    LEFT_UNREAD = "left unread"


class Share(NamedTuple):
    """Records that are taken in hand together, and at how many crashes they were in hand."""

    records: list[Fetched]
    crashes: int = 0


def shares(owned: OwnedPartition, records: Iterable[Fetched]) -> Iterator[Share]:
    """All of `records`, in order; each that was in hand at a crash is alone."""
    together: list[Fetched] = []
    for record in records:
        crashes = owned.watermark.crashes(record.offset)
        if not crashes:
            together.append(record)
            continue
        if together:
            yield Share(together)
            together = []
        yield Share([record], crashes)
    if together:
        yield Share(together)


def fate(owned: OwnedPartition, share: Share) -> Fate:
    """What becomes of the share. It reads the record: the share has to be written down before."""
    if share.crashes >= 2 * CRASHES:
        return Fate.LEFT_UNREAD
    if share.crashes >= CRASHES and not (_is_half_done(owned, share.records[0]) or is_raise(share.records[0])):
        return Fate.GIVEN_UP
    return Fate.FOLDED


def _is_half_done(owned: OwnedPartition, record: Fetched) -> bool:
    """Whether the record's state has landed, though not its whole batch: then it is not what ended the process."""
    return record.offset > owned.recovered_watermark and is_folded(owned.table, record)
