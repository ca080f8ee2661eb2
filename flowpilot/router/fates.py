"""The fates of records that become no record elsewhere: ranges of offsets, gathered between two commits.

A `where` that drops nearly all of a busy topic costs a range for each record that it lets through, and one
record on `<namespace>.trigger-fates` a partition and commit.
"""

from __future__ import annotations

from flowpilot.router.routing import Omitted
from flowpilot_schemas.triggers import Filtered, TriggerFiltered

# Ranges that are worth a commit of their own: some 200 KB as JSON.
MANY = 10_000


class Omissions:
    """What was left out of one partition and is not recorded yet."""

    def __init__(self) -> None:
        self._ranges: dict[Omitted, list[list[int]]] = {}
        self.size = 0

    def add(self, omitted: Omitted, first: int, last: int) -> None:
        """The records from `first` to `last`. Those that follow one another are one range."""
        ranges = self._ranges.setdefault(omitted, [])
        if ranges and ranges[-1][0] <= first <= ranges[-1][1] + 1:
            ranges[-1][1] = max(ranges[-1][1], last)
        else:
            ranges.append([first, last])
            self.size += 1

    def message(self, topic: str, partition: int, topic_id: str) -> TriggerFiltered:
        """All of it as one message."""
        return TriggerFiltered(
            topic=topic,
            topic_id=topic_id,
            partition=partition,
            filtered=[
                Filtered(workflow=workflow, reason=reason, ranges=[(first, last) for first, last in ranges])
                for (workflow, reason), ranges in self._ranges.items()
            ],
        )
