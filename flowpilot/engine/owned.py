"""A partition that this process has claimed, and what it derives from the partition's table."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from flowpilot.core.payloads import is_over
from flowpilot.core.state import Execution, decode_execution
from flowpilot.engine.due import DueIndex
from flowpilot.engine.errors import PartitionStopped
from flowpilot.engine.keys import input_key, is_state, output_key, payload_of
from flowpilot.engine.table import WATERMARK_KEY, Entry, PartitionTable
from flowpilot_schemas.definition import WorkflowDefinition


class Trial(NamedTuple):
    """Records that a claim took in hand (both ends included). It stays if the process ended over them."""

    first: int
    last: int


class Watermark(NamedTuple):
    """The record under `wm`: everything up to `offset` is folded. Written by a claim and at each batch's end."""

    offset: int = -1
    nonce: str = ""
    topic_id: str = ""
    trials: tuple[Trial, ...] = ()

    def crashes(self, offset: int) -> int:
        """How many processes ended while the record at `offset` was in hand."""
        return sum(trial.first <= offset <= trial.last for trial in self.trials)

    def entry(self, epoch: int) -> Entry:
        """As it lies in the table and in the changelog."""
        value: dict[str, Any] = {"w": self.offset, "n": self.nonce, "t": self.topic_id}
        if self.trials:
            value["try"] = [list(trial) for trial in self.trials]
        return Entry(orjson.dumps(value), self.offset, epoch)

    @classmethod
    def of(cls, value: bytes | None) -> Watermark:
        """The watermark in a table's value; that of an empty partition if there is none. Raises ValueError."""
        if value is None:
            return cls()
        match orjson.loads(value):
            case {"w": int(offset), "n": str(nonce), "t": str(topic_id), **more}:
                trials = more.get("try", [])
                if isinstance(trials, list) and all(_is_trial(trial) for trial in trials):
                    return cls(offset, nonce, topic_id, tuple([Trial(*trial) for trial in trials]))
        raise ValueError("it is no watermark")


def _is_trial(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(offset, int) for offset in value)


def unreadable(partition: int, key: bytes, error: Exception) -> PartitionStopped:
    """What stops a partition whose changelog has a record under `key` that cannot be read."""
    return PartitionStopped(
        f"partition {partition}: its changelog holds under {key[:100]!r} what no engine wrote "
        f"({type(error).__name__}: {str(error)[:200]}): restore the changelog as it was before that record"
    )


class Ended(NamedTuple):
    """Inputs and outputs of runs that are over: they may go once everything up to `after` was sent."""

    keys: tuple[bytes, ...]
    after: int


@dataclass
class OwnedPartition:
    """Made by a claim, dropped on revoke. All of it but the claim itself can be derived from the table."""

    table: PartitionTable
    epoch: int
    watermark: Watermark
    recovered_watermark: int
    sent_through: int
    # Up to here the changelog is told what is in hand before it is: some record there may end the process.
    trial_until: int = -1
    deadlines: DueIndex = field(default_factory=DueIndex)
    forgets: DueIndex = field(default_factory=DueIndex)
    ended: deque[Ended] = field(default_factory=deque)
    markers: deque[tuple[str, int]] = field(default_factory=deque)  # (execution, src of its marker)
    # As recovered: who has decided on the record at an offset and may not have said so yet.
    owing: dict[int, list[str]] = field(default_factory=dict)
    forget_asked_at: int = 0
    checked_at: int = 0

    @property
    def partition(self) -> int:
        """Its number."""
        return self.table.partition

    def index_all(self) -> None:
        """Derive deadlines, windows and what has to be removed from the recovered table.

        Raises `PartitionStopped` for what no engine wrote: a process that ended over it would end everywhere.
        """
        key, states = b"", dict[str, Execution]()
        try:
            for key, entry in self.table.items():
                if is_state(key) and entry.value is not None:
                    state = self._recovered(entry.value)
                    states[state.id] = state
            for key, entry in self.table.items():
                payload = payload_of(key)
                if payload is None or entry.src > self.watermark.offset:
                    continue  # of a batch that did not land whole: its records are folded again, and need it
                holder = states.get(payload.execution)
                if holder is None or holder.run != payload.run or is_over(holder):
                    self.ended.append(Ended((key,), max(entry.src, holder.src if holder else -1)))
        except Exception as error:
            raise unreadable(self.partition, key, error) from error

    def _recovered(self, value: bytes) -> Execution:
        state = decode_execution(value)
        self.index(state)
        for outbox in state.outbox:
            if outbox.cause > self.sent_through:
                self.owing.setdefault(outbox.cause, []).append(state.id)
        return state

    def index(self, state: Execution) -> None:
        """Take notice of a state that was put into the table."""
        self.deadlines.set(state.id, state.due)
        self.forgets.set(state.id, state.forget_at)
        if state.forgotten:
            self.markers.append((state.id, state.src))

    def remove_later(self, state: Execution, definition: WorkflowDefinition) -> None:
        """The run of `state` is over: nobody will ask for its input and outputs again."""
        outputs = (output_key(state.id, state.run, step.name) for step in definition.steps)
        self.ended.append(Ended((input_key(state.id, state.run), *outputs), state.src))

    def apply(self, entries: Mapping[bytes, Entry]) -> None:
        """What the changelog has acknowledged becomes the table's."""
        for key, entry in entries.items():
            self.table.put(key, entry)

    def durable(self, key: bytes, written: Mapping[bytes, Entry]) -> Entry | None:
        """This owner's own value of `key`, as the changelog has it: of the batch under way, else of the table.

        Where a record was given up it is also that there is none: whoever is ahead would not come to the same.
        """
        if key in written:
            return written[key]
        if key == WATERMARK_KEY:
            return self.watermark.entry(self.epoch)
        return self.table.entry(key) or self.table.barring(key)
