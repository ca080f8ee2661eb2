"""What a worker knows of one partition of its queue: what waits, what is finished, what is committed."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from flowpilot.ports.log import Fetched, TopicPartition

if TYPE_CHECKING:
    from flowpilot.worker.attempt import Attempt


class Entry:
    """One record. Finished: it need not be delivered again."""

    __slots__ = ("attempt", "finished", "offset")

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.finished = False
        self.attempt: Attempt | None = None


class AssignedPartition:
    """One assignment of one partition.

    Records are taken in order, and at most `window` beyond the committed position: so a worker that is killed
    leaves what it ran among the first `window` records that its successor reads. Those are suspects, if they
    were there at the assignment (`end` is the log's end then; None: not known).
    """

    def __init__(self, tp: TopicPartition, window: int, end: int | None) -> None:
        self.tp = tp
        self.alive = True
        """Whether its records may be begun; False once it is being revoked."""
        self.gone = False
        """Whether another member may have it."""
        self.waiting: deque[Fetched] = deque()
        self.blocked = False
        self.suspects: list[Attempt] = []
        """Their start is acknowledged; they run once it is committed."""
        self.position: int | None = None
        """The next offset to commit."""
        self._window = window
        self._end = end
        self._suspects_left = window
        self._taken: deque[Entry] = deque()
        self._count_taken = self._count_finished = self._count_committed = 0

    @property
    def is_full(self) -> bool:
        """Whether nothing may be taken before more is committed."""
        return self._count_taken - self._count_committed >= self._window

    def take(self) -> tuple[Fetched, Entry, bool]:
        """The next record that waits, and whether it is a suspect."""
        record = self.waiting.popleft()
        entry = Entry(record.offset)
        self._taken.append(entry)
        self._count_taken += 1
        suspect = self._suspects_left > 0 and (self._end is None or record.offset < self._end)
        if suspect:
            self._suspects_left -= 1
        return record, entry, suspect

    def finish(self, entry: Entry) -> None:
        """The record is finished; the position moves over all that are in a row."""
        entry.finished = True
        entry.attempt = None
        while self._taken and self._taken[0].finished:
            self.position = self._taken.popleft().offset + 1
            self._count_finished += 1

    def oldest(self) -> Entry | None:
        """The first record taken that is not finished: it holds back the position."""
        return self._taken[0] if self._taken else None

    def unfinished(self) -> list[Entry]:
        """All records taken that are not finished."""
        return [entry for entry in self._taken if not entry.finished]

    @property
    def to_commit(self) -> tuple[int, int] | None:
        """(offset, mark for `committed`), or None if there is nothing new."""
        if self.position is None or self._count_finished == self._count_committed:
            return None
        return self.position, self._count_finished

    def committed(self, mark: int) -> None:
        """What `to_commit` gave with `mark` is committed."""
        self._count_committed = max(self._count_committed, mark)
