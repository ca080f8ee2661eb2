"""Engines on the in-memory broker, driven step by step: every record that is written is a place to stop.

Nothing here runs on an event loop. A `Call` is a coroutine of an engine that is moved on by hand; it stops before
each record that it writes and after each await, so that a test may crash its process there, let it stand still
while another takes over, or let what it had in flight land later (a ghost).
"""

from __future__ import annotations

import random
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from typing import Any, NamedTuple

import orjson
import pytest
import structlog

from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.core.murmur2 import partition_of
from flowpilot.engine.claim import EventsTopic
from flowpilot.engine.engine import Engine
from flowpilot.engine.errors import EngineHalt
from flowpilot.ports.log import Delivery, Fetched, Record
from flowpilot.ports.meter import OFF, Meter
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.definition import RetryPolicy, StepDefinition, WorkflowDefinition
from flowpilot_schemas.ids import keyed_execution_id, root_id
from flowpilot_schemas.mac import NO_SECRETS, StepSecrets
from flowpilot_schemas.topics import Topics

T = Topics()
BEGIN = 1_700_000_000_000
LARGE = 10 << 20

CHAIN = WorkflowDefinition(
    name="chain",
    version="1",
    steps=(
        StepDefinition(name="a", queue="q", takes_input=True, heartbeat_ms=1_000, start_to_close_ms=20_000),
        StepDefinition(name="b", queue="q", depends_on=("a",), takes=("a",), takes_input=True),
        StepDefinition(name="c", queue="q", depends_on=("b",), takes=("b",)),
    ),
)
DIAMOND = WorkflowDefinition(
    name="diamond",
    version="1",
    timeout_ms=120_000,
    retry_window_ms=4_000,
    dedupe_window_ms=4_000,
    steps=(
        StepDefinition(name="top", queue="q", retry=RetryPolicy(max_attempts=2, initial_ms=500)),
        StepDefinition(name="left", queue="q", depends_on=("top",), takes=("top",)),
        StepDefinition(name="right", queue="q", depends_on=("top",), schedule_to_start_ms=30_000),
        StepDefinition(name="last", queue="q", depends_on=("left", "right"), takes=("left", "right")),
    ),
)
BRIEF = WorkflowDefinition(
    name="brief",
    version="1",
    dedupe_window_ms=1_500,
    retry_window_ms=1_500,
    steps=(StepDefinition(name="only", queue="q", takes_input=True, retry=RetryPolicy(max_attempts=1)),),
)
NOWHERE = WorkflowDefinition(
    name="nowhere",
    version="1",
    retry_window_ms=2_000,
    steps=(
        StepDefinition(name="here", queue="q"),
        StepDefinition(name="there", queue="no-such-queue"),
        StepDefinition(name="never", queue="q", depends_on=("there",)),
    ),
)
WORKFLOWS = (CHAIN, DIAMOND, BRIEF, NOWHERE)


class Point(NamedTuple):
    """Where a call stands: about to write `record`, or (None) at another await."""

    record: Record | None = None


@types.coroutine
def _stand(point: Point) -> Generator[Point, None, None]:
    yield point


class Registered:
    """The definitions that are registered."""

    def __init__(self, definitions: Iterable[WorkflowDefinition]) -> None:
        self.by_hash = {definition.hash: definition for definition in definitions}

    async def refresh(self) -> None:
        await _stand(Point())

    def get(self, definition_hash: str) -> WorkflowDefinition | None:
        return self.by_hash.get(definition_hash)


class Line:
    """A producer whose records land one by one: in order in each partition, in any order between partitions."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.flying: deque[Record] = deque()

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        found: list[Delivery | None] = [None] * len(records)
        order = deque(self._world.interleaved(records))
        self.flying = deque(records[index] for index in order)
        while self.flying:
            await _stand(Point(self.flying[0]))
            found[order.popleft()] = self._world.land(self.flying.popleft())
        if records:
            await _stand(Point())
        return [delivery for delivery in found if delivery is not None]


class Call:
    """A coroutine of an engine that is moved on by hand."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self.at = Point()
        self.done = False
        self.result: Any = None

    def step(self) -> None:
        """On to the next point. What the coroutine raises is raised here."""
        try:
            self.at = self._coroutine.send(None) or Point()
        except StopIteration as end:
            self.done, self.result = True, end.value
        except BaseException:
            self.done = True
            raise

    def to_end(self) -> Any:
        while not self.done:
            self.step()
        return self.result

    def before(self, condition: Callable[[Record], bool], nth: int = 1) -> Record:
        """On until it is about to write the nth record of that kind."""
        while not self.done:
            self.step()
            if not self.done and self.at.record is not None and condition(self.at.record):
                nth -= 1
                if nth == 0:
                    return self.at.record
        raise AssertionError("the call ended before that point")

    def kill(self) -> None:
        self._coroutine.close()
        self.done = True


class Owner:
    """A process with an engine: its positions, and what it finished but did not commit yet."""

    def __init__(
        self,
        world: World,
        skew: int = 0,
        meter: Meter = OFF,
        rules: int | None = None,
        secrets: StepSecrets = NO_SECRETS,
    ) -> None:
        self.world = world
        self.line = Line(world)
        reader = world.log.reader()
        self.engine = Engine(
            *(world.events_topic(), self.line, reader, world.definitions),
            *(lambda: world.now + skew, world.nonce, meter, rules, secrets),
        )
        self.reader = reader
        self.positions: dict[int, int] = {}
        self.finished: dict[int, int] = {}
        self.call: Call | None = None
        world.owners.append(self)

    async def _take(self, partition: int) -> None:
        table = self.engine.table(partition)
        _, end = await self.reader.bounds(T.changelog, partition)
        for record in await self.reader.read(T.changelog, partition, table.next_changelog_offset, end):
            table.load(record)
        table.next_changelog_offset = max(table.next_changelog_offset, end)
        start = await self.engine.assign(partition, self.world.committed.get(partition))
        self.positions[partition] = start

    def take(self, partition: int) -> Call:
        """Recovery, claim and all, of a partition that the group gives to this process."""
        self.world.lawful[partition] = self
        self.finished.pop(partition, None)
        self.call = Call(self._take(partition))
        return self.call

    def give_back(self, partition: int) -> None:
        self.positions.pop(partition, None)
        self.finished.pop(partition, None)
        self.engine.revoke(partition)

    def fetch(self, most: int, ends: dict[int, int] | None = None) -> list[Fetched]:
        """Up to `most` records of each partition, from the positions on."""
        found: list[Fetched] = []
        for partition, position in self.positions.items():
            if partition not in self.engine.stopped:
                found += [*self.world.log.fetch((T.events, partition), position, most)]  # type: ignore[arg-type]
        return found

    async def _process(self, batch: Sequence[Fetched]) -> list[Fetched]:
        done = await self.engine.process(batch)
        for record in done:
            self.finished[record.partition] = record.offset + 1
        return done

    def process(self, batch: Sequence[Fetched]) -> Call:
        for record in batch:
            self.positions[record.partition] = record.offset + 1
        self.call = Call(self._process(batch))
        return self.call

    def tick(self) -> Call:
        self.call = Call(self.engine.tick())
        return self.call

    def commit(self, partition: int) -> None:
        """Through the group: only its owner's commit counts."""
        if self.world.lawful.get(partition) is self and partition in self.finished:
            self.world.committed[partition] = self.finished[partition]

    def crash(self, *, ghosts: bool = False) -> None:
        """The process ends; with `ghosts`, what it was writing is still on its way."""
        if self.call is not None and not self.call.done:
            if ghosts and self.line.flying:
                self.world.ghosts.append(deque(self.line.flying))
            self.call.kill()
        self.world.owners.remove(self)
        for partition in [p for p, owner in self.world.lawful.items() if owner is self]:
            del self.world.lawful[partition]


class World:
    """A broker, the group's bookkeeping, and who writes to them."""

    def __init__(
        self,
        partitions: int = 1,
        definitions: Iterable[WorkflowDefinition] = WORKFLOWS,
        chance: random.Random | None = None,
    ) -> None:
        self.now = BEGIN
        self.chance = chance
        self.partitions = partitions
        self.log = MemoryLog(clock=lambda: self.now)
        for topic in (T.events, T.history, T.dead_letters):
            self.log.create_topic(topic, partitions, max_message_bytes=LARGE)
        self.log.create_topic(T.changelog, partitions, max_message_bytes=LARGE, compacted=True)
        self.log.create_topic(T.control, 1)
        self.log.create_topic(T.replies, 4)
        self.log.create_topic(T.steps("q"), 2)
        self.definitions = Registered(definitions)
        self.committed: dict[int, int] = {}
        self.lawful: dict[int, Owner] = {}
        self.owners: list[Owner] = []
        self.ghosts: list[deque[Record]] = []
        self._nonces = 0

    def nonce(self) -> str:
        self._nonces += 1
        return f"nonce-{self._nonces}"

    def events_topic(self) -> EventsTopic:
        return EventsTopic(T, self.log.topic_id(T.events), self.partitions)

    def interleaved(self, records: Sequence[Record]) -> Iterable[int]:
        if self.chance is None:
            return range(len(records))
        queues: dict[tuple[str, int], deque[int]] = {}
        for index, record in enumerate(records):
            queues.setdefault((record.topic, self.place(record)), deque()).append(index)
        waiting = list(queues.values())
        order: list[int] = []
        while waiting:
            queue = self.chance.choice(waiting)
            order.append(queue.popleft())
            if not queue:
                waiting.remove(queue)
        return order

    def place(self, record: Record) -> int:
        if record.partition is not None:
            return record.partition
        return partition_of(record.key, max(1, self.log.partitions(record.topic))) if record.key else 0

    def land(self, record: Record) -> Delivery:
        return self.log.append(record)

    def land_ghosts(self) -> None:
        for ghost in self.ghosts:
            while ghost:
                self.land(ghost.popleft())
        self.ghosts.clear()

    # -- what others write ----------------------------------------------------------------------------------

    def home(self, execution: str) -> int:
        return partition_of(root_id(execution).encode(), self.partitions)

    def event(self, message: Any, execution: str, partition: int | None = None) -> int:
        """Write a message to its home (or another) partition; its offset."""
        home = self.home(execution) if partition is None else partition
        return self.raw(encode_message(message), home, root_id(execution).encode())

    def raw(self, value: bytes | None, partition: int = 0, key: bytes | None = b"k") -> int:
        return self.log.append(Record(T.events, key, value, partition)).offset

    def start(self, definition: WorkflowDefinition, key: str, **fields: Any) -> str:
        """A start; the execution's id."""
        message = starting(definition, key, **fields)
        self.event(message, message.execution)
        return message.execution

    def raise_to(self, rules: int, partition: int = 0) -> int:
        """A raise of the partition's permitted rule set; its offset."""
        return self.raw(encode_message(m.RulesPermitted(rules=rules)), partition, b"rules")

    def owner(self, *partitions: int, rules: int | None = None) -> Owner:
        """A new process, of a release with these rule sets, that has taken these partitions (0 by default)."""
        owner = Owner(self, rules=rules)
        for partition in partitions or (0,):
            owner.take(partition).to_end()
        return owner

    # -- what there is --------------------------------------------------------------------------------------

    def values(self, topic: str) -> list[dict[str, Any]]:
        return [orjson.loads(record.value or b"null") for record in self.log.records(topic)]

    def history(self, execution: str) -> list[str]:
        """The types of its history events in the order of seq, each once; numbers must have no gap."""
        found: dict[tuple[int, int], str] = {}
        for value in self.values(T.history):
            if value["execution"] == execution:
                found[(value["run"], value["seq"])] = value["type"]
        for run in {run for run, _ in found}:
            numbers = sorted(seq for r, seq in found if r == run)
            assert numbers == list(range(1, len(numbers) + 1)), f"run {run} has a hole: {numbers}"
        return [found[place] for place in sorted(found)]

    def tasks(self) -> list[str]:
        """The task ids of all step messages, in order, repeated ones too."""
        return [value["task_id"] for value in self.values(T.steps("q"))]

    def dead_letters(self) -> list[tuple[str, int]]:
        """(reason, offset) of every dead letter."""
        return [(value["reason"], value["offset"]) for value in self.values(T.dead_letters)]


def starting(definition: WorkflowDefinition, key: str, **fields: Any) -> m.StartExecution:
    """A StartExecution of `key`."""
    given = {"input": {"key": key}, "execution": keyed_execution_id(definition.name, key)} | fields
    return m.StartExecution(
        workflow=definition.name, version=definition.version, definition=definition.hash, key=key, **given
    )


def drain(owner: Owner, most: int = 500) -> int:
    """Process everything there is in batches and commit; how many records."""
    count = 0
    while batch := owner.fetch(most):
        done = owner.process(batch).to_end()
        count += len(done)
        for partition in list(owner.positions):
            owner.commit(partition)
        if len(done) < len(batch):
            break
    return count


def completed(task_id: str, output: Any = None) -> m.StepCompleted:
    """A worker's answer."""
    return m.StepCompleted(task_id=task_id, output={"of": task_id} if output is None else output, worker_id="w")


def answer_all(world: World, answered: set[str]) -> int:
    """Complete every step message that was not answered yet."""
    count = 0
    for value in world.values(T.steps("q")):
        if value["task_id"] not in answered:
            answered.add(value["task_id"])
            world.event(completed(value["task_id"]), value["reply"]["key"], value["reply"]["partition"])
            count += 1
    return count


def is_halt(error: BaseException) -> bool:
    """Whether an engine ended itself, as it has to do when it is in doubt."""
    return isinstance(error, EngineHalt)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import it where defects are provoked: their tracebacks, rendered, take most of a test's time."""
    monkeypatch.setattr("flowpilot.engine.engine.log", structlog.wrap_logger(None, [_drop]))


def _drop(*_: Any) -> Any:
    raise structlog.DropEvent
