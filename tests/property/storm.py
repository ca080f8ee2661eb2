"""A random workload under random faults, and the verdict: the same as one engine that nothing ever happens to.

Everything follows from the seed. Faults: a process ends, or stands still and goes on later, before or after any
record that it writes; what it had in flight is lost or lands later; partitions move while a batch is under way;
commits are lost; the changelog is compacted (never before its owner has seen what is in it: rule 8).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from flowpilot.core.payloads import is_over
from flowpilot.core.state import decode_execution, encode_execution
from flowpilot.core.status import TERMINAL_EXECUTION, ExecutionStatus
from flowpilot.engine.engine import Engine
from flowpilot.engine.keys import is_state, payload_of
from flowpilot.engine.table import HEADER_SRC, WATERMARK_KEY, PartitionTable
from flowpilot.ports.log import Delivery, Fetched, Record
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import decode_object
from flowpilot_schemas.history import GENESIS, HEADER_HASH, HEADER_PREV, chain
from flowpilot_schemas.ids import TaskId, retry_id, root_id
from flowpilot_schemas.topics import DAY
from tests.property.scripts import TRACE
from tests.unit.engine_world import WORKFLOWS, Call, Owner, T, World, is_halt, starting

BAD_EVENTS = (
    None,
    b"",
    b"not json",
    b"\xff\xfe",
    b"[]",
    b'{"v":1}',
    b'{"v":7,"type":"execution.start"}',
    b'{"type":["list"]}',
    b'{"type":"execution.start","execution":5}',
    b'{"type":"step.completed","task_id":"x","output":NaN}',
    b"[" * 1000,
)

_LOST = (b'"type":"retry.ended"', b'"type":"retry.check"', b'"retry":{"execution"')


@dataclass
class Left:
    """What a run left on the topics that others read."""

    history: dict[tuple[str, int, int], bytes] = field(default_factory=dict)
    heads: dict[tuple[str, int, int], tuple[bytes, bytes]] = field(default_factory=dict)
    steps: dict[tuple[str, bytes], None] = field(default_factory=dict)
    control: set[bytes] = field(default_factory=set)
    replies: set[bytes] = field(default_factory=set)
    dead: set[tuple[str, int, int]] = field(default_factory=set)
    states: dict[str, bytes] = field(default_factory=dict)
    live: set[tuple[str, int]] = field(default_factory=set)
    payloads: dict[bytes, bytes] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Watched(World):
    """It also looks at each record as it lands: a fact is told only when its state is in the changelog.

    Of what retries and their roots say to each other some is lost, as if processes had ended over it.
    """

    lossy = True

    def __init__(self, partitions: int, chance: random.Random) -> None:
        super().__init__(partitions, chance=chance)
        self.early: list[str] = []
        self._durable: dict[bytes, int] = {}

    def land(self, record: Record) -> Delivery:
        if record.topic == T.changelog and record.key is not None:
            src = dict(record.headers)[HEADER_SRC]
            self._durable[record.key] = max(self._durable.get(record.key, -1), int(src))
        elif record.topic == T.history and decode_object(record.value)["cause"] > self._durable.get(
            record.key or b"", -1
        ):
            self.early.append(f"told before its state was written: {record.value!r}")
        elif self.lossy and record.topic == T.events and self._is_lost(record.value or b""):
            return Delivery(0, 0)
        return super().land(record)

    def _is_lost(self, value: bytes) -> bool:
        assert self.chance is not None
        return any(kind in value for kind in _LOST) and self.chance.random() < 0.05


class Storm:
    """One run. `verdict()` after `run()` is the list of what is wrong."""

    newest: int | None = None
    """The rule sets that the engines have which bring everything to its end."""

    def __init__(self, seed: int, length: int = 600) -> None:
        self.chance = random.Random(seed)
        self.length = length
        self.partitions = self.chance.choice((1, 2, 2))
        self.world = Watched(self.partitions, self.chance)
        self.largest = self.chance.choice((1, 2, 3, 10, 50))
        self.ghostly = seed % 2 == 1
        """Every other storm has few keys, and what a dead process had in flight is seldom lost."""
        self.keys = 1 if self.ghostly else self.chance.choice((2, 4, 8))
        self.faults = 0.25 if self.ghostly else self.chance.choice((0.03, 0.08, 0.2))
        self.problems: list[str] = []
        self.executions: list[str] = []
        self.messages: list[Record] = []
        self.last: Owner | None = None

    # -- the storm ------------------------------------------------------------------------------------------

    def run(self) -> None:
        actions = (
            (self._work, 60),
            (self._others_write, 14),
            (self._worker, 16),
            (self._fault, 100 * self.faults),
            (self._time, 6),
            (self._commit, 15 if self.ghostly else 5),
        )
        kinds, weights = zip(*actions, strict=True)
        for action in self.chance.choices(kinds, weights, k=self.length):
            action()
        self._calm()

    def _step(self, owner: Owner, steps: int) -> None:
        call = owner.call
        if call is None:
            return
        try:
            while steps and not call.done:
                call.step()
                steps -= 1
        except Exception as error:  # noqa: BLE001 - whatever it is ends that process
            if not is_halt(error):
                self.problems.append(f"an engine raised {type(error).__name__}: {error}")
            owner.crash(ghosts=self.chance.random() < 0.3)
        self.problems += [f"partition {p} stopped: {why}" for p, why in owner.engine.stopped.items()]
        owner.engine.stopped.clear()

    def _begin(self, owner: Owner) -> None:
        if self.chance.random() < 0.4:
            owner.tick()
            return
        batch = owner.fetch(self.chance.randint(1, self.largest))
        if batch:
            owner.process(batch)

    def _work(self) -> None:
        self._give_out()
        owner = self.chance.choice(self.world.owners)
        if owner.call is None or owner.call.done:
            self._begin(owner)
        self._step(owner, self.chance.choice((1, 2, 4, 8, 30, 300)))

    def _give_out(self) -> None:
        for partition in range(self.partitions):
            if partition not in self.world.lawful:
                self._move(partition)

    def _move(self, partition: int) -> None:
        world = self.world
        idle = [o for o in world.owners if (o.call is None or o.call.done) and world.lawful.get(partition) is not o]
        before = world.lawful.get(partition)
        if before is not None and self.chance.random() < 0.5:  # else it does not know, and goes on
            if self.chance.random() < 0.5:
                before.commit(partition)
            before.give_back(partition)
        fresh = not idle or (len(world.owners) < 3 and self.chance.random() < 0.5)
        (self._process() if fresh else self.chance.choice(idle)).take(partition)

    def _process(self) -> Owner:
        return Owner(self.world)

    def _fault(self) -> None:
        world, chance = self.world, self.chance
        kinds = (self._crash, self._rebalance, self._ghost_lands, self._compact, self._commit_is_lost)
        [kind] = chance.choices(kinds, (35, 25, 30, 30, 5) if self.ghostly else (35, 30, 20, 10, 5))
        if world.owners:
            kind()

    def _crash(self) -> None:
        world, chance = self.world, self.chance
        # One that is just telling what it decided, if there is one: most rules are about that moment.
        telling = [o for o in world.owners if o.call and o.call.at.record and o.call.at.record.topic == T.history]
        writing = [o for o in world.owners if o.line.flying and o.line.flying[0].topic == T.changelog]
        chosen = chance.choice((writing if self.ghostly else telling) or world.owners)
        chosen.crash(ghosts=chance.random() < (0.9 if self.ghostly else 0.5))
        if chance.random() < 0.3:
            world.land_ghosts()  # while nobody serves: only the next recovery can tell

    def _rebalance(self) -> None:
        self._move(self.chance.randrange(self.partitions))

    def _ghost_lands(self) -> None:
        world = self.world
        if world.ghosts:
            ghost = self.chance.choice(world.ghosts)
            for _ in range(self.chance.randint(1, len(ghost))):
                world.land(ghost.popleft())
            world.ghosts = [ghost for ghost in world.ghosts if ghost]

    def _compact(self) -> None:
        world = self.world
        if self._digested():
            quiet = not world.ghosts and set(world.owners) == set(world.lawful.values())
            world.log.compact(T.changelog, tombstones=quiet)

    def _commit_is_lost(self) -> None:
        self.chance.choice(self.world.owners).finished.clear()

    def _digested(self) -> bool:
        """Whether every owner has seen all that is in its partition of the changelog, and answered it."""
        for partition in range(self.partitions):
            owner = self.world.lawful.get(partition)
            if owner is None or owner.call is None or not owner.call.done:
                return False
            _, end = self.world.log.bounds(T.changelog, partition)
            if partition not in owner.engine.live() or owner.engine.table(partition).next_changelog_offset != end:
                return False
        return True

    def _time(self) -> None:
        self.world.now += self.chance.choice((1, 50, 300, 300, 1_000, 4_000))

    def _commit(self) -> None:
        """What is finished is committed, now and then."""
        for owner in self.world.owners:
            for partition in list(owner.positions):
                owner.commit(partition)

    def _others_write(self) -> None:
        world, chance = self.world, self.chance
        kind = chance.random()
        if kind < 0.5:
            definition = chance.choice(WORKFLOWS)
            origin = None
            if chance.random() < 0.5:
                origin = m.Origin(topic="t", topic_id="i", partition=0, offset=chance.randrange(20))
            key = chance.randrange(self.keys)
            message = starting(
                definition,
                f"k{key}",
                traceparent=TRACE if key % 2 else None,
                input=chance.choice(({"n": 1}, {"n": 1}, {"n": 2})),
                origin=origin,
                reply=m.ReplyTo(topic=T.replies, partition=0) if chance.random() < 0.3 else None,
            )
            if chance.random() < 0.03:
                message = message.model_copy(update={"definition": "sha256:none"})
            if chance.random() < 0.03:
                message = message.model_copy(update={"version": "other"})
            self.executions.append(message.execution)
            wrong = chance.random() < 0.05
            world.event(message, message.execution, chance.randrange(self.partitions) if wrong else None)
        elif kind < 0.62:
            self._retry()
        elif kind < 0.75:
            world.raw(chance.choice(BAD_EVENTS), chance.randrange(self.partitions))
        elif kind < 0.85 and self.executions:
            execution = self._one_of_a_family()
            world.event(m.CancelExecution(execution=execution, actor="a"), execution)
        elif self.executions:
            execution = chance.choice(self.executions)
            task = str(TaskId(execution, chance.randrange(9), "a", 1))
            world.event(m.StepCompleted(task_id=task), execution)

    def _one_of_a_family(self) -> str:
        number = self.chance.choice((0, 0, 0, 1, 2))
        return retry_id(root_id(self.chance.choice(self.executions)), number)

    def _retry(self) -> None:
        """Somebody asks for a retry; sometimes twice, sometimes of what is not there, sometimes on a wrong path."""
        world, chance = self.world, self.chance
        if not self.executions:
            return
        execution = self._one_of_a_family()
        ended = [
            value["execution"]
            for value in self.world.values(T.history)
            if value["type"] in ("ExecutionFailed", "ExecutionCancelled")
        ]
        if ended and chance.random() < 0.6:
            execution = chance.choice(ended[-3:])
        definition = chance.choice(WORKFLOWS)
        anew = chance.random() < 0.3
        message = m.RetryExecution(
            execution=execution,
            request=f"r{chance.randrange(40)}",
            actor="a",
            reason="fixed",
            from_start=anew or chance.random() < 0.2,
            workflow=definition.name if anew else None,
            version=definition.version if anew else None,
            definition=definition.hash if anew else None,
            input=m.GivenInput(value={"n": 3}) if anew else None,
            reply=m.ReplyTo(topic=T.replies, partition=0) if chance.random() < 0.5 else None,
        )
        wrong = chance.random() < 0.05
        world.event(message, execution, chance.randrange(self.partitions) if wrong else None)

    def _worker(self) -> None:
        world, chance = self.world, self.chance
        found = world.log.records(T.steps("q"))
        if not found:
            return
        record = chance.choice(found[-8:] if chance.random() < 0.9 else found)
        step = decode_object(record.value)
        task = step["task_id"]
        kind = chance.random()
        answer: m.Event
        if kind < 0.55:
            answer = m.StepCompleted(task_id=task, output={"n": chance.randrange(3)}, worker_id="w")
        elif kind < 0.7:
            error = m.StepError(kind=chance.choice(("Boom", "not_served", "not_served", "timed_out")), message="m")
            answer = m.StepFailed(
                task_id=task,
                error=error,
                broker_task_id=f"{record.topic}/{record.partition}/{record.offset}",
                dispatch=step["dispatch"],
                partitions=chance.choice((world.log.partitions(record.topic), 99, None)),
            )
        elif kind < 0.75:
            answer = m.StepFailed(task_id=task, error=m.StepError(kind="Fatal", retryable=False))
        elif kind < 0.9:
            answer = m.StepStarted(task_id=task)
        else:
            answer = m.StepHeartbeat(task_id=task, details={"n": chance.randrange(3)})
        wrong = chance.random() < 0.03
        home: int = step["reply"]["partition"]
        world.event(answer, step["reply"]["key"], chance.randrange(self.partitions) if wrong else home)

    # -- calm -----------------------------------------------------------------------------------------------

    def _calm(self) -> None:
        """No more faults: one process takes all, workers complete everything."""
        world = self.world
        for owner in list(world.owners):
            owner.crash(ghosts=self.chance.random() < 0.5)
        answered: set[tuple[int, int]] = set()
        for _ in range(9):
            owner = Owner(world, rules=self.newest)
            try:
                self._finish(owner, answered)
                self.last = owner
                break
            except Exception as error:  # noqa: BLE001
                if not is_halt(error):  # a ghost may be a claim: then the process ends, and the next one claims
                    self.problems.append(f"in the calm {type(error).__name__}: {error}")
                owner.crash()

    def _finish(self, owner: Owner, answered: set[tuple[int, int]]) -> None:
        world = self.world
        for partition in range(self.partitions):
            owner.take(partition).to_end()
        world.land_ghosts()
        for _ in range(600):
            self._round(owner, answered)
            if not self._open(owner):
                break
        else:
            self.problems.append(f"not over in the end: {self._open(owner)}")
        world.now += 4_000
        owner.tick().to_end()  # sees the ghosts, if nothing else was to be done
        self._round(owner, answered)
        self._drain(owner)
        self.problems += [f"partition {p} stopped: {why}" for p, why in owner.engine.stopped.items()]

    def _round(self, owner: Owner, answered: set[tuple[int, int]]) -> None:
        world = self.world
        self._drain(owner)
        owner.tick().to_end()
        for record in world.log.records(T.steps("q")):
            if (record.partition, record.offset) not in answered:  # a task may be sent again: not_served
                answered.add((record.partition, record.offset))
                step = decode_object(record.value)
                reply = step["reply"]
                world.event(m.StepCompleted(task_id=step["task_id"], output=1), reply["key"], reply["partition"])
        world.now += 700

    @staticmethod
    def _drain(owner: Owner) -> None:
        while batch := owner.fetch(100):
            if not owner.process(batch).to_end():
                break

    def _open(self, owner: Owner) -> list[str]:
        return [
            state.id
            for partition in range(self.partitions)
            for key, entry in owner.engine.table(partition).items()
            if is_state(key) and entry.value is not None
            for state in [decode_execution(entry.value)]
            if state.status not in TERMINAL_EXECUTION and state.status is not ExecutionStatus.INCIDENT
        ]

    # -- verdict --------------------------------------------------------------------------------------------

    def verdict(self) -> list[str]:
        """What differs from the run of the same events that no fault ever touched."""
        found, wanted = left_by(self.world), left_by(undisturbed(self.world, self.newest))
        wrong = [*self.problems, *self.world.early[:1], *found.problems, *wanted.problems]
        for name in ("history", "heads", "steps"):
            wrong += [f"{name}: {line}" for line in _differences(getattr(found, name), getattr(wanted, name))]
        if found.control != wanted.control:
            wrong.append("control differ")
        # As with dead letters: a request read again after all was forgotten is answered as if nothing had been.
        if not wanted.replies <= found.replies or any(
            b"_gone" not in more for more in found.replies - wanted.replies
        ):
            wrong.append("replies differ")
        wrong += [f"no dead letter {letter}" for letter in sorted(wanted.dead - found.dead)]
        # Whether an execution was forgotten or never known cannot be told when its records are read again.
        more = {letter for letter in found.dead - wanted.dead if letter[0] != "unknown_execution"}
        wrong += [f"a dead letter too many: {letter}" for letter in sorted(more)]
        for execution in found.states.keys() | wanted.states.keys():
            if found.states.get(execution) != wanted.states.get(execution):
                wrong.append(f"the state of {execution} differs")
        for key in wanted.payloads.keys() - found.payloads.keys():
            if payload_of(key) in wanted.live:
                wrong.append(f"{key!r} was removed too early")
        return wrong + self._remains()

    def _remains(self) -> list[str]:
        """Long after all of it: what the table still has of executions. (A defect's incidents would stay.)"""
        if self.last is None:
            return ["nobody finished"]
        answered: set[tuple[int, int]] = set()
        self.world.lossy = False
        for _ in range(8):
            self.world.now += 2 * DAY
            self._round(self.last, answered)
        keys = [key for p in range(self.partitions) for key, _ in self.last.engine.table(p).items()]
        return [
            f"{key!r} stays for ever"
            for key in keys
            if key != WATERMARK_KEY and (is_state(key) or payload_of(key) is not None)
        ]


class _Quiet:
    """A producer for the reference: what goes to the events topic is there already."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def send(self, records: list[Record]) -> list[Delivery]:
        return [
            Delivery(0, 0) if record.topic == T.events else self._world.log.append(record) for record in records
        ]


def undisturbed(world: World, rules: int | None = None) -> World:
    """The same events folded by one engine without faults."""
    other = World(world.partitions, world.definitions.by_hash.values())
    engine = Engine(
        *(other.events_topic(), _Quiet(other), other.log.reader(), other.definitions),
        *(lambda: other.now, other.nonce),
        rules=rules,
    )
    for partition in range(world.partitions):
        Call(engine.assign(partition, None)).to_end()
    events = world.log.records(T.events)
    for record in events:
        other.now = record.timestamp
        other.log.append(Record(T.events, record.key, record.value, record.partition, record.headers))
    copies = other.log.records(T.events)
    for start in range(len(copies)):
        Call(engine.process(copies[start : start + 1])).to_end()
    return other


def left_by(world: World) -> Left:
    left = Left()
    _read_history(world, left)
    for record in world.log.records(T.steps("q")):
        left.steps[((record.key or b"").decode(), record.value or b"")] = None
    left.control = {record.value or b"" for record in world.log.records(T.control)}
    left.replies = {record.value or b"" for record in world.log.records(T.replies)}
    left.dead = {(v["reason"], v["partition"], v["offset"]) for v in world.values(T.dead_letters)}
    for partition in range(world.partitions):
        table = PartitionTable(partition)
        for record in _partition(world.log.records(T.changelog), partition):
            table.load(record)
        for key, entry in table.items():
            if entry.value is None or key == WATERMARK_KEY:
                continue
            if not is_state(key):
                if payload_of(key) is not None:
                    left.payloads[key] = entry.value
                continue
            state = decode_execution(entry.value)
            if not is_over(state):
                left.live.add((state.id, state.run))
            if not state.forgotten:
                left.states[state.id] = encode_execution(state._replace(outbox=()))
    return left


def _read_history(world: World, left: Left) -> None:
    last: dict[tuple[str, int], int] = {}
    for record in world.log.records(T.history):
        value = decode_object(record.value)
        run = (value["execution"], value["run"])
        place = (*run, value["seq"])
        headers = dict(record.headers)
        before, after = headers[HEADER_PREV], headers[HEADER_HASH]
        if place in left.history:
            if left.history[place] != record.value:
                left.problems.append(f"history {place} was told in two ways")
            continue
        if value["seq"] != last.get(run, 0) + 1:
            left.problems.append(f"history {place} came first after {last.get(run, 0)}")
        last[run] = value["seq"]
        left.history[place], left.heads[place] = record.value or b"", (before, after)
        previous = left.heads[(*run, value["seq"] - 1)][1] if (*run, value["seq"] - 1) in left.heads else GENESIS
        if before != previous or after != chain(before, record.value or b""):
            left.problems.append(f"the chain is broken at {place}")


def _partition(records: list[Fetched], partition: int) -> Iterator[Fetched]:
    return (record for record in records if record.partition == partition)


def _differences(found: dict, wanted: dict) -> list[str]:  # type: ignore[type-arg]
    lines = [f"missing {key}" for key in wanted if key not in found]
    lines += [f"too many {key}" for key in found if key not in wanted]
    return lines + [f"other {key}" for key in wanted if key in found and found[key] != wanted[key]]


def storm(seed: int, length: int = 600) -> list[str]:
    """Run one seed; what is wrong."""
    run = Storm(seed, length)
    run.run()
    return run.verdict()
