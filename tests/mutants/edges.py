"""Defects of the roles around the engine: router, worker, audit writer, and the agent that binds Faust."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from flowpilot.audit import projection, records, writer
from flowpilot.ports.audit import Batch
from flowpilot.ports.log import Fetched
from flowpilot.router import cloudevents, positions, routing
from flowpilot.router.output import Output
from flowpilot.router.reading import Served, serve
from flowpilot.worker import answers
from flowpilot.worker.attempts import Attempts
from flowpilot.worker.control import Control
from flowpilot.worker.intake import Intake
from flowpilot.worker.partition import AssignedPartition, Entry
from flowpilot.worker.records import Records
from tests.mutants.catalogue import Catalogue, Patch

router, worker, audit, agent = (Catalogue(room) for room in ("router", "worker", "audit", "agent"))


# -- router ---------------------------------------------------------------------------------------------------


@router("S1", "unit", "simulation")
def position_before_the_starts(patch: Patch) -> None:
    """A position moves, and is committed, before the starts of its records are acknowledged."""
    whole = Output.produce

    async def produce(self: Output, batch: Any) -> None:
        served = list(batch)
        for each in served:
            each.reading.cursor = max(each.reading.cursor, each.end)
            each.done()
        await self.commit([each.reading for each in served])
        await whole(self, served)

    patch.setattr(Output, "produce", produce)


@router("S1", "unit", "simulation")
def the_last_position_counts(patch: Patch) -> None:
    """Of two positions of a key the last one written counts, though it be a slow router's."""
    patch.setattr(positions, "_rank", lambda position: (0, 0))
    whole = positions.Positions._take

    def take(self: Any, record: Fetched) -> None:
        whole(self, record)
        self._greatest.update(self._last)

    patch.setattr(positions.Positions, "_take", take)


@router("S9", "unit", "simulation")
def starts_with_ids_by_chance(patch: Patch) -> None:
    """A record that is read again starts another execution."""
    for name in ("record_execution_id", "keyed_execution_id", "event_execution_id"):
        patch.setattr(routing, name, lambda *_: str(uuid.uuid4()))


@router("S11", "unit", "simulation")
def bad_trigger_records_are_skipped(patch: Patch) -> None:
    """A trigger record that cannot be read starts nothing, and leaves no dead letter."""
    whole = routing.route

    def route(*given: Any, **more: Any) -> Any:
        return [outcome for outcome in whole(*given, **more) if not isinstance(outcome, routing.DeadLetter)]

    from flowpilot.router import reading

    patch.setattr(routing, "route", route)
    patch.setattr(reading, "route", route)


@router("S1", "unit")
def cloudevents_are_named_by_their_id(patch: Patch) -> None:
    """Two systems that number their events alike share executions."""
    whole = routing.event_execution_id
    patch.setattr(routing, "event_execution_id", lambda workflow, source, event: whole(workflow, "", event))


@router("S11", "unit")
def what_contradicts_itself_is_taken(patch: Patch) -> None:
    """A CloudEvent that is one thing in its headers and another in itself starts an execution."""
    patch.setattr(cloudevents, "_agree", lambda name, held, told: None)


@router("S1", "unit")
def who_is_behind_skips_ahead(patch: Patch) -> None:
    """A workflow that has yet to catch up is served with live records, and what lies between is never read."""
    from flowpilot.router import router as routers

    def all_of_them(where: Any, reading: Any, workflows: Any, arrived: Sequence[Fetched], end: int) -> Served:
        return serve(where, reading, list(reading.readers(where)), arrived, end)

    patch.setattr(routers, "serve", all_of_them)


# -- worker ---------------------------------------------------------------------------------------------------


@worker("S1", "unit", "simulation")
def commit_past_an_unfinished_record(patch: Patch) -> None:
    """A worker commits behind the last record that is finished, whatever before it is not."""

    def finish(self: AssignedPartition, entry: Entry) -> None:
        entry.finished = True
        entry.attempt = None
        self.position = max(self.position or 0, entry.offset + 1)
        self._taken = type(self._taken)(taken for taken in self._taken if not taken.finished)
        self._count_finished += 1

    patch.setattr(AssignedPartition, "finish", finish)


@worker("S1", "unit", "simulation")
def finished_when_it_is_taken(patch: Patch) -> None:
    """A record is finished when its handler begins: a worker that dies over it leaves it to nobody."""
    whole = Attempts._begin

    def begin(self: Attempts, attempt: Any) -> None:
        whole(self, attempt)
        if attempt.partition is not None:
            self._records.finish(attempt.entry, attempt.partition)

    patch.setattr(Attempts, "_begin", begin)


@worker("S1", "unit", "simulation")
def answers_are_sent_once(patch: Patch) -> None:
    """Answers that the log did not take at the first try are dropped, and count as given."""

    async def send(self: Any, batch: Any) -> None:
        try:
            deliveries = await self._producer.send([record for record, _ in batch])
            errors = [delivery.error for delivery in deliveries]
        except answers.LogUnavailable:
            errors = [None] * len(batch)
        for (_, acknowledged), error in zip(batch, errors, strict=True):
            if acknowledged is not None:
                acknowledged(error)

    patch.setattr(answers.Answers, "_send", send)


@worker("L1", "unit")
def suspects_run_at_once(patch: Patch) -> None:
    """What its last worker may have died over is run before its start is committed: it may kill all workers."""
    whole = AssignedPartition.take

    def take(self: AssignedPartition) -> tuple[Fetched, Entry, bool]:
        return (*whole(self)[:2], False)

    patch.setattr(AssignedPartition, "take", take)


@worker("S2", "unit")
def cancels_do_not_reach_handlers(patch: Patch) -> None:
    """A worker begins and goes on with steps of executions that are cancelled."""
    patch.setattr(Control, "is_over", lambda self, task, task_id: False)


@worker("S11", "unit")
def bad_step_messages_are_skipped(patch: Patch) -> None:
    """A step message that is not understood is finished without a dead letter."""
    patch.setattr(Records, "bury", lambda self, record, entry, partition, bad: self.finish(entry, partition))


@worker("S1", "unit")
def a_revoked_partition_is_committed_on(patch: Patch) -> None:
    """What a worker gave away it commits all the same: its records that wait count as finished."""
    whole = Intake._on_revoked

    async def on_revoked(self: Any, partitions: Any) -> None:
        for tp in partitions:
            held = self._partitions.get(tp)
            if held is not None and held.waiting:
                held.position = held.waiting[-1].offset + 1
                held._count_finished += len(held.waiting)
        await whole(self, partitions)

    patch.setattr(Intake, "_on_revoked", on_revoked)


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


@audit("R1", "integration")
def retention_may_overtake(patch: Patch) -> None:
    """The audit writer reads on where the log begins, though that is behind what it stored."""
    patch.setattr(writer, "check_position", lambda partition, position, topic_id, low, end: None)


@audit("S7", "integration", "simulation")
def a_lost_answer_counts_as_done(patch: Patch) -> None:
    """After a transaction whose end is unknown the writer goes on from where it thinks it is."""

    def start_over(self: Any) -> None:
        self._consumer.pause(self._stored)
        self._waiting.update(self._stored)
        self._stored.clear()
        self._pending.clear()

    whole = writer.AuditWriter._open

    async def open_(self: Any) -> None:
        before = dict(self._next)
        await whole(self)
        for partition, position in before.items():
            if partition in self._next and position > self._next[partition]:
                self._next[partition] = position
                self._stored[partition] = self._stored[partition]._replace(next_offset=position)
                self._consumer.seek(partition, position)

    patch.setattr(writer.AuditWriter, "_start_over", start_over)
    patch.setattr(writer.AuditWriter, "_open", open_)


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


@agent("R2", "integration", "simulation")
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
