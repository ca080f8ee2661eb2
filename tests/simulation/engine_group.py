"""The engine's group: eager, as Faust's is. In a rebalance every member gives back all it has and joins again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tests.simulation.broker import Broker
from tests.simulation.loop import PROCESS, Process


class Assignment(NamedTuple):
    """What a member has, and of which generation."""

    generation: int
    partitions: tuple[int, ...]


class Membership:
    """One process in the group. `asked` is set when it has to give back its partitions and join (again)."""

    def __init__(self, group: EngineGroup) -> None:
        self.process = PROCESS.get()
        self.asked = asyncio.Event()
        self.joining: asyncio.Future[Assignment] | None = None
        self._group = group
        self.process.on_silence.append(self._silenced)

    def _silenced(self, dead: bool) -> None:
        self._group.broker.loop.later(self._group.broker.plan.session, self._group.check_session, self)


class EngineGroup:
    """See the module. `on_commit(process, partition, offset)` is told of commits that count."""

    def __init__(self, broker: Broker, partitions: int, on_commit: Callable[[Process, int, int], None]) -> None:
        self.broker, self._count, self._on_commit = broker, partitions, on_commit
        self.generation = 0
        self.committed: dict[int, int] = {}
        self.members: list[Membership] = []
        self.owner: dict[int, Membership] = {}
        self._preparing = False
        self._round = 0

    async def join(self, member: Membership) -> Assignment:
        """Wait until all are there, or the time for that is over; what this member gets."""
        loop = self.broker.loop
        await asyncio.sleep(self.broker.latency())
        if member not in self.members:
            self.members.append(member)
        member.asked.clear()
        member.joining = loop.create_future()
        self.rebalance()
        self._complete_if_all()
        return await member.joining

    def rebalance(self) -> None:
        """Ask all members to join again."""
        if self._preparing:
            return
        self._preparing = True
        self._round += 1
        loop, chance = self.broker.loop, self.broker.chance
        for member in self.members:
            if member.joining is None:
                loop.later(self.broker.plan.heartbeat * chance.random(), member.asked.set)
        loop.later(self.broker.plan.session, self._complete, self._round)

    def _complete_if_all(self) -> None:
        if self._preparing and all(member.joining is not None for member in self.members):
            self.broker.loop.later(self.broker.latency(), self._complete, self._round)

    def _complete(self, number: int) -> None:
        if not self._preparing or number != self._round:
            return
        self._preparing = False
        for member in [member for member in self.members if member.joining is None]:
            self._drop(member)
        self.generation += 1
        self.owner = self._assigned()
        self.broker.on_fault("rebalance", f"generation {self.generation}: {self._described()}")
        for member in self.members:
            mine = tuple(p for p, owner in self.owner.items() if owner is member)
            joining, member.joining = member.joining, None
            assert joining is not None
            if not joining.done():
                joining.set_result(Assignment(self.generation, mine))

    def _assigned(self) -> dict[int, Membership]:
        if not self.members:
            return {}
        chance, found = self.broker.chance, {}
        members = list(self.members)
        if self.broker.plan.moving:
            chance.shuffle(members)
        for partition in range(self._count):
            before = self.owner.get(partition)
            keeps = not self.broker.plan.moving and before in members
            share = -(-self._count // len(members))
            if keeps and sum(owner is before for owner in found.values()) < share:
                assert before is not None
                found[partition] = before
            else:
                found[partition] = min(members, key=lambda m: sum(owner is m for owner in found.values()))
        return found

    def _described(self) -> str:
        return ", ".join(f"{partition}: {owner.process}" for partition, owner in self.owner.items())

    def leave(self, member: Membership) -> None:
        """It goes in order."""
        if member in self.members:
            self.members.remove(member)
            self._rejoin()

    def evict(self, member: Membership) -> None:
        """Take it for lost; it hears of it later, and joins again then."""
        if member in self.members:
            self._drop(member)
            self._rejoin()

    def _drop(self, member: Membership) -> None:
        self.members.remove(member)
        self.owner = {p: owner for p, owner in self.owner.items() if owner is not member}
        delay = self.broker.plan.heartbeat * self.broker.chance.random()
        if member.joining is not None and not member.joining.done():
            member.joining.set_result(Assignment(-1, ()))
        self.broker.loop.later(delay, member.asked.set)

    def _rejoin(self) -> None:
        if self._preparing:
            self._complete_if_all()
        elif self.members:
            self.rebalance()

    def check_session(self, member: Membership) -> None:
        """It was silent when this was asked for: is it still?"""
        since = member.process.silent_since
        if since is not None and self.broker.loop.time() - since >= self.broker.plan.session - 0.001:
            self.evict(member)

    async def commit(self, member: Membership, generation: int, positions: Mapping[int, int]) -> bool:
        """Store the positions, if the member is of the current generation. Raises ConnectionError."""
        broker, chance = self.broker, self.broker.chance
        await asyncio.sleep(broker.latency())
        if member not in self.members or generation != self.generation:
            return False
        if chance.random() < broker.plan.lost_commits:
            broker.on_fault("lost_commit", f"{member.process}")
            if chance.random() < 0.5:
                return False
            if chance.random() < 0.5:
                raise ConnectionError("the coordinator did not answer")
            self._store(member, positions)
            raise ConnectionError("the coordinator's answer was lost")
        self._store(member, positions)
        return True

    def _store(self, member: Membership, positions: Mapping[int, int]) -> None:
        for partition, offset in positions.items():
            self.committed[partition] = offset
            self._on_commit(member.process, partition, offset)
