"""What one engine that nothing ever happens to makes of the same events, one by one."""

from __future__ import annotations

from collections.abc import Collection, Coroutine, Iterable, Sequence
from typing import Any

from flowpilot.core.state import decode_execution, encode_execution
from flowpilot.engine.claim import EventsTopic
from flowpilot.engine.engine import DefinitionSource, Engine
from flowpilot.engine.keys import is_state
from flowpilot.engine.table import WATERMARK_KEY, PartitionTable
from flowpilot.engine.trial import Fate
from flowpilot.ports.log import Delivery, Fetched, Record
from tests.simulation.broker import Broker
from tests.simulation.plan import RULES

Output = tuple[str, bytes | None, bytes | None]
"""Topic, key, value."""


class Reference:
    """`outputs`: by (partition, offset) of the event, what is told of it, in order."""

    def __init__(self, broker: Broker, events: EventsTopic, definitions: DefinitionSource) -> None:
        self._broker, self._events = broker, events
        self._ends: dict[tuple[str, int], int] = {}
        self._now: list[Output] = []
        self.now = 0
        self.outputs: dict[tuple[int, int], list[Output]] = {}
        self.engine = Engine(events, self, self, definitions, lambda: self.now, lambda: "reference", rules=RULES)
        self._nowhere = Delivery(-1, -1, "unknown topic")

    # ---- the ports

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        """Nothing is written; what the broker would refuse is refused."""
        return [self._take(record) for record in records]

    def _take(self, record: Record) -> Delivery:
        topics = self._events.topics
        if record.topic == topics.events:
            return Delivery(0, 0)
        place = (record.topic, record.partition or 0)
        if record.topic != topics.changelog:
            error = refusal(self._broker, record)
            if error is not None:
                return Delivery(-1, -1, error)
            self._now.append((record.topic, record.key, record.value))
        offset = self._ends.get(place, 0)
        self._ends[place] = offset + 1
        return Delivery(place[1], offset)

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        return 0, self._ends.get((topic, partition), 0)

    async def read(self, topic: str, partition: int, start: int, end: int) -> list[Fetched]:
        return []

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        return 0

    # ---- the fold

    def fold(self, events: Iterable[Fetched], left_out: Collection[tuple[int, int]]) -> None:
        """All events, one batch each; `left_out` are the (partition, offset) that were given up."""
        for partition in range(self._events.partitions):
            finish(self.engine.assign(partition, None))
        for record in events:
            self.now = record.timestamp
            self._now = []
            given_up = (record.partition, record.offset) in left_out
            shares = [(self.engine._owned[record.partition], [record])]
            finish(self.engine._process(shares, Fate.GIVEN_UP if given_up else Fate.FOLDED))
            self.outputs[record.partition, record.offset] = self._now

    def home(self, execution: str) -> int:
        """The partition of an execution."""
        return self._events.home(execution)

    def states(self) -> dict[str, bytes]:
        """What executions came to."""
        found: dict[str, bytes] = {}
        for partition in range(self._events.partitions):
            found |= states_of(self.engine.table(partition))
        return found


def states_of(table: PartitionTable) -> dict[str, bytes]:
    """The states in a table, without what depends on what was sent, and without those that were forgotten."""
    found = {}
    for key, entry in table.items():
        if entry.value is not None and key != WATERMARK_KEY and is_state(key):
            state = decode_execution(entry.value)
            if not state.forgotten:
                found[state.id] = encode_execution(state._replace(outbox=()))
    return found


def refusal(broker: Broker, record: Record) -> str | None:
    """Why the broker would never take the record."""
    topic = broker.log._topics.get(record.topic)
    if topic is None:
        return f"unknown topic {record.topic}"
    size = len(record.key or b"") + len(record.value or b"") + 76
    size += sum(len(name) + len(value) for name, value in record.headers)
    if size > topic.max_message_bytes:
        return f"the record is larger than {topic.max_message_bytes} bytes"
    return None


def finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("it waits")
