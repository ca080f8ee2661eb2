"""The audit record's store: what the audit writer needs of it, and what is read back to check it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from flowpilot.core.errors import FlowPilotError
from flowpilot.ports.log import TopicPartition
from flowpilot_schemas.codec import content_hash
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.messages import DeadLetter
from flowpilot_schemas.triggers import TriggerFiltered

Row = dict[str, Any]
"""Columns that change and their new values: text, int, decoded JSON (`output`, `error`, `errors`) or, for
moments (`…_at`), ISO 8601 text."""


UNKNOWN = "unknown"
"""The status of a run whose first events are missing, and of a parent of which nothing is known but its id."""


class RunKey(NamedTuple):
    """One run of an execution."""

    execution: str
    run: int


class TaskKey(NamedTuple):
    """One step of one run."""

    execution: str
    run: int
    step: str


class HistoryEvent(NamedTuple):
    """A history record: what stands in its value, the value itself, its two hashes and where it lies.

    `prev` and `hash` are empty if the record has no such header.
    """

    execution: str
    run: int
    seq: int
    type: str
    at: str
    step: str | None
    attempt: int | None
    fields: dict[str, Any]
    body: bytes
    prev: bytes
    hash: bytes
    topic: str
    partition: int
    offset: int


class Head(NamedTuple):
    """The newest stored event of a run: its `seq` and hash."""

    seq: int
    hash: bytes


class Divergence(NamedTuple):
    """What should not be: a stable word and a sentence. `key` and `body` stand here if nothing else keeps them."""

    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    execution: str | None = None
    run: int | None = None
    seq: int | None = None
    key: bytes | None = None
    body: bytes | None = None

    @property
    def fingerprint(self) -> str:
        """What tells it from every other one, also from a later one at the same place: 64 hexadecimal digits.

        A sentence may come from a database and change with its release, so it counts only where no bytes do.
        """
        bytes_ = None if self.body is None else [_sha256(self.key or b""), _sha256(self.body)]
        place = [self.topic, self.partition, self.offset, self.reason, self.execution, self.run, self.seq]
        return content_hash([*place, bytes_ or self.detail]).partition(":")[2]

    def cut(self) -> Divergence:
        """As it is stored: of large bytes the first `KEPT_BYTES`, and their size and hash in the sentence."""
        key, body, detail = self.key, self.body, self.detail
        for name, value in (("key", key), ("value", body)):
            if value is not None and len(value) > KEPT_BYTES:
                whole = f"{len(value):,} bytes, sha256 {_sha256(value)}"
                detail += f"; of the {name} ({whole}) the first {KEPT_BYTES:,} bytes are kept"
        return self._replace(detail=detail, key=key and key[:KEPT_BYTES], body=body and body[:KEPT_BYTES])


def _sha256(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


KEPT_BYTES = 64 * 1024
KEPT_DIVERGENCES = 1_000
"""Divergences of a partition that are stored one by one: who can write to a topic must not fill the database."""
FURTHER = "further"
"""The reason of the one divergence that stands for all beyond that; its `seq` is their number."""


def further(topic: str, partition: int, offset: int, count: int) -> Divergence:
    """What stands for `count` divergences of a partition, of which the last is at `offset`."""
    detail = (
        f"{count:,} further divergences up to offset {offset} are counted and not listed: more than "
        f"{KEPT_DIVERGENCES:,} of this partition are; the records are on the topic"
    )
    return Divergence(FURTHER, detail, topic, partition, offset, seq=count)


class Acknowledgement(NamedTuple):
    """That an operator knows of a divergence: it is listed, and is no error any more. `at` is ISO 8601."""

    fingerprint: str
    actor: str
    reason: str
    at: str


class Acknowledgements(Protocol):
    """What operators have acknowledged. Blocks; raises what the store raises."""

    def acknowledged(self) -> dict[str, Acknowledgement]:
        """All of them, by fingerprint."""
        ...

    def acknowledge(self, findings: Mapping[str, str], actor: str, reason: str) -> int:
        """Acknowledge findings, given by fingerprint with a sentence each. How many were not before: the first
        acknowledgement of a fingerprint stays as it is."""
        ...


@dataclass(slots=True)
class Changes:
    """What a batch's events change in the current rows, and what is wrong with them."""

    executions: dict[RunKey, Row] = field(default_factory=dict)
    tasks: dict[TaskKey, Row] = field(default_factory=dict)
    born: set[TaskKey] = field(default_factory=set)
    """Tasks that may have no row yet; the others have one, unless somebody removed it."""
    attempts: dict[TaskKey, int] = field(default_factory=dict)
    """Of every task, the attempt to begin with if it has no row; 0 for one that was never tried."""
    parents: dict[RunKey, str] = field(default_factory=dict)
    repeats: list[Repeat] = field(default_factory=list)
    divergences: list[Divergence] = field(default_factory=list)


class Repeat(NamedTuple):
    """A trigger record that started nothing new: `fate` is `duplicate` or `key_conflict`, of this run."""

    fate: str
    topic: str
    topic_id: str
    partition: int
    offset: int
    execution: str
    run: int
    seq: int


Project = Callable[[Sequence[HistoryEvent], Mapping[RunKey, Head]], Changes]


class Registered(NamedTuple):
    """A definition is on the definitions topic; `at` is the broker's time in ms."""

    hash: str
    definition: WorkflowDefinition
    at: int


class Pointed(NamedTuple):
    """A name points to a version: the workflow's name (`current`), or the version's own.

    `definition` is what the hash names, if it is known.
    """

    workflow: str
    version: str
    hash: str
    current: bool
    definition: Registered | None = None


class Removed(NamedTuple):
    """A tombstone: of a definition (`hash`), of a version, or of a whole workflow."""

    workflow: str | None = None
    version: str | None = None
    hash: str | None = None


DefinitionChange = Registered | Pointed | Removed


class Letter(NamedTuple):
    """A dead letter and the broker's time of its report in ms."""

    message: DeadLetter
    at: int


class Position(NamedTuple):
    """The next offset to read of a topic, which is this one (KIP-516) and no later one of the same name."""

    topic_id: str
    next_offset: int


class Advance(NamedTuple):
    """A batch moves a partition from `expected` to `next_offset`."""

    partition: TopicPartition
    topic_id: str
    expected: int
    next_offset: int


@dataclass(slots=True)
class Batch:
    """What is written in one transaction. `events` are in the order of their partitions."""

    advances: list[Advance] = field(default_factory=list)
    events: list[HistoryEvent] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    filtered: list[TriggerFiltered] = field(default_factory=list)
    definitions: list[DefinitionChange] = field(default_factory=list)
    divergences: list[Divergence] = field(default_factory=list)


class StoreUnavailable(Exception):
    """The store did not answer. What was asked may or may not be done: read the positions again."""


class Outrun(Exception):
    """Another writer moved one of the partitions: nothing of the batch was written."""


class BatchRefused(Exception):
    """The store can never take this batch as it is: nothing of it was written."""


class StoreUnusable(FlowPilotError):
    """The store answers but is not what it must be; the message says what to do."""


class AuditStore(Protocol):
    """Where the audit writer writes. All methods raise `StoreUnavailable` and `StoreUnusable`."""

    async def positions(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Position]:
        """The stored positions, of the partitions that have one."""
        ...

    async def begin(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Store first positions; one that is there already stays."""
        ...

    async def write(self, batch: Batch, project: Project) -> Sequence[Divergence]:
        """Write all of it or nothing: events, rows, dead letters, what was filtered, definitions, positions.

        `project` is called with the batch's events and the stored heads of their runs. An event that is stored
        already is compared: other bytes make a divergence. Returns all divergences that were found, the batch's own
        among them. Raises `Outrun` and `BatchRefused`.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class StoredRun(NamedTuple):
    """All that is stored of one run. Rows have the columns of `Row`, moments as ISO 8601 text in UTC."""

    key: RunKey
    events: list[HistoryEvent]
    execution: Row | None
    parent: str | None
    tasks: dict[str, Row]


class AuditArchive(Protocol):
    """What the audit holds, for checking it against itself."""

    def runs(self, execution: str | None = None) -> Iterator[StoredRun]:
        """Every run (of `execution`, if given), its events by seq; also rows that have no event."""
        ...
