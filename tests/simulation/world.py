"""One world: the log, the database, the groups, and processes that a supervisor starts again when they are gone."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

from flowpilot.authoring import Workflow
from flowpilot.core.errors import FlowPilotError
from flowpilot.engine.claim import EventsTopic
from flowpilot.ports.log import Fetched, LogUnavailable, Record
from flowpilot_schemas.codec import canonical, encode_message
from flowpilot_schemas.definition import (
    DefinitionPointer,
    definition_key,
    pointer_key,
    version_key,
)
from flowpilot_schemas.limits import Limits
from flowpilot_schemas.topics import Topics
from tests.simulation.broker import Broker
from tests.simulation.database import Database
from tests.simulation.engine_group import EngineGroup
from tests.simulation.group import SimGroup
from tests.simulation.loop import BEGIN, OUTSIDE, PROCESS, WORLD, Ended, Loop, Process
from tests.simulation.online import Online
from tests.simulation.plan import RULES, Plan
from tests.simulation.versions import Versions
from tests.simulation.workflows import TOPICS, version_of

BOUND = 240.0
"""So many simulated seconds after the last fault all must be quiet (L1)."""
_TRACE = 400


class Role(Protocol):
    """What a process runs."""

    async def run(self) -> None: ...

    def stop(self) -> None: ...


Make = Callable[["World"], Role]


@dataclass
class Slot:
    """A process that shall always be there."""

    name: str
    role: str
    make: Make
    incarnation: int = 0
    process: Process | None = None
    body: Role | None = None


class World:
    """See the module. `chance(name)` is the random source of that name."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._chances: dict[str, random.Random] = {}
        self.loop = Loop(self.chance("schedule"), shuffled=plan.shuffled)
        self.topics, self.limits = Topics(), Limits()
        self.broker = Broker(self.loop, plan, self.chance("network"))
        self.log = self.broker.log
        self.database = Database(self.broker)
        self.versions = Versions(self.log, self.topics, self.limits)
        self.releases = [[version_of(number, 1) for number in plan.workflows]]
        """The code that workers and clients may have: each release has the versions before it too."""
        self.deploying = False
        self._code: dict[Process, int] = {}
        self._groups: dict[str, SimGroup] = {}
        self.slots: list[Slot] = []
        self.processes: list[Process] = [WORLD]
        self.calm = False
        self.violations: list[tuple[str, str]] = []
        self.faults: Counter[str] = Counter()
        self.trace: deque[str] = deque(maxlen=_TRACE)
        self._hash = blake2b(digest_size=16)
        self._names = 0
        self.asked: list[tuple[str, int]] = []
        self.bad_events: list[tuple[int, int]] = []
        self.strays: set[tuple[bytes | None, bytes | None]] = set()
        self.online = Online(self.topics, self.log, self.versions, self.report, self._latest_ms)
        self.engine_group = EngineGroup(self.broker, plan.partitions, self._engine_committed)
        self.broker.on_landed = self._landed
        self.broker.on_fault = self.fault
        self.database.on_written = self._written
        self._create_topics()

    def chance(self, name: str) -> random.Random:
        if name not in self._chances:
            self._chances[name] = random.Random(f"{self.plan.seed}/{name}")
        return self._chances[name]

    @property
    def workflows(self) -> list[Workflow]:
        """Of the newest release: every version of every workflow."""
        return self.releases[-1]

    def code(self) -> list[Workflow]:
        """What the worker that begins now has: the newest release, or, where not all is deployed yet, an older, or
        the newest version alone of each workflow."""
        release = newest = len(self.releases) - 1
        if newest and not self.calm and self.chance("releases").random() < 0.3:
            release = self.chance("releases").randrange(newest)
        self._code[PROCESS.get()] = release
        if newest and not self.calm and self.chance("releases").random() < 0.5:
            self._code[PROCESS.get()] = -1  # of what runs it does not have all
            return list({workflow.name: workflow for workflow in self.releases[release]}.values())
        return self.releases[release]

    def rules(self) -> int:
        """The rule sets of the engine that begins now: the newer release's, or, until all is calm, the older's."""
        if "rule_sets" not in self.plan.kinds or self.calm:
            return RULES
        return self.chance("engines' releases").choice((1, RULES, RULES))

    def is_outdated(self, process: Process) -> bool:
        """Whether it is a worker with older code than there is; told once of each."""
        if self._code.get(process, len(self.releases)) >= len(self.releases) - 1:
            return False
        del self._code[process]
        return True

    def wall(self, process: Process) -> float:
        return BEGIN + self.loop.time() + process.skew

    def _latest_ms(self, process: Process) -> int:
        """What its clock, or that of a leader, may have shown at most until now."""
        return int((BEGIN + self.loop.time() + max(process.furthest, 1.5)) * 1_000)

    def name_anew(self) -> str:
        """A name that was not given yet."""
        self._names += 1
        return f"n{self._names}"

    def group(self, name: str) -> SimGroup:
        if name not in self._groups:
            group = self._groups[name] = SimGroup(self.broker, name, self._group_committed)
            self.log._groups[name] = group
        return self._groups[name]

    @property
    def groups(self) -> list[SimGroup]:
        return list(self._groups.values())

    def events_topic(self) -> EventsTopic:
        return EventsTopic(self.topics, self.log.topic_id(self.topics.events), self.plan.partitions)

    # ---- what is told

    def report(self, invariant: str, what: str) -> None:
        if len(self.violations) < 20:
            self.note(f"VIOLATION {invariant}: {what}")
            self.violations.append((invariant, what))

    def note(self, what: str) -> None:
        line = f"{self.loop.time():9.4f} {what}"
        self._hash.update(line.encode())
        self.trace.append(line)

    def fault(self, kind: str, detail: str = "") -> None:
        self.faults[kind] += 1
        self.note(f"* {kind} {detail}")

    @property
    def trace_hash(self) -> str:
        return self._hash.hexdigest()

    def _landed(self, record: Fetched, sender: Process) -> None:
        value = record.value or b""
        self._hash.update(value)
        place = f"{record.topic.removeprefix('flowpilot')}/{record.partition}/{record.offset}"
        self.note(f"{sender.name} → {place} {(record.key or b'')[:60]!r} {value[:110]!r}")
        wrong = self.versions.landed(record, sender)
        if wrong is not None:
            self.report("S1", wrong)
        self.online.landed(record, sender)
        if record.topic == self.topics.events:
            for slot in self.slots:
                if slot.role == "engine" and slot.body is not None:
                    slot.body.woken.set()  # type: ignore[attr-defined]

    def _engine_committed(self, process: Process, partition: int, offset: int) -> None:
        self.note(f"{process.name} commits {partition} up to {offset}")
        self.online.engine_committed(process, partition, offset)

    def _group_committed(self, group: str, process: Process, positions: Any) -> None:
        self.note(f"{process.name} commits in {group}: {[(*tp, offset) for tp, offset in positions.items()]}")
        self.online.committed(group, process, positions)

    def _written(self, process: Process, batch: Any) -> None:
        moved = [(*each.partition, each.expected, each.next_offset) for each in batch.advances]
        self.note(f"{process.name} stores {len(batch.events)} events: {moved}")
        self.online.stored(process, batch, self.database)

    # ---- the log at the beginning

    def _create_topics(self) -> None:
        for topic in self.topics.core():
            count = topic.partitions or self.plan.partitions
            if topic.name == self.topics.triggers:
                count = 1
            limit = int(topic.config().get("max.message.bytes", 1 << 20))
            self.log.create_topic(topic.name, count, max_message_bytes=limit, compacted=topic.cleanup == "compact")
        for name in TOPICS:
            self.log.create_topic(name, 1 + self.plan.seed % 2)
        for queue in ("q1", "q2"):
            limit = self.plan.step_limit
            self.log.create_topic(self.topics.steps(queue), self.plan.step_partitions, max_message_bytes=limit)
        for definition in [workflow.definition for workflow in self.workflows]:
            pointer = encode_message(DefinitionPointer(definition=definition.hash, version=definition.version))
            value = canonical(definition.model_dump(mode="json"))
            for key, content in (
                (definition_key(definition.hash), value),
                (version_key(definition.name, definition.version), pointer),
                (pointer_key(definition.name), pointer),
            ):
                self.broker.append(Record(self.topics.definitions, key, content, 0), WORLD)

    # ---- processes

    def begin(self, slot: Slot) -> None:
        """Start the slot's process, a new one."""
        slot.incarnation += 1
        chance = self.chance("clocks")
        skew = chance.uniform(-self.plan.skew, self.plan.skew)
        process = slot.process = Process(f"{slot.name}.{slot.incarnation}", slot.role, skew)
        slot.body = None
        self.processes.append(process)
        self.note(f"{process.name} begins")
        task = self.loop.spawn(process, self._live(slot, process))
        task.add_done_callback(lambda done: self._gone(slot, process, done), context=OUTSIDE)

    async def _live(self, slot: Slot, process: Process) -> None:
        body = slot.make(self)
        slot.body = body
        await body.run()

    def _gone(self, slot: Slot, process: Process, done: Any) -> None:
        error = done.exception() if not done.cancelled() else None
        if error is not None and not isinstance(error, Ended | LogUnavailable):
            known = isinstance(error, FlowPilotError)
            self.report(
                "crash", f"{process.name} {'stopped' if known else 'raised'}: {type(error).__name__}: {error}"
            )
        self.note(f"{process.name} is gone{'' if error is None else ': ' + repr(error)[:200]}")
        self.lose(slot, process)

    def ended_itself(self, process: Process, sentence: str, error: BaseException | None) -> None:
        """`end_process`: it writes nothing more."""
        why = f"{sentence}: {type(error).__name__}: {error}" if error is not None else sentence
        self.note(f"{process.name} ends itself: {why}")
        self.faults["ended_itself"] += 1
        if error is not None and not isinstance(error, FlowPilotError | ConnectionError):
            self.report("crash", f"{process.name}: {why}")
        for slot in self.slots:
            if slot.process is process:
                self.lose(slot, process)

    def lose(self, slot: Slot, process: Process) -> None:
        """The process is no more; the supervisor starts another."""
        if slot.process is not process:
            return
        self.loop.kill(process)
        slot.process = slot.body = None
        self.loop.later(self.plan.restart_after * self.chance("supervisor").uniform(0.5, 1.5), self.begin, slot)
