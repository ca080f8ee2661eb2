"""Consumer groups with sessions: who is silent for too long, or cut off, is out and may not know it yet.

The partitions move as in the memory broker's groups: cooperatively, by the members' own polls. A member that is
out goes on with what it has until a heartbeat's answer tells it, and its commits count for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from flowpilot.adapters.memory.group import Group, MemoryConsumer, ignore_rebalance
from flowpilot.ports.log import Fetched, LogUnavailable, Rebalanced, TopicPartition
from tests.simulation.broker import Broker
from tests.simulation.loop import PROCESS, Process

Committed = Callable[[str, Process, Mapping[TopicPartition, int]], None]


class SimGroup(Group):
    """A group of the memory broker, with sessions. `on_commit` is told of commits that count."""

    def __init__(self, broker: Broker, name: str, on_commit: Committed) -> None:
        super().__init__(broker.log)
        self.name, self.broker, self.on_commit = name, broker, on_commit
        self.believed: dict[TopicPartition, int] = {}
        """What members take for committed: a commit that went nowhere may not be made again while nothing comes."""

    def evict(self, member: SimConsumer) -> None:
        """Take a member for lost: it hears of it with its next heartbeat."""
        if member in self.members:
            heartbeat = self.broker.plan.heartbeat * self.broker.chance.random()
            member.learns_at = self.broker.loop.time() + heartbeat
            self.leave(member)
            self.broker.loop.later(heartbeat, member.woken.set)

    def move(self) -> bool:
        """One more rebalance: one partition shall have another owner, or the same after all."""
        chance = self.broker.chance
        found = sorted(self.target)
        if not found or len(self.members) < 2:
            return False
        partition = chance.choice(found)
        readers = [member for member in self.members if partition.topic in member.topics]
        self.target[partition] = chance.choice(readers)  # type: ignore[assignment]
        for member in self.members:
            member.woken.set()
        return True

    def check_session(self, member: SimConsumer) -> None:
        """It was silent when this was asked for: is it still?"""
        since = member.process.silent_since
        if since is not None and self.broker.loop.time() - since >= self.broker.plan.session - 0.001:
            self.evict(member)


class SimConsumer(MemoryConsumer):
    """See `flowpilot.ports.log.Subscriber`. Made by the process that uses it."""

    def __init__(
        self,
        group: SimGroup,
        topics: Sequence[str],
        *,
        on_assigned: Rebalanced = ignore_rebalance,
        on_revoked: Rebalanced = ignore_rebalance,
        strict: bool = False,
    ) -> None:
        self.process = PROCESS.get()
        self.learns_at = 0.0
        self._sim, self._broker = group, group.broker
        self._handling: asyncio.Task[None] | None = None
        super().__init__(group.broker.log, group, topics, on_assigned, on_revoked, strict=strict)
        self.process.on_silence.append(self._silenced)

    def _silenced(self, dead: bool) -> None:
        self._broker.loop.later(self._broker.plan.session, self._sim.check_session, self)

    async def poll(self, max_records: int, timeout: float) -> list[Fetched]:
        """See the port."""
        loop, plan = self._broker.loop, self._broker.plan
        deadline = loop.time() + timeout
        most = min(max_records, plan.fetch_size)
        while True:
            self.woken.clear()
            await self._see_to_rebalance()
            if timeout:
                await asyncio.sleep(self._broker.latency())
            found = self._fetch(most)
            if self._errors and not found:
                raise self._errors.popleft()
            left = deadline - loop.time()
            if found or left <= 0:
                return found
            try:
                async with asyncio.timeout(left):
                    await self.woken.wait()
            except TimeoutError:
                return []

    async def _see_to_rebalance(self) -> None:
        """Handlers run to their end, also if the poll that began them is cancelled."""
        if self._handling is None:
            if self not in self._sim.members and self._broker.loop.time() < self.learns_at:
                return
            if not self._moves():
                return
            self._handling = asyncio.ensure_future(self._rebalance())
        await asyncio.shield(self._handling)
        self._handling = None

    def _moves(self) -> bool:
        group = self._sim
        if self not in group.members:
            return True
        target = group.target
        if any(target.get(tp) is not self for tp in self._positions):
            return True
        return any(
            member is self and tp not in self._positions and tp not in group.owner for tp, member in target.items()
        )

    def _fetch(self, max_records: int) -> list[Fetched]:
        down = {tp for tp in self._positions if tp not in self._paused and self._broker.is_down(tp)}
        self._paused |= down
        found = super()._fetch(max_records)
        self._paused -= down
        if down:
            self._broker.loop.later(0.1, self.woken.set)
        return found

    async def commit(
        self, positions: Mapping[TopicPartition, int], notes: Mapping[TopicPartition, str] | None = None
    ) -> None:
        """See the port: it may be lost, or be done without an answer."""
        broker, chance = self._broker, self._broker.chance
        if not positions or self.process.dead:
            return
        await asyncio.sleep(broker.latency())
        notes = notes or {}
        mine = {tp: offset for tp, offset in positions.items() if self._sim.owner.get(tp) is self}
        if chance.random() < broker.plan.lost_commits:
            broker.on_fault("lost_commit", f"{self.process} in {self._sim.name}")
            if chance.random() < 0.5:  # between two generations: no error, and nothing done
                self._sim.believed.update(mine)
                return
            if chance.random() < 0.5:
                raise LogUnavailable("the coordinator did not answer")
            self._store(mine, notes)
            raise LogUnavailable("the coordinator's answer was lost")
        self._store(mine, notes)

    def _store(self, positions: Mapping[TopicPartition, int], notes: Mapping[TopicPartition, str]) -> None:
        self._sim.store(positions, notes)
        if positions:
            self._sim.on_commit(self._sim.name, self.process, positions)

    async def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int | None]:
        """See the port."""
        await asyncio.sleep(self._broker.latency())
        return {tp: self._sim.committed.get(tp) for tp in partitions}

    async def close(self) -> None:
        """See the port."""
        if self._handling is not None:
            await asyncio.shield(self._handling)
        await super().close()
