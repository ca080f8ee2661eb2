"""The audit store in PostgreSQL: one transaction a batch, the partitions' positions in it."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.orm import Session

from flowpilot.adapters.postgres.bulk import EVENT_TYPES, identifiers, literal, run, source
from flowpilot.adapters.postgres.definitions import apply_definitions
from flowpilot.adapters.postgres.divergences import insert_divergences
from flowpilot.adapters.postgres.engine import connect
from flowpilot.adapters.postgres.fates import insert_fates
from flowpilot.adapters.postgres.models import DeadLetterRow
from flowpilot.adapters.postgres.rows import known_runs, write_rows
from flowpilot.ports.audit import (
    Advance,
    Batch,
    BatchRefused,
    Divergence,
    HistoryEvent,
    Letter,
    Outrun,
    Position,
    Project,
    Repeat,
    RunKey,
    StoreUnavailable,
    StoreUnusable,
)
from flowpilot.ports.log import TopicPartition

Answer = TypeVar("Answer")

_OPTIONS = " ".join(
    f"-c {setting}"
    for setting in (
        # Every statement reaches its rows through an index, also while statistics call its table small.
        "enable_seqscan=off",
        "enable_hashjoin=off",
        "enable_mergejoin=off",
        "jit=off",
        # A writer that was frozen within its transaction holds the positions' locks: the server ends it.
        "idle_in_transaction_session_timeout=15000",
        "lock_timeout=10000",
        "statement_timeout=60000",
    )
)

_FOREIGN_KEY_VIOLATION = "23503"
_PLACE: tuple[tuple[str, str], ...] = (("topic", "text"), ("partition", "integer"))


class PostgresAuditStore:
    """See `flowpilot.ports.audit.AuditStore`. One connection, used by one thread of its own."""

    def __init__(self, database_url: str) -> None:
        self.engine = connect(
            database_url, application="flowpilot-audit", options=_OPTIONS, pool_size=1, max_overflow=0
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flowpilot-audit")

    async def positions(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Position]:
        """See the port. Checked here too, as every (re)connection begins with it: the server's encoding."""
        wanted = sorted(partitions)
        return await self._do(lambda connection: _positions(connection, wanted))

    async def begin(self, positions: Mapping[TopicPartition, Position]) -> None:
        """See the port."""
        items = sorted(positions.items())
        await self._do(lambda connection: _begin(connection, items))

    async def write(self, batch: Batch, project: Project) -> Sequence[Divergence]:
        """See the port."""
        return await self._do(lambda connection: _write(connection, batch, project))

    async def close(self) -> None:
        """See the port."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self.engine.dispose)
        self._thread.shutdown()

    async def _do(self, work: Callable[[Connection], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work)

    def _transact(self, work: Callable[[Connection], Answer]) -> Answer:
        try:
            with self.engine.begin() as connection:
                return work(connection)
        except DBAPIError as error:
            raise _translated(error) from error
        except (SQLAlchemyError, OSError) as error:
            raise StoreUnavailable(str(error)) from error
        except (TypeError, ValueError, OverflowError) as error:  # raised by what encodes the values
            raise BatchRefused(str(error)) from error


def _translated(error: DBAPIError) -> Exception:
    code = getattr(error.orig, "pgcode", None) or ""
    message = " ".join(str(error.orig).split())
    if isinstance(error, ProgrammingError) and code in {"42P01", "42703"}:
        return StoreUnusable(f"the database lacks FlowPilot's tables ({message}): run `flowpilot setup`")
    if isinstance(error, ProgrammingError) and code == "42501":
        return StoreUnusable(f"the database user lacks a right ({message}): grant it, then start the audit again")
    refused = isinstance(error, (DataError, IntegrityError)) or code.startswith("54")  # a limit of the server
    # A workflow or an execution was deleted at this very moment: the next try sees that.
    if refused and code != _FOREIGN_KEY_VIOLATION and not error.connection_invalidated:
        return BatchRefused(message)
    return StoreUnavailable(message)


def _positions(connection: Connection, wanted: Sequence[TopicPartition]) -> dict[TopicPartition, Position]:
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
    if encoding != "UTF8":
        raise StoreUnusable(f"the database's encoding is {encoding}: FlowPilot needs one created with UTF8")
    rows = run(
        connection,
        f"SELECT o.topic, o.partition, o.topic_id, o.next_offset FROM {source(_PLACE)} "
        "JOIN consumer_offset o ON o.topic = x.topic AND o.partition = x.partition",
        *_places(wanted),
    )
    return {TopicPartition(row[0], row[1]): Position(row[2], row[3]) for row in rows}


def _begin(connection: Connection, items: Sequence[tuple[TopicPartition, Position]]) -> None:
    columns = (*_PLACE, ("topic_id", "text"), ("next_offset", "bigint"))
    run(
        connection,
        f"INSERT INTO consumer_offset SELECT * FROM {source(columns)} ON CONFLICT DO NOTHING",
        *_places([place for place, _ in items]),
        literal("text", [position.topic_id for _, position in items]),
        literal("bigint", [position.next_offset for _, position in items]),
    )


def _places(partitions: Sequence[TopicPartition]) -> tuple[str, str]:
    return (
        literal("text", [place.topic for place in partitions]),
        literal("integer", [place.partition for place in partitions]),
    )


def _write(connection: Connection, batch: Batch, project: Project) -> Sequence[Divergence]:
    _advance(connection, sorted(batch.advances))
    divergences = batch.divergences
    repeats: Sequence[Repeat] = ()
    session = Session(connection)
    if batch.definitions:
        apply_definitions(session, batch.definitions)
    if batch.events:
        known = known_runs(connection, {RunKey(event.execution, event.run): None for event in batch.events})
        changes = project(batch.events, known.heads)
        divergences = [*divergences, *changes.divergences]
        if _append(connection, batch.events) < len(batch.events):
            divergences += _conflicts(connection, batch.events)
        write_rows(connection, changes, known)
        repeats = changes.repeats
    if batch.filtered or repeats:
        insert_fates(connection, batch.filtered, repeats)
    if batch.letters:
        _insert_letters(session, batch.letters)
    if divergences:
        insert_divergences(session, divergences)
    return divergences


def _advance(connection: Connection, advances: Sequence[Advance]) -> None:
    """Compare and set, in the partitions' order. Raises Outrun."""
    places = [advance.partition for advance in advances]
    rows = run(
        connection,
        f"SELECT o.topic, o.partition, o.topic_id, o.next_offset FROM consumer_offset o JOIN {source(_PLACE)} "
        "ON o.topic = x.topic AND o.partition = x.partition ORDER BY o.topic, o.partition FOR UPDATE OF o",
        *_places(places),
    ).all()
    if [tuple(row) for row in rows] != [(*item.partition, item.topic_id, item.expected) for item in advances]:
        raise Outrun
    run(
        connection,
        "UPDATE consumer_offset o SET next_offset = x.next_offset "
        f"FROM {source([*_PLACE, ('next_offset', 'bigint')])} "
        "WHERE o.topic = x.topic AND o.partition = x.partition",
        *_places(places),
        literal("bigint", [advance.next_offset for advance in advances]),
    )


_EVENT_COLUMNS = tuple(EVENT_TYPES.items())
_APPEND = (
    f"INSERT INTO audit_event ({identifiers(EVENT_TYPES)}) "
    f"SELECT * FROM {source(_EVENT_COLUMNS)} ON CONFLICT DO NOTHING"
)


def _append(connection: Connection, events: Sequence[HistoryEvent]) -> int:
    """Append what is not there yet; how many that were."""
    columns = dict(zip(HistoryEvent._fields, zip(*events, strict=True), strict=True))
    columns["execution_id"], columns["prev_hash"] = columns["execution"], columns["prev"]
    return run(connection, _APPEND, *(literal(kind, columns[name]) for name, kind in _EVENT_COLUMNS)).rowcount


def _conflicts(connection: Connection, events: Sequence[HistoryEvent]) -> list[Divergence]:
    """Events that are stored with other bytes. One that comes again as it was is no conflict."""
    columns = (
        ("execution_id", "text"), ("run", "bigint"), ("seq", "bigint"), ("hash", "bytea"), ("digest", "bytea"),
        ("n", "integer"),
    )  # fmt: skip
    rows = run(
        connection,
        f"SELECT x.n FROM {source(columns)} JOIN audit_event a "
        "ON a.execution_id = x.execution_id AND a.run = x.run AND a.seq = x.seq "
        "WHERE a.hash <> x.hash OR sha256(a.body) <> x.digest ORDER BY x.n",
        literal("text", [event.execution for event in events]),
        literal("bigint", [event.run for event in events]),
        literal("bigint", [event.seq for event in events]),
        literal("bytea", [event.hash for event in events]),
        literal("bytea", [sha256(event.body).digest() for event in events]),
        literal("integer", range(len(events))),
    )
    return [_conflict(events[n]) for (n,) in rows]


def _conflict(event: HistoryEvent) -> Divergence:
    place = (event.topic, event.partition, event.offset)
    detail = "the same (execution, run, seq) is stored with other bytes"
    return Divergence("conflict", detail, *place, event.execution, event.run, event.seq, body=event.body)


def _insert_letters(session: Session, letters: Iterable[Letter]) -> None:
    rows = []
    for message, at in letters:
        row = message.model_dump(exclude={"v", "type"})
        row["key"] = None if message.key is None else b64decode(message.key)
        row["value"] = None if message.value is None else b64decode(message.value)
        row["headers"] = [header.model_dump(exclude_none=True) for header in message.headers or ()] or None
        for header in message.headers or ():  # raises what a foreign letter's would raise for whoever asks
            b64decode(header.value), b64decode(header.name_base64 or "")
        rows.append({**row, "reported_at": datetime.fromtimestamp(at / 1000, UTC)})
    session.execute(insert(DeadLetterRow).on_conflict_do_nothing(), rows)
