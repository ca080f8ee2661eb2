"""What users ask of the dead letters. Lists never load the records' bytes, and take a fixed number of queries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Engine, Select, func, select
from sqlalchemy.orm import Session, defer

from flowpilot.adapters.postgres.models import DeadLetterRow
from flowpilot.adapters.postgres.narrowed import MOST, narrowed


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dead letters; None: any. `since` is about the report, not about the record's own time."""

    reason: str | None = None
    workflow: str | None = None
    topic: str | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The dead letters of one reason; `example` is the newest, without its bytes."""

    count: int
    topics: list[str]
    workflows: list[str]
    example: DeadLetterRow


class Place(NamedTuple):
    """Where the record lay that became a dead letter."""

    topic: str
    partition: int
    offset: int


class DeadLetterQueries:
    """Read-only questions. All block, and raise SQLAlchemy's OperationalError if the server cannot be reached."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def groups(self, wanted: Wanted) -> list[Group]:
        """By reason, the one with the newest letter first."""
        letter = DeadLetterRow
        found = select(
            func.count(),
            func.array_agg(func.distinct(letter.topic)),
            func.array_remove(func.array_agg(func.distinct(letter.workflow)), None),
            func.max(letter.id),
        ).group_by(letter.reason)
        with self._session() as session:
            rows = session.execute(_wanted(found, wanted)).all()
            newest = select(letter).where(letter.id.in_([row[3] for row in rows])).options(*_WITHOUT_BYTES)
            examples = {row.id: row for row in session.scalars(newest)}
        groups = [
            Group(count, sorted(topics), sorted(workflows), examples[newest_id])
            for count, topics, workflows, newest_id in rows
        ]
        return sorted(groups, key=lambda group: group.example.id, reverse=True)

    def letters(self, wanted: Wanted, limit: int, before: int | None = None) -> tuple[list[DeadLetterRow], int]:
        """The newest `limit` (up to 1,000) older than the letter `before`, without their bytes; and how many
        there are in all."""
        newest = select(DeadLetterRow).order_by(DeadLetterRow.id.desc()).limit(max(1, min(limit, MOST)))
        if before is not None:
            newest = newest.where(DeadLetterRow.id < before)
        with self._session() as session:
            found = session.scalars(_wanted(newest, wanted).options(*_WITHOUT_BYTES)).all()
            total = session.scalar(_wanted(select(func.count()).select_from(DeadLetterRow), wanted))
        return list(found), total or 0

    def show(self, which: int | Place) -> tuple[DeadLetterRow, list[DeadLetterRow]] | None:
        """A letter by its id, or the newest of a record, with its bytes; and the others of the same record
        (one a workflow or role that could not process it), without. None if there is none.
        """
        letter = DeadLetterRow
        found = select(letter).order_by(letter.id.desc()).limit(1)
        found = found.where(*_at(which)) if isinstance(which, Place) else found.where(letter.id == which)
        with self._session() as session:
            row = session.scalars(found).one_or_none()
            if row is None:
                return None
            same = (*_at(Place(row.topic, row.partition, row.offset)), letter.timestamp == row.timestamp)
            others = select(letter).where(*same, letter.id != row.id).order_by(letter.id).limit(MOST)
            return row, list(session.scalars(others.options(*_WITHOUT_BYTES)))

    def _session(self) -> Session:
        return Session(self._engine, expire_on_commit=False)


_WITHOUT_BYTES = (defer(DeadLetterRow.key), defer(DeadLetterRow.value), defer(DeadLetterRow.headers))


def _at(place: Place) -> tuple[Any, ...]:
    letter = DeadLetterRow
    return (letter.topic == place.topic, letter.partition == place.partition, letter.offset == place.offset)


def _wanted(found: Select[Any], wanted: Wanted) -> Select[Any]:
    letter = DeadLetterRow
    found = narrowed(
        found, (letter.reason, wanted.reason), (letter.workflow, wanted.workflow), (letter.topic, wanted.topic)
    )
    return found if wanted.since is None else found.where(letter.reported_at >= wanted.since)
