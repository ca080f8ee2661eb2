"""The audit's database: the adapter in memory, as a server that is away at times, fails over, and leaves unsaid
whether a transaction was done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flowpilot.adapters.memory.audit import AuditTables
from flowpilot.ports.audit import Batch, BatchRefused, Divergence, Outrun, Position, Project, StoreUnavailable
from flowpilot.ports.log import TopicPartition
from tests.simulation.broker import Broker
from tests.simulation.loop import PROCESS, Process

_Transaction = Callable[[AuditTables], Any]


class Database:
    """The server. `on_written(process, batch)` is told of each transaction that is done."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.tables = AuditTables()
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
        self.tables, self._journal = AuditTables(), []
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
            except (Outrun, BatchRefused) as refused:
                answer, error = None, refused
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
