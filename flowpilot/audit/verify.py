"""Anyone can check it: the stored events against their hashes, the rows against the fold of the events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from flowpilot.audit.projection import project
from flowpilot.audit.records import history_event
from flowpilot.ports.audit import UNKNOWN, AuditArchive, HistoryEvent, Row, StoredRun
from flowpilot.ports.log import Fetched
from flowpilot_schemas.codec import content_hash
from flowpilot_schemas.history import HEADER_HASH, HEADER_PREV

_NO_ROW: Row = {}


class Difference(NamedTuple):
    """Something that is not as the events say; `seq` if it concerns one event."""

    execution: str
    run: int
    seq: int | None
    what: str
    stored: str = ""
    """The hash of the stored event, where it concerns one."""

    @property
    def fingerprint(self) -> str:
        """What tells it from every other one, also from a later one of the same place."""
        return content_hash(list(self)).partition(":")[2]


def verify(archive: AuditArchive, execution: str | None = None) -> Iterator[Difference]:
    """Every difference in the audit, or in that of one execution; nothing is read but the audit itself.

    Checked: seq counts from 1 without gaps; each event's bytes hash to its hash, and its previous hash is the
    hash before it; its columns are what its bytes say; the rows are the fold of the events, column by column.
    """
    for run in archive.runs(execution):
        stored = {event.seq: _hash(event) for event in run.events}
        for seq, what in _differences(run):
            yield Difference(*run.key, seq, what, stored.get(seq, "") if seq is not None else "")


def _hash(event: HistoryEvent) -> str:
    parts = (event.body, event.prev, event.hash)
    return sha256(b"".join([len(part).to_bytes(8, "big") + part for part in parts])).hexdigest()


def _differences(run: StoredRun) -> Iterator[tuple[int | None, str]]:
    if not run.events:
        yield None, "there is a row but no event"
        return
    events = []
    for stored in run.events:
        event, divergence = history_event(_record(stored))
        if divergence is not None:
            yield stored.seq, f"{divergence.reason}: {divergence.detail}"
        if event is not None:
            events.append(event)
            if event._replace(fields={}) != stored:
                yield stored.seq, "its columns are not what its bytes say"
    changes = project(events, {})
    for item in changes.divergences:
        yield item.seq, f"{item.reason}: {item.detail}"
    if run.execution is None:
        if run.key in changes.executions:
            yield None, "there is no row"
        return
    expected = {"status": UNKNOWN, **changes.executions.get(run.key, _NO_ROW)}
    yield from _compared("execution", expected, run.execution)
    if changes.parents.get(run.key) != run.parent:
        yield None, f"execution.parent is {run.parent!r} instead of {changes.parents.get(run.key)!r}"
    tasks = {key.step: {"attempt": changes.attempts[key], **row} for key, row in changes.tasks.items()}
    for step in sorted(tasks.keys() | run.tasks.keys()):
        if step not in run.tasks:
            yield None, f"task {step} has no row"
        elif step not in tasks:
            yield None, f"task {step} has a row but no event"
        else:
            yield from _compared(f"task {step}", tasks[step], run.tasks[step])


_NOT_OF_EVENTS = {
    *("id", "execution_id", "run", "workflow_id", "parent_execution_id"),
    *("workflow_execution_id", "step_name", "step_id"),
}


def _compared(what: str, expected: Row, stored: Row) -> Iterator[tuple[None, str]]:
    for name in _columns(expected, stored):
        wanted, found = _comparable(name, expected.get(name)), _comparable(name, stored.get(name))
        if wanted != found:
            yield None, f"{what}.{name} is {found!r} instead of {wanted!r}"


def _columns(expected: Row, stored: Row) -> Iterable[str]:
    return sorted((expected.keys() | stored.keys()) - _NOT_OF_EVENTS)


def _comparable(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name.endswith("_at"):
        return datetime.fromisoformat(value)
    # Both through the same decoder: which of 1e20 and its digits is a float is its affair.
    return orjson.loads(orjson.dumps(value))


def _record(event: HistoryEvent) -> Fetched:
    headers = ((HEADER_PREV, event.prev), (HEADER_HASH, event.hash))
    key = event.execution.encode()
    return Fetched(event.topic, event.partition, event.offset, 0, key, event.body, headers)
