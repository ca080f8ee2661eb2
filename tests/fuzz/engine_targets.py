"""What the engine reads: events, folded on states that were reached, and its own changelog."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from random import Random
from typing import Any

from flowpilot.audit.records import dead_letter, history_event
from flowpilot.core.state import decode_execution, encode_execution
from flowpilot.engine.changelog import Changelog
from flowpilot.engine.claim import EventsTopic, claim
from flowpilot.engine.errors import PartitionStopped
from flowpilot.engine.fold import Fold, Frame
from flowpilot.engine.outputs import Output
from flowpilot.engine.overlay import Overlay
from flowpilot.engine.owned import OwnedPartition, Watermark
from flowpilot.engine.reading import read
from flowpilot.engine.table import HEADER_EPOCH, HEADER_SRC, Entry, PartitionTable
from flowpilot.ports.audit import Divergence
from flowpilot.ports.log import Delivery, Fetched, Record
from flowpilot.worker.records import read_step
from flowpilot_schemas.codec import decode_object, parse
from flowpilot_schemas.messages import RULES, Cancelled, ExecutionEnded, RetryAnswered, Superseded
from flowpilot_schemas.topics import Topics
from tests.fuzz.frame import Given, framed, given
from tests.fuzz.seeds import examples
from tests.fuzz.states import Reached, reached
from tests.fuzz.target import Target, require

T = Topics()
_EPOCH = 9
_EVENTS = (
    *("execution.start", "execution.retry", "execution.cancel", "step.completed", "step.failed", "step.started"),
    *("step.heartbeat", "timer.fired", "partition.forget", "retry.ended", "retry.check", "retry.forget"),
)


def event(data: bytes) -> None:
    """Each record folded, one after another; then all of them again, as after a crash.

    A header `o=<n>` puts a record at an offset that was folded before, `t=<n>` so many ms later.
    """
    start, base = reached(), _base()
    records = _events(start, data)
    table, owing = start.table(), base.owing
    first = _Folded(table, base.owing, records, recovered=start.end - 1)
    for output in first.outputs:
        _readable(output)
    for key, value, src, _ in first.overlay.writes():
        table.put(key, Entry(value, src, _EPOCH))
    if any(b"forget" in (record.value or b"") for record in records):
        owing = _owned(table).owing
    fresh = [record for record in first.folded if record.offset >= start.end]
    last = max([start.end - 1, *(each.offset for each in fresh)])
    again = _Folded(table, owing, fresh, recovered=last)
    more = {_facts(output) for output in again.outputs} - {_facts(output) for output in first.outputs}
    require(not [fact for fact in more if fact[0] in (T.history, T.steps("q"))], f"told otherwise again: {more}")


def _owned(table: PartitionTable) -> OwnedPartition:
    end = reached().end
    owned = OwnedPartition(table, _EPOCH, Watermark(end - 1), end - 1, sent_through=-1)
    owned.index_all()
    return owned


@cache
def _base() -> OwnedPartition:
    return _owned(reached().table())


def _events(start: Reached, data: bytes) -> list[Fetched]:
    found, now = [], start.now
    for place, record in enumerate(given(data)[:6]):
        offset, headers = start.end + 2 * place, []
        for name, value in record.headers:
            if name == "t" and value.isdigit():
                now += int(value[:12])
            elif name == "o" and value.isdigit():
                offset = int(value[:9]) % start.end
            else:
                headers.append((name, value))
        found.append(Fetched(T.events, 0, offset, now, record.key, record.value, tuple(headers)))
    return found


class _Folded:
    def __init__(
        self, table: PartitionTable, owing: dict[int, list[str]], records: Iterable[Fetched], recovered: int
    ) -> None:
        start = reached()
        self.overlay = Overlay(table, dict(start.definitions))
        forgets = _base().forgets
        frame = Frame(
            0, 1, T, self.overlay, recovered, -1, start.definitions.get,
            lambda bound: forgets.reached(bound, len(forgets)), lambda at: owing.get(at, ()),
        )  # fmt: skip
        fold = Fold(frame)
        self.folded: list[Fetched] = []
        for record in records:
            try:
                fold.record(record)
            except PartitionStopped:
                break
            self.folded.append(record)
        self.outputs = fold.outputs.records
        for state in self.overlay.changed.values():
            require(decode_execution(encode_execution(state)) == state, "a state is another one when it is read")


def _facts(output: Output) -> tuple[str, bytes]:
    return output.record.topic, output.record.value or b""


def _readable(output: Output) -> None:
    """Whoever reads it at the next hop understands it."""
    record = output.record
    fetched = Fetched(record.topic, 0, 0, 0, record.key, record.value, record.headers)
    if record.topic == T.history:
        _, divergence = history_event(fetched)
        require(divergence is None, divergence)
    elif record.topic == T.dead_letters:
        letter = dead_letter(fetched)
        require(not isinstance(letter, Divergence), letter)
    elif output.task_id is not None:
        message, _, _ = read_step(fetched)
        require(message.task_id == output.task_id, "another task's message")
    elif record.topic == T.events:
        # A record that came to the wrong partition is forwarded as it is; here there is but one.
        read(fetched)
    elif record.topic in (T.control, T.replies):
        value = decode_object(record.value)
        models: tuple[Any, ...] = (Cancelled, Superseded, ExecutionEnded, RetryAnswered)
        [model] = [model for model in models if model.model_fields["type"].default == value["type"]]
        parse(model, value)
    else:
        require(False, f"a record for {record.topic}")


class _Log:
    """A changelog on which this process is alone, and an events topic that reaches far."""

    def __init__(self) -> None:
        self.end = 0

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        return 0, self.end if topic == T.changelog else 2**40

    async def read(self, topic: str, partition: int, start: int, end: int) -> list[Fetched]:
        return []

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        self.end += len(records)
        return [Delivery(0, self.end - len(records) + place) for place in range(len(records))]


def state(data: bytes) -> None:
    """Records of the changelog: recovered and claimed. What cannot be read stops the partition with a sentence."""
    start, log = reached(), _Log()
    table = PartitionTable(0)
    for record in given(data)[:32]:
        table.load(Fetched(T.changelog, 0, log.end, start.now, record.key, record.value, record.headers))
        log.end += 1
    changelog = Changelog(T.changelog, log, log)
    events, committed = EventsTopic(T, "memory-1", 1), len(data) % 40
    claiming = claim(table, events, changelog, log, committed, "nonce", start.now, RULES)
    try:
        claiming.send(None)
    except StopIteration as done:
        owned, position = done.value
        require(position <= max(owned.watermark.offset + 1, 40), "it would read on behind what it knows")
    except PartitionStopped as stopped:
        require(len(str(stopped)) > 40, "no sentence")


# -- seeds ----------------------------------------------------------------------------------------------------


def _event_seeds() -> tuple[bytes, ...]:
    start = reached()
    tasks = [name for name in start.ids if name.count("/") == 3]
    executions = [name for name in start.ids if name.count("/") == 0 and name.count("-") == 4]
    found: list[Given] = [Given(record.value) for record in start.events]
    for kind in _EVENTS:
        for number, example in enumerate(examples(kind)):
            for aim in range(0, len(tasks), 2):
                told = dict(example)
                if "task_id" in told:
                    told["task_id"] = tasks[aim]
                elif "execution" in told:
                    told["execution"] = executions[aim % len(executions)]
                found.append(Given(json.dumps(told).encode(), None, (("t", b"%d" % (number * 90_000)),)))
    single = [framed([record]) for record in found]
    chance = Random(1)
    return (*single, *(framed(chance.sample(found, 4)) for _ in range(40)))


def _state_seeds() -> tuple[bytes, ...]:
    start = reached()
    found = [Given(record.value, record.key, record.headers) for record in start.changelog]
    chance = Random(1)
    return (*(framed([record]) for record in found), *(framed(chance.sample(found, 6)) for _ in range(20)))


TARGETS = (
    Target(
        "event",
        "events, folded on states that were reached",
        event,
        _event_seeds(),
        (*reached().ids, "o=3", "o=9", "t=100", "t=90000", "fp-hops=1"),
    ),
    Target(
        "state",
        "records of the changelog: recovery, states, watermark",
        state,
        _state_seeds(),
        (
            *reached().ids,
            "wm",
            f"{HEADER_SRC}=5",
            f"{HEADER_EPOCH}=2",
            f"{HEADER_SRC}=x",
            "try",
            "outbox",
            "retries",
        ),
    ),
)
