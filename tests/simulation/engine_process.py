"""An engine's process: the production engine and `Executions`, and around them what Faust does.

Only Faust itself is left out: here stand, in its place, the order of calls in `flowpilot_agents.transport` and
`flowpilot_agents.table` (suspend, finish, commit, give back; recover, claim, read on).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.engine.claim import EventsTopic
from flowpilot.engine.engine import Engine
from flowpilot.ports.log import Fetched, LogUnavailable
from flowpilot_agents import watch
from flowpilot_agents.execution import Delivered, Executions
from flowpilot_agents.watch import GuardedProducer, Pulse
from tests.simulation.broker import SimProducer, SimReader
from tests.simulation.engine_group import Assignment, EngineGroup, Membership
from tests.simulation.loop import PROCESS
from tests.simulation.plan import RULES

if TYPE_CHECKING:
    from tests.simulation.world import World

_LIMIT = 2.0
_AHEAD = 2


class EngineProcess:
    """`run` until `stop`, or until the engine ends its process."""

    def __init__(self, world: World) -> None:
        self._world, self._plan = world, world.plan
        self._process = PROCESS.get()
        self._rules = world.rules()
        self._group: EngineGroup = world.engine_group
        loop, broker, topics = world.loop, world.broker, world.topics
        # The real one looks at the boot clock, and is best effort: some seeds do without.
        limit = self._plan.session / 2 if self._plan.pulse else float("inf")
        self.pulse = Pulse(limit, clock=loop.time)
        producer = GuardedProducer(SimProducer(broker), self.pulse)
        self._reader = SimReader(broker)
        events = EventsTopic(topics, broker.log.topic_id(topics.events), self._plan.partitions)
        self.engine = Engine(
            events,
            producer,
            self._reader,
            LogDefinitions(producer, self._reader, topics.definitions),
            clock=lambda: int((world.wall(self._process)) * 1_000),
            nonce=world.name_anew,
            rules=self._rules,
        )
        self.executions = Executions(self.engine, self.pulse, self._plan.batch_size)
        self.executions.on_room = lambda: self.woken.set()
        self.executions.on_stopped = self._stopped
        self.woken = asyncio.Event()
        self._inbox: asyncio.Queue[Delivered] = asyncio.Queue()
        self._stopping = asyncio.Event()
        self._fetching, self._committing = asyncio.Lock(), asyncio.Lock()
        self._positions: dict[int, int] = {}
        self._stored: dict[int, int] = {}
        self._generation = -1
        self._member = Membership(self._group)

    def stop(self) -> None:
        """SIGTERM."""
        self._stopping.set()
        self._member.asked.set()

    async def run(self) -> None:
        """See the class."""
        jobs = (
            self.executions.run(self._inbox),  # type: ignore[arg-type]
            self.pulse.run() if self._plan.pulse else asyncio.sleep(0),
            self._tick(),
            self._fetch(),
            self._commit(),
        )
        tasks = [asyncio.ensure_future(job) for job in jobs]
        await self._serve()
        for task in tasks:
            task.cancel()
        self._group.leave(self._member)

    # ---- the group

    async def _serve(self) -> None:
        had: set[int] = set()
        while not self._stopping.is_set():
            assignment = await self._group.join(self._member)
            self._generation = assignment.generation
            had -= set(assignment.partitions)
            await self.executions.revoke(sorted(had))
            had = set(assignment.partitions)
            recovering = asyncio.ensure_future(self._recover(assignment, self.executions.assignment))
            await self._member.asked.wait()
            await self._give_back()
            del recovering  # it sees that the assignment changed

    async def _give_back(self) -> None:
        """`on_partitions_revoked`: finish the batch under way and commit it."""
        self.executions.suspend()
        self._positions.clear()
        await self.executions.idle(_LIMIT)
        try:
            await asyncio.wait_for(self._force_commit(), _LIMIT)
        except TimeoutError:
            pass
        self.executions.give_back()
        self._stored.clear()
        while not self._inbox.empty():
            self._inbox.get_nowait()

    async def _recover(self, assignment: Assignment, under: int) -> None:
        executions = self.executions
        if executions.assignment != under:
            return
        for partition in assignment.partitions:
            if not await self._load(partition, under):
                return
        committed = await self._committed(assignment)
        starts = await executions.claim(committed)
        if executions.assignment != under:
            return
        self._world.online.claimed(self._process, self.engine, committed, starts)
        async with self._fetching:
            await asyncio.sleep(self._world.broker.latency())
            if executions.assignment != under:
                return
            executions.serve()
            self._stored = {p: offset for p, offset in committed.items() if offset is not None}
            self._positions = dict(starts)
            self.woken.set()

    async def _load(self, partition: int, under: int) -> bool:
        """Read the changelog from where the table is known; False if the assignment changed meanwhile."""
        topic, table = self._world.topics.changelog, self.engine.table(partition)
        position, end, size = table.next_changelog_offset, -1, 10 * self._plan.fetch_size
        while end < 0 or position < end:
            try:
                if end < 0:
                    _, end = await self._reader.bounds(topic, partition)
                records = await self._reader.read(topic, partition, position, min(end, position + size))
            except LogUnavailable:
                await asyncio.sleep(0.2)
                continue
            if self.executions.assignment != under:
                return False
            for record in records:
                table.load(record)
            position += size
        return True

    async def _committed(self, assignment: Assignment) -> dict[int, int | None]:
        await asyncio.sleep(self._world.broker.latency())
        return {partition: self._group.committed.get(partition) for partition in assignment.partitions}

    def _stopped(self, partitions: Sequence[int]) -> None:
        for partition in partitions:
            self._positions.pop(partition, None)
            reason = self.engine.stopped[partition]
            if "upgrade the engine" in reason and self._rules < RULES:
                self._world.fault("upgrade", reason)
                self.stop()  # who comes next may be of the newer release
            else:
                self._world.report("R1", f"partition {partition} stopped: {reason}")

    # ---- delivery, timer, commit

    async def _fetch(self) -> None:
        broker, topics = self._world.broker, self._world.topics
        while True:
            if not (self._positions and self.executions.serving and self._inbox.qsize() < _AHEAD):
                self.woken.clear()
                await self.woken.wait()
                continue
            async with self._fetching:
                self.woken.clear()
                under = self.executions.assignment
                await asyncio.sleep(broker.latency())
                found: list[Fetched] = []
                for partition, position in self._positions.items():
                    if not broker.is_down((topics.events, partition)):
                        place = (topics.events, partition)
                        found += broker.log.fetch(place, position, self._plan.fetch_size)  # type: ignore[arg-type]
                if under != self.executions.assignment or not self.executions.serving:
                    continue
                for record in found:
                    self._positions[record.partition] = record.offset + 1
                if found:
                    self._inbox.put_nowait(Delivered(under, found))
            if not found:
                try:
                    async with asyncio.timeout(1.0):
                        await self.woken.wait()
                except TimeoutError:
                    pass

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._plan.tick)
            await self.executions.tick()

    async def _commit(self) -> None:
        while True:
            await asyncio.sleep(self._plan.commit_interval)
            await self._force_commit()

    async def _force_commit(self) -> None:
        async with self._committing:
            executions, term = self.executions, self.executions.term
            due = {p: n for p, n in executions.acknowledged.items() if n > self._stored.get(p, -1)}
            if not due:
                return
            try:
                done = await self._group.commit(self._member, self._generation, due)
            except ConnectionError as error:
                watch.end_process("the positions could not be committed", error)
            if done and term == executions.term:
                self._stored.update(due)
