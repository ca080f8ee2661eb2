"""One partition as a router reads it: the live cursor, and each workflow's own position.

A workflow whose position is the cursor is live: it is served from what the group delivers. One that is behind
(new on the topic, or left behind by a crash) is served from slices read beside it, until it has caught up.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from flowpilot.ports.log import Fetched, Record, TopicPartition
from flowpilot.router.fates import Omissions
from flowpilot.router.routing import Omitted, Routes, route
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.definition import TriggerDefinition
from flowpilot_schemas.messages import DeadLetter, StartExecution
from flowpilot_schemas.triggers import PositionKey, TriggerPosition

LONGEST = 1.0
"""Seconds that the records of one partition are routed before others have their turn: one that is nearly too costly
to check takes a tenth of a second, and a member that does not poll for a minute loses its partitions."""


@dataclass(slots=True)
class Reading:
    """`next`: by workflow, the first offset whose fate is not decided for it; `registered`: of which
    registration (broker time in ms). `saved` is what the log has of both, `committed` what the group has."""

    partition: TopicPartition
    topic_id: str
    cursor: int = 0
    next: dict[str, int] = field(default_factory=dict)
    registered: dict[str, int] = field(default_factory=dict)
    saved: dict[str, TriggerPosition] = field(default_factory=dict)
    committed: int | None = None
    omissions: Omissions = field(default_factory=Omissions)
    caught_up_at: float = 0.0  # monotonic seconds, as is the next
    catch_up_due: float = 0.0
    catch_up_tries: int = 0
    disputed: set[str] = field(default_factory=set)
    """Workflows whose key has a position of somebody else's."""

    def key(self, workflow: str) -> PositionKey:
        """The key of a workflow's position."""
        return PositionKey(workflow, *self.partition, self.topic_id)

    def readers(self, where: Routes) -> dict[str, list[TriggerDefinition]]:
        """The workflows that read the topic."""
        return where.readers.get(self.partition.topic, {})

    def behind(self, where: Routes) -> list[str]:
        """Those that are not at the cursor yet."""
        return [name for name in self.readers(where) if self.next.get(name, self.cursor) < self.cursor]

    def place(self, workflow: str) -> tuple[int, int] | None:
        """A workflow's registration and position, None if it is not on the partition."""
        return (self.registered[workflow], self.next[workflow]) if workflow in self.next else None

    def put_off_catching_up(self, now: float) -> None:
        """A slice could not be read: wait longer from time to time, up to five seconds."""
        self.catch_up_due = now + min(0.1 * 2.0 ** min(self.catch_up_tries, 16), 5.0)
        self.catch_up_tries += 1

    def keep_only(self, readers: Collection[str]) -> None:
        """Forget the workflows that read the topic no more; their positions stay in the log."""
        for name in [name for name in self.next if name not in readers]:
            self.leave(name)

    def leave(self, workflow: str) -> None:
        """Forget where the workflow is."""
        for kept in (self.next, self.registered, self.saved):
            kept.pop(workflow, None)

    def omissions_as(self, topic: str) -> Record:
        """What was left out, as a record of `topic`."""
        message = self.omissions.message(*self.partition, self.topic_id)
        return Record(topic, f"{self.partition.topic}/{self.partition.partition}".encode(), encode_message(message))

    def unsaved(self) -> dict[str, TriggerPosition]:
        """The positions that the log does not have."""
        found = {}
        for name, offset in self.next.items():
            saved, registered = self.saved.get(name), self.registered[name]
            if saved is None or (saved.next_offset, saved.registered) != (offset, registered):
                found[name] = TriggerPosition(next_offset=offset, registered=registered)
        return found


class Served(NamedTuple):
    """What a run of records up to `end` means for workflows; nothing is changed before `done`.

    `before`: by workflow, its registration and position when this was made; `ranges`: what was left out beside
    the records, as [first, last].
    """

    reading: Reading
    before: dict[str, tuple[int, int]]
    end: int
    outcomes: list[tuple[Fetched, StartExecution | DeadLetter]]
    omitted: list[tuple[Omitted, int]]
    ranges: list[tuple[Omitted, int, int]]

    @property
    def is_current(self) -> bool:
        """Whether its workflows stand where they stood: one may have left, or joined anew."""
        return all(self.reading.place(name) == place for name, place in self.before.items())

    def done(self) -> None:
        """The outcomes are acknowledged: the positions move."""
        reading = self.reading
        for omitted, offset in self.omitted:
            reading.omissions.add(omitted, offset, offset)
        for left_out in self.ranges:
            reading.omissions.add(*left_out)
        for name in self.before:
            reading.next[name] = max(reading.next[name], self.end)


def serve(
    where: Routes, reading: Reading, workflows: Collection[str], records: Iterable[Fetched], end: int
) -> Served:
    """Route records before `end` to those of the topic's readers in `workflows` that had not come so far yet.

    After `LONGEST` it ends before the next record, wherever that is: `Served.end` says how far it came.
    """
    before = {name: (reading.registered[name], reading.next[name]) for name in workflows}
    served = Served(reading, before, end, [], [], [])
    if not workflows:
        return served
    all_of_them = before.keys() == reading.readers(where).keys()
    settled = max(reading.next[name] for name in workflows)
    begun = time.monotonic()
    for number, record in enumerate(records):
        if number and time.monotonic() - begun > LONGEST:
            return served._replace(end=record.offset)
        only = None
        if record.offset < settled or not all_of_them:
            only = {name for name in workflows if reading.next[name] <= record.offset}
            if not only:
                continue
        for outcome in route(where, record, reading.topic_id, only):
            if isinstance(outcome, Omitted):
                served.omitted.append((outcome, record.offset))
            else:
                served.outcomes.append((record, outcome))
    return served
