"""An audit on real PostgreSQL, and what tests ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event, text

from flowpilot.adapters.postgres.archive import PostgresAuditArchive
from flowpilot.adapters.postgres.engine import connect
from flowpilot.adapters.postgres.migrations import upgrade
from flowpilot.adapters.postgres.queries import AuditQueries
from flowpilot.adapters.postgres.store import PostgresAuditStore
from flowpilot.audit.projection import project
from flowpilot.audit.verify import Difference, verify
from flowpilot.ports.audit import Advance, Batch, HistoryEvent, Position, Registered
from flowpilot.ports.log import TopicPartition
from tests.audit_history import DEFINITION, EPOCH, TOPIC

PLACE = TopicPartition(TOPIC, 0)
REGISTERED = Registered(DEFINITION.hash, DEFINITION, EPOCH)


class AuditWorld:
    """A migrated database with a store that writes as the audit writer does, without the log."""

    def __init__(self, database_url: str) -> None:
        upgrade(database_url)
        self.url = database_url
        self.engine = connect(database_url)
        self.store = PostgresAuditStore(database_url)
        self.queries = AuditQueries(self.engine)
        self._next = 0

        asyncio.run(self.store.begin({PLACE: Position("id-1", 0)}))

    def write(self, events: Sequence[HistoryEvent] = (), **more: Any) -> None:
        """One batch at the next offset."""
        advance = Advance(PLACE, "id-1", self._next, self._next + 1)
        asyncio.run(self.store.write(Batch([advance], list(events), **more), project))
        self._next += 1

    def ask(self, sql: str, **values: Any) -> list[Any]:
        """The rows of a query; those of one column as plain values."""
        with self.engine.begin() as connection:
            found = connection.execute(text(sql), values)
            if not found.returns_rows:
                return []
            rows = [tuple(row) for row in found]
        return [row[0] for row in rows] if rows and len(rows[0]) == 1 else rows

    def one(self, sql: str, **values: Any) -> Any:
        """The only row of a query."""
        [row] = self.ask(sql, **values)
        return row

    def differences(self, execution: str | None = None) -> list[Difference]:
        """What `verify` finds."""
        return list(verify(PostgresAuditArchive(self.engine), execution))

    def close(self) -> None:
        """Let go of all connections, so that the database can be dropped."""
        asyncio.run(self.store.close())
        self.engine.dispose()


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Every statement that is sent while this is open."""
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        found.append(" ".join(statement.split()))

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", note)
