"""The faults that come by themselves, each at its own rate, by chance."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial

from flowpilot.ports.log import Fetched
from tests.simulation import strangers
from tests.simulation.deploys import Deploys
from tests.simulation.engine_process import EngineProcess
from tests.simulation.loop import WORLD, Process
from tests.simulation.trigger_topics import TriggerTopics
from tests.simulation.world import Slot, World


class Chaos:
    """`run` until the world is calm."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._ways: dict[str, Callable[[random.Random], bool]] = {
            "kill": self._kill,
            "kill_at_write": self._kill_at_write,
            "kill_in_flight": lambda chance: self._in_flight(chance, "kill_in_flight"),
            "pause_in_flight": lambda chance: self._in_flight(chance, "pause_in_flight"),
            "term": self._term,
            "pause": self._pause,
            "evict": self._evict,
            "rebalance": self._rebalance,
            "leader": self._leader,
            "compaction": self._compaction,
            "duplicate": partial(strangers.duplicate, world),
            "rule_sets": partial(strangers.rule_sets, world),
            "bad_event": partial(strangers.bad_event, world),
            "clock_jump": self._clock_jump,
            "database_away": self._database_away,
            "database_fail_over": self._database_fail_over,
            "new_version": (deploys := Deploys(world)).new_version,
            "deletion": deploys.deletion,
            "recreated_topic": (topics := TriggerTopics(world)).recreated,
            "grown_topic": topics.grown,
            "retention": topics.retention,
            "forged_position": topics.forged_position,
        }
        self._trapped: dict[Process, int] = {}
        landed = world.broker.on_landed

        def trap(record: Fetched, sender: Process) -> None:
            landed(record, sender)
            late = sender.role == "engine" and not self._owns(sender, record.partition)
            if late and record.topic == world.topics.changelog and not world.calm:
                world.loop.spawn(WORLD, self._after_a_ghost(record.partition))
            if sender in self._trapped and not world.calm:
                self._trapped[sender] -= 1
                if self._trapped[sender] <= 0:
                    del self._trapped[sender]
                    self._end(sender, "kill_at_write")

        world.broker.on_landed = trap
        self._sending: dict[Process, tuple[int, str]] = {}
        world.broker.on_sending = self._sends

    def begin(self) -> None:
        """Every kind of fault of this seed at its rate; and those who publish."""
        for kind, rate in self.world.plan.rates.items():
            self.world.loop.spawn(WORLD, self._again_and_again(kind, rate))
        self.world.loop.spawn(WORLD, strangers.publish(self.world))

    async def _again_and_again(self, kind: str, rate: float) -> None:
        chance = self.world.chance(f"fault/{kind}")
        while True:
            await asyncio.sleep(chance.expovariate(rate))
            if self.world.calm:
                return
            for _ in range(5):
                if self._ways[kind](chance):
                    break
                await asyncio.sleep(0.05)

    def _alive(self) -> list[Slot]:
        return [slot for slot in self.world.slots if slot.process is not None and not slot.process.paused]

    def _any(self, chance: random.Random, share: float = 0.5) -> Slot | None:
        """A process; so often an engine at least."""
        found = self._alive()
        engines = [slot for slot in found if slot.role == "engine"]
        if engines and chance.random() < share:
            return chance.choice(engines)
        return chance.choice(found) if found else None

    # ---- processes

    def _end(self, process: Process, kind: str) -> None:
        for slot in self.world.slots:
            if slot.process is process and not process.dead:
                self.world.fault(kind, process.name)
                self.world.lose(slot, process)

    def _kill(self, chance: random.Random) -> bool:
        slot = self._any(chance)
        if slot is None or slot.process is None:
            return False
        self._end(slot.process, "kill")
        return True

    def _kill_at_write(self, chance: random.Random) -> bool:
        """It will die right after one of its next records has landed, whatever it does then."""
        slot = self._any(chance)
        if slot is None or slot.process is None:
            return False
        self._trapped[slot.process] = chance.choice((1, 1, 2, 3, 5))
        return True

    def _owns(self, process: Process, partition: int) -> bool:
        owner = self.world.engine_group.owner.get(partition)
        return owner is not None and owner.process is process

    async def _after_a_ghost(self, partition: int) -> None:
        """A record of an earlier owner has landed. What the owner does about it is seen by the one after it."""
        chance = self.world.chance("fault/ghost")
        if chance.random() < 0.3:
            return
        if chance.random() < 0.5 and "compaction" in self.world.plan.kinds:
            for _ in range(12):
                await asyncio.sleep(0.5 * chance.random())
                if self.world.calm or self._compaction(chance):
                    break
        owner = self.world.engine_group.owner.get(partition)
        if owner is not None and not self.world.calm:
            self._end(owner.process, "kill")

    def _in_flight(self, chance: random.Random, kind: str) -> bool:
        """It will die, or stand still, while some of what it writes is on its way; an engine, of its state."""
        slot = self._any(chance, 0.7)
        if slot is None or slot.process is None:
            return False
        self._sending[slot.process] = (chance.choice((1, 1, 2, 4)), kind)
        return True

    def _sends(self, sender: Process, place: tuple[str, int]) -> None:
        if sender not in self._sending or (sender.role == "engine" and place[0] != self.world.topics.changelog):
            return
        left, kind = self._sending[sender]
        self._sending[sender] = (left - 1, kind)
        if left > 1 or self.world.calm:
            return
        del self._sending[sender]
        chance, loop = self.world.chance(f"fault/{kind}"), self.world.loop
        # A moment later: a part of it may have landed.
        delay = self.world.plan.latency * chance.choice((0.0, 0.3, 0.8))
        if kind == "kill_in_flight":
            loop.later(delay, self._end, sender, kind)
        else:
            loop.later(delay, self._stand_still, sender, self.world.plan.session * chance.uniform(0.5, 3.0), kind)

    def _stand_still(self, process: Process, seconds: float, kind: str) -> None:
        if process.dead or process.paused or self.world.calm:
            return
        self.world.fault(kind, f"{process.name} for {seconds:.1f} s")
        self.world.loop.pause(process)
        self.world.loop.later(seconds, self.world.loop.resume, process)

    def _term(self, chance: random.Random) -> bool:
        slot = self._any(chance)
        if slot is None or slot.process is None or slot.body is None:
            return False
        self.world.fault("term", slot.process.name)
        self.world.loop.call_soon(slot.body.stop)
        return True

    def _pause(self, chance: random.Random) -> bool:
        slot, plan = self._any(chance), self.world.plan
        if slot is None or slot.process is None:
            return False
        self._stand_still(slot.process, plan.session * chance.choice((0.3, 0.7, 1.3, 2.5)), "pause")
        return True

    def _evict(self, chance: random.Random) -> bool:
        world = self.world
        if chance.random() < 0.5:
            members = [m for m in world.engine_group.members if not m.process.dead]
            if not members:
                return False
            member = chance.choice(members)
            world.fault("evict", member.process.name)
            world.engine_group.evict(member)
            return True
        group = chance.choice(world.groups)
        found = [member for member in group.members if not member.process.dead]  # type: ignore[attr-defined]
        if not found:
            return False
        chosen = chance.choice(found)
        world.fault("evict", f"{chosen.process} from {group.name}")  # type: ignore[attr-defined]
        group.evict(chosen)  # type: ignore[arg-type]
        return True

    def _rebalance(self, chance: random.Random) -> bool:
        world = self.world
        if chance.random() < 0.5 and world.engine_group.members:
            world.fault("rebalance", "engines")
            world.engine_group.rebalance()
            return True
        group = chance.choice(world.groups)
        moved = group.move()
        if moved:
            world.fault("rebalance", group.name)
        return moved

    def _clock_jump(self, chance: random.Random) -> bool:
        slot = self._any(chance)
        if slot is None or slot.process is None:
            return False
        seconds = chance.choice((-5.0, -1.0, 1.0, 5.0))
        self.world.fault("clock_jump", f"{slot.process.name} by {seconds} s")
        slot.process.skew += seconds
        slot.process.furthest = max(slot.process.furthest, slot.process.skew)
        return True

    # ---- the log and the database

    def _leader(self, chance: random.Random) -> bool:
        world = self.world
        topics = sorted(world.log._topics)
        topic = chance.choice(topics)
        partition = chance.randrange(world.log.partitions(topic))
        seconds = chance.choice((0.2, 1.0, 1.0, 3.0, 6.0))
        world.fault("leader", f"{topic}/{partition} for {seconds} s")
        world.broker.take_down((topic, partition), seconds)
        return True

    def _compaction(self, chance: random.Random) -> bool:
        """Never before its owner has seen and answered what is there (design, section 6, rule 8)."""
        world, topics = self.world, self.world.topics
        owners: set[Process] = set()
        for partition in range(world.plan.partitions):
            member = world.engine_group.owner.get(partition)
            body = next((s.body for s in world.slots if member and s.process is member.process), None)
            if member is None or not isinstance(body, EngineProcess) or member.process.paused:
                return False
            executions = body.executions
            _, end = world.log.bounds(topics.changelog, partition)
            known = partition in executions.engine.live() and executions.serving  # type: ignore[attr-defined]
            if not known or executions._turn.locked():
                return False
            if executions.engine.table(partition).next_changelog_offset != end:
                return False
            owners.add(member.process)
        engines = {p for p in world.processes if p.role == "engine" and not p.dead}
        quiet = not world.broker.ghosts and engines == owners
        world.fault("compaction", f"tombstones too: {quiet}")
        world.log.compact(topics.changelog, tombstones=quiet)
        if chance.random() < 0.5:
            world.log.compact(topics.definitions)
        return True

    def _database_away(self, chance: random.Random) -> bool:
        self.world.fault("database_away")
        self.world.database.go_away(chance.choice((0.3, 1.5, 5.0)))
        return True

    def _database_fail_over(self, chance: random.Random) -> bool:
        lost = chance.choice((0, 1, 2, 5))
        self.world.fault("database_fail_over", f"{lost} transactions are lost")
        self.world.database.fail_over(lost, chance.choice((0.0, 0.5, 2.0)))
        return True
