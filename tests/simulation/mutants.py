"""Deliberate defects of the production code, one a function: applied with pytest's `MonkeyPatch` before a run.

Those of the engine alone stand in tests/property/test_protocol.py. These concern the roles around it, and the
rules that only a whole pipeline can break.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from flowpilot.audit.writer import AuditWriter
from flowpilot.engine.engine import Engine
from flowpilot.engine.owned import OwnedPartition
from flowpilot.engine.table import PartitionTable, entry_of
from flowpilot.ports.audit import Batch, Divergence, Project
from flowpilot.ports.log import Fetched
from flowpilot.router.router import Router
from flowpilot.worker.partition import AssignedPartition, Entry
from flowpilot_agents.execution import Executions

Patch = pytest.MonkeyPatch
Shares = Sequence[tuple[OwnedPartition, list[Fetched]]]


def engine_commits_before_state(patch: Patch) -> None:
    """What is in hand counts as acknowledged before anything of it is written."""
    whole = Executions._process

    async def process(self: Executions) -> None:
        for record in self._waiting[: self._batch_size] if self.serving else ():
            self.acknowledged[record.partition] = record.offset + 1
        await whole(self)

    patch.setattr(Executions, "_process", process)


def engine_sends_before_state(patch: Patch) -> None:
    """Outputs first, state after."""

    async def process(self: Any, shares: Shares, *, skip: bool = False) -> list[Fetched]:
        works = [await self._fold(owned, [] if skip else records, records) for owned, records in shares]
        works = [work for work in works if work.records]
        await self._send([output for work in works for output in work.outputs])
        await self._changelog.append([(work.owned, work.entries) for work in works])
        for work in works:
            self._put(work)
        return [record for work in works for record in work.records]

    patch.setattr(Engine, "_process", process)


def audit_position_outside_the_transaction(patch: Patch) -> None:
    """The positions move in a transaction of their own, before that of the rows."""
    whole = AuditWriter._write

    class TwoTransactions:
        def __init__(self, store: Any) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        async def write(self, batch: Batch, project: Project) -> Sequence[Divergence]:
            await self._store.write(Batch(advances=batch.advances), project)
            batch.advances = []
            found: Sequence[Divergence] = await self._store.write(batch, project)
            return found

    async def write(self: AuditWriter, records: Sequence[Fetched]) -> None:
        if not isinstance(self._store, TwoTransactions):
            self._store = TwoTransactions(self._store)  # type: ignore[assignment]
        await whole(self, records)

    patch.setattr(AuditWriter, "_write", write)


def worker_commits_past_an_unfinished_record(patch: Patch) -> None:
    """The position follows whatever is finished, not what is finished in a row."""

    def finish(self: AssignedPartition, entry: Entry) -> None:
        entry.finished = True
        entry.attempt = None
        self.position = max(self.position or 0, entry.offset + 1)
        self._count_finished += 1
        if entry in self._taken:
            self._taken.remove(entry)

    patch.setattr(AssignedPartition, "finish", finish)


def router_commits_before_the_starts(patch: Patch) -> None:
    """The positions of a batch are written before what it starts is acknowledged."""

    async def take(self: Any, records: Sequence[Fetched]) -> None:
        from flowpilot.router.reading import serve
        from flowpilot.router.router import _by_partition

        await self._refresh()
        batch = []
        for partition, arrived in _by_partition(records).items():
            reading = self._readings.get(partition)
            if reading is None:
                continue
            await self._opening.join(self._where, reading)
            live = [name for name in reading.readers(self._where) if reading.next[name] >= reading.cursor]
            batch.append(serve(self._where, reading, live, arrived, arrived[-1].offset + 1))
        for served in batch:
            served.reading.cursor = served.end
            served.done()
        await self._commit([served.reading for served in batch])
        await self._output.produce(batch)

    patch.setattr(Router, "_take", take)


def last_record_wins(patch: Patch) -> None:
    """Recovery keeps the last record of each key, whoever wrote it."""

    def load(self: Any, record: Fetched) -> None:
        self.next_changelog_offset = max(self.next_changelog_offset, record.offset + 1)
        entry = entry_of(record)
        self.highest_epoch = max(self.highest_epoch, entry.epoch)
        self._entries[record.key] = entry

    patch.setattr(PartitionTable, "load", load)


def audit_ignores_what_is_there(patch: Patch) -> None:
    """A writer that was overtaken does not look at the stored positions again."""

    def start_over(self: AuditWriter) -> None:
        self._pending.clear()

    patch.setattr(AuditWriter, "_start_over", start_over)


def batches_of_an_older_assignment_count(patch: Patch) -> None:
    """What was fetched before a rebalance is processed and acknowledged after it."""

    def take(self: Executions, delivered: Any) -> None:
        self._waiting.extend(delivered.records)

    def give_back(self: Executions) -> None:
        return None

    patch.setattr(Executions, "_take", take)
    patch.setattr(Executions, "give_back", give_back)
    patch.setattr(Executions, "suspend", lambda self: setattr(self, "serving", False))


MUTANTS: list[Callable[[Patch], None]] = [
    engine_commits_before_state,
    engine_sends_before_state,
    audit_position_outside_the_transaction,
    worker_commits_past_an_unfinished_record,
    router_commits_before_the_starts,
    last_record_wins,
    audit_ignores_what_is_there,
    batches_of_an_older_assignment_count,
]
