"""Defects at the edges: the audit writer with its store, and the agent that binds Faust."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from flowpilot.audit import projection, reading, records, writer
from flowpilot.audit.reading import Reading
from flowpilot.ports.audit import Batch, Divergence
from tests.mutants.catalogue import Catalogue, Patch

audit, agent = Catalogue("audit"), Catalogue("agent")


# -- audit ----------------------------------------------------------------------------------------------------


@audit("S6", "integration")
def audit_conflict_not_compared(patch: Patch) -> None:
    """An event that is stored with other bytes passes for one that came again."""
    from flowpilot.adapters.postgres import store

    patch.setattr(store, "_conflicts", lambda connection, events: [])


@audit("S7", "integration", "simulation")
def audit_offset_outside_the_transaction(patch: Patch) -> None:
    """The positions are committed before what was read up to them is stored."""
    from flowpilot.adapters.postgres import store

    whole, write_whole = store._advance, writer.AuditWriter._write

    async def write(self: Any, batch: Any, project: Any) -> Any:
        await self._do(lambda connection: whole(connection, sorted(batch.advances)))
        return await self._do(lambda connection: store._write(connection, replace(batch, advances=[]), project))

    async def write_twice(self: Any, records: Any) -> None:
        if not isinstance(self._store, _TwoTransactions):
            self._store = _TwoTransactions(self._store)
        await write_whole(self, records)

    patch.setattr(store, "_advance", lambda connection, advances: whole(connection, advances) if advances else None)
    patch.setattr(store.PostgresAuditStore, "write", write)
    patch.setattr(writer.AuditWriter, "_write", write_twice)


class _TwoTransactions:
    """Any store, its positions before its rows."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write(self, batch: Any, project: Any) -> Any:
        await self._store.write(Batch(advances=batch.advances), project)
        return await self._store.write(replace(batch, advances=[]), project)


@audit("S7", "integration")
def a_zombie_writes(patch: Patch) -> None:
    """A writer that was outrun stores what it read: the positions are set, not compared and set."""
    from flowpilot.adapters.postgres import store

    whole = store._advance

    def advance(connection: Any, advances: Any) -> None:
        places = [advance.partition for advance in advances]
        found = store._positions(connection, places)
        now = [
            advance._replace(
                topic_id=found[advance.partition].topic_id, expected=found[advance.partition].next_offset
            )
            for advance in advances
            if advance.partition in found
        ]
        if now:
            whole(connection, now)

    patch.setattr(store, "_advance", advance)


@audit("S7", "unit", "integration")
def rows_go_backwards(patch: Patch) -> None:
    """An event that comes again changes the current rows once more."""
    whole = projection.project

    def project(events: Any, heads: Any) -> Any:
        return whole(events, {})

    patch.setattr(projection, "project", project)
    patch.setattr(writer, "project", project)


@audit("S6", "unit", "integration")
def hashes_are_not_checked(patch: Patch) -> None:
    """A history record whose hash is not its own is stored without a word."""
    patch.setattr(records, "chain", lambda previous, body: _Anything())


class _Anything:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@audit("S6", "unit", "integration")
def gaps_are_not_told(patch: Patch) -> None:
    """A missing seq, or a chain that is broken, is no divergence."""
    whole = projection.project

    def project(events: Any, heads: Any) -> Any:
        changes = whole(events, heads)
        changes.divergences = [
            found for found in changes.divergences if found.reason not in ("gap", "broken_chain")
        ]
        return changes

    patch.setattr(projection, "project", project)
    patch.setattr(writer, "project", project)


@audit("S6", "integration")
def an_acknowledgement_holds_for_its_place(patch: Patch) -> None:
    """Whatever contradicts the audit at a place where something was acknowledged is acknowledged with it."""
    patch.setattr(Divergence, "fingerprint", property(lambda self: f"{self.topic}/{self.partition}/{self.offset}"))


@audit("R1", "integration")
def retention_may_overtake(patch: Patch) -> None:
    """The audit writer reads on where the log begins, though that is behind what it stored."""
    patch.setattr(reading, "check_position", lambda partition, position, topic_id, low, end: None)


@audit("S7", "integration", "simulation")
def a_lost_answer_counts_as_done(patch: Patch) -> None:
    """After a transaction whose end is unknown the writer goes on from where it thinks it is."""

    def start_over(self: Any) -> None:
        self._consumer.pause(self.stored)
        self.waiting.update(self.stored)
        self.stored.clear()
        self._pending.clear()

    whole = Reading.open

    async def open_(self: Any) -> None:
        before = dict(self._next)
        await whole(self)
        for partition, position in before.items():
            if partition in self._next and position > self._next[partition]:
                self._next[partition] = position
                self.stored[partition] = self.stored[partition]._replace(next_offset=position)
                self._consumer.seek(partition, position)

    patch.setattr(Reading, "start_over", start_over)
    patch.setattr(Reading, "open", open_)


@audit("S7", "simulation")
def an_outrun_writer_goes_on(patch: Patch) -> None:
    """A writer that another has overtaken does not look at the stored positions again."""

    def start_over(self: Any) -> None:
        self._pending.clear()

    patch.setattr(Reading, "start_over", start_over)


# -- agent ----------------------------------------------------------------------------------------------------


@agent("R2", "integration", "simulation")
def offset_before_state(patch: Patch) -> None:
    """A batch is acknowledged when the engine is given it: a commit may overtake its states and outputs."""
    from flowpilot_agents.execution import Executions

    whole = Executions._process

    async def process(self: Any) -> None:
        batch = self._waiting[: self._batch_size]
        if self.serving:
            self.acknowledged.update({record.partition: record.offset + 1 for record in batch})
        await whole(self)

    patch.setattr(Executions, "_process", process)


@agent("R2", "integration", "simulation")
def swallowed_exception_in_the_agent(patch: Patch) -> None:
    """A batch that failed is logged and acknowledged, and the agent carries on, as Faust's own would."""
    from flowpilot_agents.execution import Executions

    async def process(self: Any) -> None:
        batch, self._waiting = self._waiting[: self._batch_size], self._waiting[self._batch_size :]
        if not batch or not self.serving:
            return
        term = self.term
        with suppress(Exception):
            await self.engine.process(batch)
        if term == self.term:
            self.acknowledged.update({record.partition: record.offset + 1 for record in batch})
            self._report_stopped()

    patch.setattr(Executions, "_process", process)


@agent("R2", "integration")
def acknowledged_after_a_rebalance(patch: Patch) -> None:
    """What is finished after the partitions were given back is acknowledged all the same."""
    from flowpilot_agents.execution import Executions

    patch.setattr(Executions, "term", property(lambda self: 0, lambda self, value: None), raising=False)


@agent("R2", "integration", "simulation")
def records_of_an_earlier_assignment_are_kept(patch: Patch) -> None:
    """What was fetched before a rebalance is processed, and acknowledged, after it."""
    from flowpilot_agents.execution import Executions

    patch.setattr(Executions, "_take", lambda self, delivered: self._waiting.extend(delivered.records))
    patch.setattr(Executions, "give_back", lambda self: None)
    patch.setattr(Executions, "suspend", lambda self: setattr(self, "serving", False))


@agent("R1", "integration")
def faust_recovers_the_last_record(patch: Patch) -> None:
    """Recovery hands the table what Faust's own store would keep: the last record of a key."""
    from flowpilot_agents.table import BulkRecovery

    whole = BulkRecovery.load

    def load(self: Any, tp: Any, found: Any) -> None:
        last = {record.key: record for record in found}
        for record in last.values():
            self.app.executions.engine.table(tp.partition)._entries.pop(record.key, None)
        whole(self, tp, sorted(last.values(), key=lambda record: record.offset))

    patch.setattr(BulkRecovery, "load", load)
