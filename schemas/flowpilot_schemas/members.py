"""On `flowpilot.members`: the live processes of a FlowPilot, and what each of them serves.

A record's key is `worker/<worker>` or `engine/<engine>`. A process repeats its announcement every third of its
session; a null value means that it has left. An announcement expires `session_ms` after the LogAppendTime of its
record. Expiry is judged by the broker's time, not by any process's clock: a reader that needs the current time
writes a record with the key `clock` and a null value.

Announcing is optional: a worker that does not announce runs steps all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from flowpilot_schemas.limits import KIB
from flowpilot_schemas.topics import MEMBER_MESSAGE as MEMBER_MESSAGE
from flowpilot_schemas.wire import Message, Name, Partition, Text

LONGEST_SESSION_MS = 120_000
"""A reader looks no further back than this."""

CLOCK_KEY = b"clock"
# Of a record's `MEMBER_MESSAGE`; what is left is for the ids, the release and the key.
DEFINITIONS_SIZE = 128 * KIB
QUEUES_SIZE = 96 * KIB
STOPPED_TOLD = 50
_REASON_TOLD = 400  # characters

SessionMs = Annotated[int, Field(ge=1_000, le=LONGEST_SESSION_MS)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


class ServedDefinition(BaseModel):
    """A workflow version for which a worker has the handlers; `definition` is its hash."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    workflow: Name
    version: Text
    definition: Text


class WorkerAnnounced(Message):
    """A live worker: the partitions that it has of each queue, and the definitions that it serves.

    What does not fit into a record is left out and counted: definitions given last, queues given last, and the
    partitions of queues whose list would be too long.
    """

    type: Literal["worker.announced"] = "worker.announced"
    worker: Text
    started_at: Text
    release: Text
    queues: dict[Name, list[Partition]]
    definitions: list[ServedDefinition]
    definitions_left_out: Count = 0
    queues_left_out: Count = 0
    partitions_left_out: Count = 0
    session_ms: SessionMs

    @property
    def key(self) -> bytes:
        """The record's key."""
        return worker_key(self.worker)


class StoppedPartition(BaseModel):
    """A partition of the events topic that an engine owns and does not go on with."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    partition: Partition
    reason: Text


class EngineAnnounced(Message):
    """A live engine; `rules`: the highest rule set that it has. `stopped`: partitions that it has stopped, the
    lowest first; those beyond `STOPPED_TOLD` are left out."""

    type: Literal["engine.announced"] = "engine.announced"
    engine: Text
    started_at: Text
    release: Text
    rules: Annotated[int, Field(ge=1, le=2**31 - 1)]
    stopped: list[StoppedPartition] = Field(default=[])
    session_ms: SessionMs

    @property
    def key(self) -> bytes:
        """The record's key."""
        return engine_key(self.engine)


def worker_key(worker: str) -> bytes:
    """The record key of a worker."""
    return f"worker/{worker}".encode()


def engine_key(engine: str) -> bytes:
    """The record key of an engine."""
    return f"engine/{engine}".encode()


def stopped_partitions(stopped: Mapping[int, str]) -> list[StoppedPartition]:
    """Partition to sentence, as far as an announcement has room for it."""
    return [
        StoppedPartition(partition=partition, reason=stopped[partition][:_REASON_TOLD])
        for partition in sorted(stopped)[:STOPPED_TOLD]
    ]


def worker_announced(
    worker: str,
    *,
    started_at: str,
    release: str,
    queues: Mapping[str, Sequence[int]],
    definitions: Sequence[ServedDefinition],
    session_ms: int,
) -> WorkerAnnounced:
    """The announcement, with as much of `queues` and `definitions` as one record may have."""
    kept, room = list[ServedDefinition](), DEFINITIONS_SIZE
    for served in definitions:
        room -= len(served.model_dump_json().encode()) + 1
        if room < 0:
            break
        kept.append(served)
    told, lost, room = dict[str, list[int]](), 0, QUEUES_SIZE
    for queue, partitions in queues.items():
        room -= len(queue) + 6
        if room < 0:
            break
        size = sum(len(str(partition)) + 1 for partition in partitions)
        fits = size <= room
        told[queue] = list(partitions) if fits else []
        room -= size if fits else 0
        lost += 0 if fits else len(partitions)
    return WorkerAnnounced(
        worker=worker,
        started_at=started_at,
        release=release,
        queues=told,
        definitions=kept,
        definitions_left_out=len(definitions) - len(kept),
        queues_left_out=len(queues) - len(told),
        partitions_left_out=lost,
        session_ms=session_ms,
    )
