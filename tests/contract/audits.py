"""The two audit stores that the behavioural suites run on, under one face."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pytest

from flowpilot.adapters.memory.audit import AuditTables, MemoryAuditStore
from flowpilot.adapters.postgres.archive import PostgresAuditArchive
from flowpilot.adapters.postgres.divergences import PostgresAcknowledgements
from flowpilot.adapters.postgres.engine import connect
from flowpilot.adapters.postgres.migrations import upgrade
from flowpilot.adapters.postgres.queries import AuditQueries
from flowpilot.adapters.postgres.store import PostgresAuditStore
from flowpilot.audit.projection import project
from flowpilot.audit.verify import Difference, verify
from flowpilot.core.outcomes import Fate
from flowpilot.ports.audit import (
    Acknowledgements,
    Advance,
    AuditArchive,
    AuditStore,
    Batch,
    Divergence,
    HistoryEvent,
    Position,
    StoredRun,
)
from flowpilot.ports.log import TopicPartition
from tests.audit_history import TOPIC

MEMORY_AND_POSTGRES = ["memory", pytest.param("postgres", marks=pytest.mark.integration)]
PLACE = TopicPartition(TOPIC, 0)
TOPIC_ID = "id-1"


class KeptLetter(NamedTuple):
    """A dead letter as it is stored."""

    workflow: str | None
    reason: str
    key: bytes | None
    value: bytes | None


class Kept(NamedTuple):
    """A divergence as it is stored."""

    fingerprint: str
    reason: str
    offset: int


class KeptFate(NamedTuple):
    """What a trigger record that started nothing came to, as it is stored."""

    fate: str
    workflow: str | None
    reason: str | None
    ranges: list[tuple[int, int]]
    execution: str | None = None
    run: int | None = None
    seq: int | None = None


class Audit(ABC):
    """A store with what a test needs of it beside the port; `PLACE` begins at offset 0."""

    store: AuditStore
    """The connection of one writer."""

    def __init__(self) -> None:
        self.next = 0

    def write(self, events: Sequence[HistoryEvent] = (), **more: Any) -> Sequence[Divergence]:
        """One batch at the next offset of `PLACE`: the divergences that it told of."""
        advance = Advance(PLACE, TOPIC_ID, self.next, self.next + 1)
        found = asyncio.run(self.store.write(Batch([advance], list(events), **more), project))
        self.next += 1
        return found

    def begin(self, positions: Mapping[TopicPartition, Position]) -> None:
        asyncio.run(self.store.begin(positions))

    def positions(self, *partitions: TopicPartition) -> dict[TopicPartition, Position]:
        return asyncio.run(self.store.positions(partitions or [PLACE]))

    def runs(self) -> list[StoredRun]:
        return list(self.archive.runs())

    def events(self) -> int:
        """How many are stored."""
        return sum(len(run.events) for run in self.runs())

    def differences(self, execution: str | None = None) -> list[Difference]:
        """What `verify` finds."""
        return list(verify(self.archive, execution))

    def open_findings(self) -> list[str]:
        """The fingerprints of what contradicts the audit and is not acknowledged: recorded, then recomputed."""
        found = [each.fingerprint for each in (*self.kept(), *self.differences())]
        return [each for each in found if each not in self.acknowledgements.acknowledged()]

    @property
    @abstractmethod
    def archive(self) -> AuditArchive: ...

    @property
    @abstractmethod
    def acknowledgements(self) -> Acknowledgements: ...

    @abstractmethod
    def kept(self) -> list[Kept]:
        """The fingerprints and places of the divergences that are stored, in the order in which they were found."""

    @abstractmethod
    def another(self) -> AuditStore:
        """The connection of another writer."""

    @abstractmethod
    def divergences(self) -> list[Divergence]:
        """Those that are stored, in the order in which they were found."""

    @abstractmethod
    def letters(self) -> list[KeptLetter]: ...

    @abstractmethod
    def fates(self) -> list[KeptFate]: ...

    @abstractmethod
    def outcomes(self, topic: str, partition: int, offset: int) -> list[Fate]:
        """The current outcomes of a trigger record."""

    @abstractmethod
    def workflows(self) -> dict[tuple[str, str], tuple[str, bool]]:
        """By name and version: the definition's hash, and whether it is the current one."""

    @abstractmethod
    def delete_rows(self) -> None:
        """Somebody deletes the rows of all executions; their events stay."""

    @abstractmethod
    def lose_all(self) -> None:
        """A standby takes over that has got nothing yet."""

    @abstractmethod
    def close(self) -> None:
        """Let go of connections."""


class InMemory(Audit):
    def __init__(self) -> None:
        super().__init__()
        self.store = self._store = MemoryAuditStore()

    @property
    def archive(self) -> AuditArchive:
        return self._store.tables

    @property
    def acknowledgements(self) -> Acknowledgements:
        return self._store.tables

    def kept(self) -> list[Kept]:
        return [Kept(name, each.reason, each.offset) for name, each in self._store.tables.divergences.items()]

    def another(self) -> AuditStore:
        return MemoryAuditStore(self._store.tables)

    def divergences(self) -> list[Divergence]:
        return list(self._store.tables.divergences.values())

    def letters(self) -> list[KeptLetter]:
        messages = [letter.message for letter in self._store.tables.letters.values()]
        return [
            KeptLetter(each.workflow, each.reason, _decoded(each.key), _decoded(each.value)) for each in messages
        ]

    def fates(self) -> list[KeptFate]:
        tables = self._store.tables
        filtered = [
            KeptFate("filtered", part.workflow, part.reason, list(part.ranges))
            for message in tables.filtered
            for part in message.filtered
        ]
        repeats = [
            KeptFate(each.fate, None, None, [(each.offset, each.offset)], each.execution, each.run, each.seq)
            for each in tables.repeats.values()
        ]
        return filtered + repeats

    def outcomes(self, topic: str, partition: int, offset: int) -> list[Fate]:
        return self._store.tables.fates(topic, partition, offset)

    def workflows(self) -> dict[tuple[str, str], tuple[str, bool]]:
        return {name: tuple(each) for name, each in self._store.tables.workflows.items()}

    def delete_rows(self) -> None:
        for rows in (self._store.tables.executions, self._store.tables.tasks, self._store.tables.parents):
            rows.clear()

    def lose_all(self) -> None:
        self._store.tables = AuditTables()

    def close(self) -> None: ...


class OnPostgres(Audit):
    def __init__(self, database_url: str) -> None:
        super().__init__()
        upgrade(database_url)
        self._url = database_url
        self._engine = connect(database_url)
        self._opened = [PostgresAuditStore(database_url)]
        self.store = self._opened[0]

    @property
    def archive(self) -> AuditArchive:
        return PostgresAuditArchive(self._engine)

    @property
    def acknowledgements(self) -> Acknowledgements:
        return PostgresAcknowledgements(self._engine)

    def kept(self) -> list[Kept]:
        rows = self._ask('SELECT fingerprint, reason, "offset" FROM audit_divergence ORDER BY id')
        return [Kept(*row) for row in rows]

    def another(self) -> AuditStore:
        self._opened.append(PostgresAuditStore(self._url))
        return self._opened[-1]

    def divergences(self) -> list[Divergence]:
        return [
            Divergence(
                *(row.reason, row.detail, row.topic, row.partition, row.offset),
                *(row.execution_id, row.run, row.seq, row.key, row.body),
            )
            for row in AuditQueries(self._engine).divergences()
        ]

    def letters(self) -> list[KeptLetter]:
        rows = self._ask("SELECT workflow, reason, key, value FROM dead_letter ORDER BY id")
        return [KeptLetter(name, reason, _bytes(key), _bytes(value)) for name, reason, key, value in rows]

    def fates(self) -> list[KeptFate]:
        ranges = "(SELECT array_agg(ARRAY[lower(r), upper(r) - 1] ORDER BY r) FROM unnest(offsets) r)"
        columns = f"fate, workflow, reason, {ranges}, execution_id, run, seq"
        rows = self._ask(f"SELECT {columns} FROM trigger_fate ORDER BY fate <> 'filtered', id")
        return [
            KeptFate(fate, name, reason, [(first, last) for first, last in found], *event)
            for fate, name, reason, found, *event in rows
        ]

    def outcomes(self, topic: str, partition: int, offset: int) -> list[Fate]:
        return AuditQueries(self._engine).fates(topic, partition, offset)

    def workflows(self) -> dict[tuple[str, str], tuple[str, bool]]:
        rows = self._ask("SELECT name, version, definition, is_current FROM workflow")
        return {(name, version): (definition, current) for name, version, definition, current in rows}

    def delete_rows(self) -> None:
        self._ask("DELETE FROM workflow_execution")

    def lose_all(self) -> None:
        self._ask("ALTER TABLE audit_event DISABLE TRIGGER append_only")
        kept = "consumer_offset, dead_letter, trigger_fate, audit_divergence, audit_acknowledgement"
        self._ask(f"TRUNCATE audit_event, workflow, workflow_execution, {kept} CASCADE")
        self._ask("ALTER TABLE audit_event ENABLE TRIGGER append_only")

    def _ask(self, sql: str) -> Sequence[Any]:
        with self._engine.begin() as connection:
            found = connection.exec_driver_sql(sql)
            return found.all() if found.returns_rows else []

    def close(self) -> None:
        for store in self._opened:
            asyncio.run(store.close())
        self._engine.dispose()


def _decoded(text: str | None) -> bytes | None:
    return None if text is None else b64decode(text)


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


def open_audit(kind: str, request: pytest.FixtureRequest) -> Iterator[Audit]:
    """The audit of this kind, closed after the test."""
    audit = InMemory() if kind == "memory" else OnPostgres(request.getfixturevalue("database_url"))
    yield audit
    audit.close()
