"""Consumer groups of the memory broker: sticky, cooperative, moved along by the members' own polls."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from flowpilot.ports.log import Fetched, PartitionUnavailable, Rebalanced, TopicPartition

if TYPE_CHECKING:
    from flowpilot.adapters.memory.log import MemoryLog


async def ignore_rebalance(_: Sequence[TopicPartition]) -> None:
    """The handler of a consumer that does not care."""


class Group:
    """Who shall have a partition (`target`), who has it (`owner`), and the committed positions."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self.members: list[MemoryConsumer] = []
        self.target: dict[TopicPartition, MemoryConsumer] = {}
        self.owner: dict[TopicPartition, MemoryConsumer] = {}
        self.committed: dict[TopicPartition, int] = {}
        self.notes: dict[TopicPartition, str] = {}

    def rebalance(self) -> None:
        """Share every topic's partitions evenly among the members that read it; who has some keeps them."""
        before, self.target = self.target, {}
        for topic in sorted({topic for member in self.members for topic in member.topics}):
            members = [member for member in self.members if topic in member.topics]
            partitions = [TopicPartition(topic, number) for number in range(self._log.partitions(topic))]
            share, extra = divmod(len(partitions), len(members))
            held = {member: [tp for tp in partitions if before.get(tp) is member] for member in members}
            # Those that have most keep one more: the fewest partitions move.
            ranked = sorted(members, key=lambda member: -len(held[member]))
            room = {member: share + (place < extra) for place, member in enumerate(ranked)}
            for member in members:
                for tp in held[member][: room[member]]:
                    self.target[tp] = member
                room[member] -= min(room[member], len(held[member]))
            free = [member for member in members for _ in range(room[member])]
            self.target.update(zip([tp for tp in partitions if tp not in self.target], free, strict=True))
        for member in self.members:
            member.woken.set()

    def leave(self, member: MemoryConsumer) -> None:
        """Forget the member and give its partitions to the others."""
        if member in self.members:
            self.members.remove(member)
        self.owner = {tp: owner for tp, owner in self.owner.items() if owner is not member}
        self.rebalance()

    def store(self, positions: Mapping[TopicPartition, int], notes: Mapping[TopicPartition, str]) -> None:
        """Commit, each with its note or none."""
        self.committed.update(positions)
        for tp in positions:
            self.notes.pop(tp, None)
            if tp in notes:
                self.notes[tp] = notes[tp]

    def wake(self, topic: str) -> None:
        """There is something new on `topic`."""
        for member in self.members:
            if topic in member.topics:
                member.woken.set()


class MemoryConsumer:
    """See `flowpilot.ports.log.Consumer`."""

    def __init__(
        self,
        log: MemoryLog,
        group: Group,
        topics: Sequence[str],
        on_assigned: Rebalanced,
        on_revoked: Rebalanced,
        *,
        strict: bool = False,
    ) -> None:
        self.topics = tuple(topics)
        self.woken = asyncio.Event()
        self._log, self._group = log, group
        self._on_assigned, self._on_revoked = on_assigned, on_revoked
        self._positions: dict[TopicPartition, int] = {}  # what is assigned; the least recently served first
        self._paused: set[TopicPartition] = set()
        self._strict = strict
        self._troubled: set[TopicPartition] = set()  # nothing is fetched of these until a seek
        self._errors: deque[PartitionUnavailable] = deque()
        self._join()

    def _join(self) -> None:
        self._group.members.append(self)
        self._group.rebalance()

    def subscribe(self, topics: Sequence[str]) -> None:
        """Replace the topics that are read; takes effect with the next poll."""
        self.topics = tuple(topics)
        self._group.rebalance()

    async def poll(self, max_records: int, timeout: float) -> list[Fetched]:
        """See the port."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            self.woken.clear()
            await self._rebalance()
            await asyncio.sleep(0)  # before the fetch: a poll that is cancelled here has taken nothing
            found = self._fetch(max_records)
            if self._errors and not found:
                raise self._errors.popleft()
            left = deadline - loop.time()
            if found or left <= 0:
                return found
            try:
                await asyncio.wait_for(self.woken.wait(), left)
            except TimeoutError:
                return []

    async def _rebalance(self) -> None:
        group = self._group
        if self not in group.members:  # the group gave this member up: all that it had is lost
            await self._revoke(list(self._positions))
            self._join()
        await self._revoke([tp for tp in self._positions if group.target.get(tp) is not self])
        gained = [
            tp
            for tp, member in group.target.items()
            if member is self and tp not in self._positions and tp not in group.owner
        ]
        if not gained:
            return
        for tp in gained:
            group.owner[tp] = self
            # A topic that was made again may have fewer partitions than the group knows.
            low = self._log.bounds(*tp)[0] if tp.partition < self._log.partitions(tp.topic) else 0
            self._positions[tp] = max(low, group.committed.get(tp, low))
        await self._on_assigned(gained)

    async def _revoke(self, partitions: list[TopicPartition]) -> None:
        if not partitions:
            return
        await self._on_revoked(partitions)
        for tp in partitions:
            self._positions.pop(tp, None)
            self._paused.discard(tp)
            self._troubled.discard(tp)
            if self._group.owner.get(tp) is self:
                del self._group.owner[tp]
        for member in self._group.members:
            member.woken.set()

    def _fetch(self, max_records: int) -> list[Fetched]:
        found: list[Fetched] = []
        for tp in list(self._positions):
            if len(found) >= max_records:
                break
            if tp in self._paused or tp in self._troubled or tp.partition >= self._log.partitions(tp.topic):
                continue
            low, end = self._log.bounds(*tp)
            if self._strict and not low <= self._positions[tp] <= end:
                self._troubled.add(tp)
                reason = f"offset {self._positions[tp]} is not in the log, which has {low} to {end}"
                self._errors.append(PartitionUnavailable(tp, reason))
                continue
            records = list(self._log.fetch(tp, self._positions[tp], max_records - len(found)))
            if records:
                del self._positions[tp]  # to the end of the order: no partition starves the others
                self._positions[tp] = records[-1].offset + 1
                found += records
        return found

    async def commit(
        self, positions: Mapping[TopicPartition, int], notes: Mapping[TopicPartition, str] | None = None
    ) -> None:
        """See the port."""
        mine = {tp: offset for tp, offset in positions.items() if self._group.owner.get(tp) is self}
        self._group.store(mine, notes or {})
        await asyncio.sleep(0)

    async def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int | None]:
        """See the port."""
        await asyncio.sleep(0)
        return {tp: self._group.committed.get(tp) for tp in partitions}

    async def noted(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, str]]:
        """See the port."""
        await asyncio.sleep(0)
        group = self._group
        return {tp: (group.committed[tp], group.notes[tp]) for tp in partitions if tp in group.notes}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """See the port."""
        self._troubled.discard(partition)
        if partition in self._positions:
            self._positions[partition] = offset
            self.woken.set()

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """See the port."""
        self._paused.update(tp for tp in partitions if tp in self._positions)

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        """See the port."""
        self._paused.difference_update(partitions)
        self.woken.set()

    async def close(self) -> None:
        """See the port. `on_revoked` is called for what it had."""
        if self in self._group.members:
            await self._revoke(list(self._positions))
        self._group.leave(self)

    def lose(self) -> None:
        """The group gives this member up, as when its session ends: nothing is called, nothing committed.

        Its commits are ignored from now on; a poll revokes what it had and joins again.
        """
        self._group.leave(self)
