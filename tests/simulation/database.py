"""The audit's database: transactions that are done whole or not at all, and a server that may fail over.

The meaning is that of `flowpilot.adapters.postgres.store`: compare-and-set of the positions, an event that is
there already is compared, rows change only where `seq` is newer. Rows come from the production projection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from flowpilot.audit.projection import UNKNOWN
from flowpilot.ports.audit import (
    Batch,
    Changes,
    Divergence,
    Head,
    HistoryEvent,
    Letter,
    Outrun,
    Position,
    Project,
    Repeat,
    Row,
    RunKey,
    StoredRun,
    StoreUnavailable,
    TaskKey,
)
from flowpilot.ports.log import TopicPartition
from flowpilot_schemas.triggers import TriggerFiltered
from tests.simulation.broker import Broker
from tests.simulation.loop import PROCESS, Process

_Transaction = Callable[["Tables"], Any]


class Tables:
    """What the server has."""

    def __init__(self) -> None:
        self.positions: dict[TopicPartition, Position] = {}
        self.events: dict[tuple[str, int, int], HistoryEvent] = {}
        self.heads: dict[RunKey, Head] = {}
        self.executions: dict[RunKey, Row] = {}
        self.parents: dict[RunKey, str] = {}
        self.tasks: dict[TaskKey, Row] = {}
        self.letters: dict[tuple[Any, ...], Letter] = {}
        self.filtered: list[TriggerFiltered] = []
        self.repeats: dict[tuple[str, int, int], Repeat] = {}
        self.divergences: dict[tuple[Any, ...], Divergence] = {}

    def begin(self, positions: Mapping[TopicPartition, Position]) -> None:
        for partition, position in positions.items():
            self.positions.setdefault(partition, position)

    def write(self, batch: Batch, project: Project) -> Sequence[Divergence]:
        """See `AuditStore.write`. Raises `Outrun` before anything is changed."""
        for advance in batch.advances:
            if self.positions.get(advance.partition) != (advance.topic_id, advance.expected):
                raise Outrun
        for advance in batch.advances:
            self.positions[advance.partition] = Position(advance.topic_id, advance.next_offset)
        found = list(batch.divergences)
        if batch.events:
            found += self._events(batch.events, project)
        self.filtered += batch.filtered
        for letter in batch.letters:
            message = letter.message
            place = (message.topic, message.partition, message.offset, message.timestamp)
            self.letters.setdefault((*place, message.source, message.reason, message.workflow), letter)
        for each in found:
            self.divergences.setdefault((each.topic, each.partition, each.offset, each.reason), each)
        return found

    def _events(self, events: Sequence[HistoryEvent], project: Project) -> list[Divergence]:
        runs = dict.fromkeys(RunKey(event.execution, event.run) for event in events)
        changes = project(events, {run: self.heads[run] for run in runs if run in self.heads})
        found = list(changes.divergences)
        known = {run for run in runs if run in self.heads}
        for event in events:
            place = (event.execution, event.run, event.seq)
            stored = self.events.setdefault(place, event)
            if stored.hash != event.hash or sha256(stored.body).digest() != sha256(event.body).digest():
                at = (event.topic, event.partition, event.offset)
                found.append(Divergence("conflict", "stored with other bytes", *at, *place, body=event.body))
            head = self.heads.get(RunKey(event.execution, event.run))
            if head is None or event.seq > head.seq:
                self.heads[RunKey(event.execution, event.run)] = Head(event.seq, event.hash)
        self._rows(changes, known)
        for repeat in changes.repeats:
            self.repeats.setdefault((repeat.execution, repeat.run, repeat.seq), repeat)
        return found

    def _rows(self, changes: Changes, known: set[RunKey]) -> None:
        for run, row in changes.executions.items():
            stored = self.executions.get(run)
            if stored is None and run not in known:
                self.executions[run] = {"status": UNKNOWN, **row}
            elif stored is not None and stored["seq"] < row["seq"]:
                stored.update(row)
        self.parents.update({run: parent for run, parent in changes.parents.items() if run in self.executions})
        for task, row in changes.tasks.items():
            if RunKey(task.execution, task.run) not in self.executions:
                continue
            stored = self.tasks.get(task)
            if stored is None:
                self.tasks[task] = {"attempt": changes.attempts[task], **row}
            elif stored["seq"] < row["seq"]:
                stored.update(row)

    def runs(self, execution: str | None = None) -> Iterator[StoredRun]:
        """See `flowpilot.ports.audit.AuditArchive`."""
        events: dict[RunKey, list[HistoryEvent]] = {run: [] for run in sorted({*self.heads, *self.executions})}
        for place in sorted(self.events):
            events[RunKey(*place[:2])].append(self.events[place]._replace(fields={}))
        tasks: dict[RunKey, dict[str, Row]] = {run: {} for run in events}
        for task, row in self.tasks.items():
            tasks[RunKey(task.execution, task.run)][task.step] = row
        for run, found in events.items():
            if execution in (None, run.execution):
                yield StoredRun(run, found, self.executions.get(run), self.parents.get(run), tasks[run])


class Database:
    """The server. `on_written(process, batch)` is told of each transaction that is done."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.tables = Tables()
        self._journal: list[_Transaction] = []
        self._away_until = 0.0
        self.servers = 1
        """Counts fail-overs: a connection to the server before is broken."""
        self.on_written: Callable[[Process, Batch], None] = lambda process, batch: None

    @property
    def is_away(self) -> bool:
        return self._away_until > self.broker.loop.time()

    def go_away(self, seconds: float) -> None:
        """It does not answer for so long."""
        self._away_until = self.broker.loop.time() + seconds

    def fail_over(self, lost: int, seconds: float) -> None:
        """A standby takes over that has not got the last transactions: they are gone, rows and positions."""
        kept = self._journal[: max(0, len(self._journal) - lost)]
        self.tables, self._journal = Tables(), []
        self.servers += 1
        for transaction in kept:
            self.transact(transaction)
        self.go_away(seconds)

    def transact(self, transaction: _Transaction) -> Any:
        answer = transaction(self.tables)
        self._journal.append(transaction)
        return answer


class SimAuditStore:
    """See `flowpilot.ports.audit.AuditStore`: the connection of one audit writer."""

    def __init__(self, database: Database) -> None:
        self._database, self._broker = database, database.broker
        self._process = PROCESS.get()
        self._server = database.servers

    async def positions(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Position]:
        """See the port."""
        wanted = sorted(partitions)

        def read() -> dict[TopicPartition, Position]:
            stored = self._database.tables.positions
            return {partition: stored[partition] for partition in wanted if partition in stored}

        return await self._asked(read)

    async def begin(self, positions: Mapping[TopicPartition, Position]) -> None:
        """See the port."""
        given = dict(positions)
        await self._asked(lambda: self._database.transact(lambda tables: tables.begin(given)))

    async def write(self, batch: Batch, project: Project) -> Sequence[Divergence]:
        """See the port."""

        def write() -> Sequence[Divergence]:
            found = self._database.transact(lambda tables: tables.write(batch, project))
            self._database.on_written(self._process, batch)
            return found

        return await self._asked(write)

    async def close(self) -> None:
        """See the port."""

    async def _asked(self, work: Callable[[], Any]) -> Any:
        """The server does it a moment later, whatever becomes of the process that asked; or it does not."""
        broker, chance, loop = self._broker, self._broker.chance, self._broker.loop
        if self._process.dead:
            await asyncio.Event().wait()
        answered: asyncio.Future[Any] = loop.create_future()
        unknown = chance.random() < broker.plan.unknown_transactions
        if unknown:
            broker.on_fault("unknown_transaction", f"{self._process}")

        def serve() -> None:
            broken, self._server = self._server != self._database.servers, self._database.servers
            if broken or self._database.is_away or (unknown and chance.random() < 0.5):
                _answer(answered, None, StoreUnavailable("the connection was lost"))
                return
            try:
                answer, error = work(), None
            except Outrun as outrun:
                answer, error = None, outrun
            if unknown:
                error = StoreUnavailable("the connection was lost before the answer")
            loop.later(broker.latency() / 2, _answer, answered, answer, error)

        loop.later(broker.latency(), serve)
        return await answered


def _answer(future: asyncio.Future[Any], answer: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(answer)
