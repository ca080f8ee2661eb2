"""Where the audit record contradicts itself, and what operators have acknowledged of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Engine

from flowpilot.adapters.postgres.archive import PostgresAuditArchive
from flowpilot.adapters.postgres.divergences import PostgresAcknowledgements
from flowpilot.adapters.postgres.queries import AuditQueries
from flowpilot.app.database import asking
from flowpilot.audit.verify import verify
from flowpilot.core.errors import FlowPilotError
from flowpilot.settings import Settings

Fields = dict[str, Any]
SHOWN = 12
"""Hexadecimal digits of a fingerprint that are shown, and are enough to name it."""


class UnknownDivergence(FlowPilotError):
    """None, or more than one, has that id."""


def differences(settings: Settings, execution: str | None = None) -> list[Fields]:
    """Where the audit contradicts itself: hash chains, sequence, rows; and what the writer set aside as wrong."""
    with asking(settings) as engine:
        return _with_acknowledgements(engine, [*_recomputed(engine, execution), *_recorded(engine, execution)])


def recorded(settings: Settings) -> list[Fields]:
    """What the writer set aside as wrong alone: nothing is recomputed."""
    with asking(settings) as engine:
        return _with_acknowledgements(engine, list(_recorded(engine, None)))


def acknowledge(
    settings: Settings, ids: Sequence[str], execution: str | None, actor: str, reason: str
) -> list[Fields]:
    """Acknowledge findings by their ids, or without `ids` all (of `execution`); those that were not before.

    Raises `UnknownDivergence`, and then none is acknowledged.
    """
    with asking(settings) as engine:
        found = list(_recorded(engine, execution))
        if not (ids and all(_named(found, each) for each in ids)):
            found = [*_recomputed(engine, execution), *found]
        if ids:
            found = [_one(found, each) for each in ids]
        store = PostgresAcknowledgements(engine)
        known = store.acknowledged()
        new = {each["fingerprint"]: each for each in found if each["fingerprint"] not in known}
        store.acknowledge({name: each["what"] for name, each in new.items()}, actor, reason)
        return _with_acknowledgements(engine, list(new.values()))


def _recomputed(engine: Engine, execution: str | None) -> Iterator[Fields]:
    for item in verify(PostgresAuditArchive(engine), execution):
        yield _fields(item.fingerprint, item.execution, item.run, item.seq, item.what)


def _recorded(engine: Engine, execution: str | None) -> Iterator[Fields]:
    for item in AuditQueries(engine).divergences():
        if execution in (None, item.execution_id):
            where = f"{item.topic}/{item.partition}/{item.offset}"
            what = f"{item.reason}: {item.detail} ({where})"
            yield _fields(item.fingerprint, item.execution_id, item.run, item.seq, what)


def _fields(fingerprint: str, execution: str | None, run: int | None, seq: int | None, what: str) -> Fields:
    place = {"execution": execution, "run": run, "seq": seq}
    return {"id": fingerprint[:SHOWN], **place, "what": what, "fingerprint": fingerprint}


def _with_acknowledgements(engine: Engine, found: Sequence[Fields]) -> list[Fields]:
    known = PostgresAcknowledgements(engine).acknowledged() if found else {}
    rows = []
    for each in found:
        given = known.get(each["fingerprint"])
        by = None if given is None else {"actor": given.actor, "reason": given.reason, "at": given.at}
        rows.append({**each, "acknowledged": by})
    return rows


def _named(found: Sequence[Fields], name: str) -> list[Fields]:
    return [each for each in found if each["fingerprint"].startswith(name.lower())]


def _one(found: Sequence[Fields], name: str) -> Fields:
    named = {each["fingerprint"]: each for each in _named(found, name)}
    if len(named) != 1 or len(name) < 4:
        many = (
            f"{len(named)} divergences have an id that begins" if named else "no divergence has an id that begins"
        )
        raise UnknownDivergence(f"{many} with {name!r}: `flowpilot execution verify` lists them with their ids")
    return next(iter(named.values()))
