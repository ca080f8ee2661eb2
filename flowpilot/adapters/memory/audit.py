"""The audit store in memory, with the meaning of the one in PostgreSQL: one suite runs on both.

Left out is what only queries ask for, but for the outcomes of trigger records: the links between executions and
definitions, steps and their order.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from flowpilot.core.outcomes import Fate, begun, current
from flowpilot.ports.audit import (
    FURTHER,
    KEPT_DIVERGENCES,
    UNKNOWN,
    Acknowledgement,
    Batch,
    BatchRefused,
    Changes,
    DefinitionChange,
    Divergence,
    Head,
    HistoryEvent,
    Letter,
    Outrun,
    Pointed,
    Position,
    Project,
    Registered,
    Removed,
    Repeat,
    Row,
    RunKey,
    StoredRun,
    TaskKey,
    further,
)
from flowpilot.ports.log import TopicPartition
from flowpilot_schemas.messages import RecordHeader
from flowpilot_schemas.triggers import TriggerFiltered

_JSON = frozenset({"output", "error", "errors"})
_NUMBERS = {"seq": 63, "attempt": 31, "partition": 31, "offset": 63, "origin_partition": 31, "origin_offset": 63}
"""Columns of whole numbers, and the bits they have."""
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class Version(NamedTuple):
    """A version of a workflow; `definition` is its hash."""

    definition: str
    is_current: bool


class AuditTables:
    """What a server holds. Each method is one transaction."""

    def __init__(self) -> None:
        self.positions: dict[TopicPartition, Position] = {}
        self.events: dict[tuple[str, int, int], HistoryEvent] = {}
        self.heads: dict[RunKey, Head] = {}
        self.executions: dict[RunKey, Row] = {}
        self.parents: dict[RunKey, str] = {}
        self.tasks: dict[TaskKey, Row] = {}
        self.workflows: dict[tuple[str, str], Version] = {}
        """By name and version."""
        self.letters: dict[tuple[Any, ...], Letter] = {}
        self.filtered: list[TriggerFiltered] = []
        self.repeats: dict[tuple[str, int, int], Repeat] = {}
        self.divergences: dict[str, Divergence] = {}
        """By fingerprint."""
        self._acknowledged: dict[str, Acknowledgement] = {}

    def begin(self, positions: Mapping[TopicPartition, Position]) -> None:
        """See `AuditStore.begin`."""
        for partition, position in positions.items():
            self.positions.setdefault(partition, position)

    def write(self, batch: Batch, project: Project) -> Sequence[Divergence]:
        """See `AuditStore.write`."""
        for advance in batch.advances:
            if self.positions.get(advance.partition) != (advance.topic_id, advance.expected):
                raise Outrun
        runs = {RunKey(event.execution, event.run) for event in batch.events}
        known = {run: self.heads[run] for run in runs if run in self.heads}
        try:
            changes = project(batch.events, known) if batch.events else Changes()
            _check(changes)
            _check_ranges(batch.filtered)
            _check_bytes(batch.letters)
        except (TypeError, ValueError, OverflowError) as error:
            raise BatchRefused(str(error)) from error
        # From here on nothing fails: all of it is written.
        for advance in batch.advances:
            self.positions[advance.partition] = Position(advance.topic_id, advance.next_offset)
        for change in batch.definitions:
            self._define(change)
        found = [*batch.divergences, *changes.divergences, *self._append(batch.events)]
        self._set_rows(changes, known)
        for repeat in changes.repeats:
            self.repeats.setdefault((repeat.execution, repeat.run, repeat.seq), repeat)
        self.filtered += batch.filtered
        for letter in batch.letters:
            message = letter.message
            place = (message.topic, message.partition, message.offset, message.timestamp)
            self.letters.setdefault((*place, message.source, message.reason, message.workflow), letter)
        for each in found:
            self._keep(each)
        return found

    def _keep(self, divergence: Divergence) -> None:
        if divergence.fingerprint in self.divergences:
            return
        place = divergence.topic, divergence.partition
        here = [each for each in self.divergences.values() if (each.topic, each.partition) == place]
        stands = [each for each in here if each.reason == FURTHER]
        if len(here) - len(stands) < KEPT_DIVERGENCES:
            self.divergences[divergence.fingerprint] = divergence.cut()
            return
        count = 1
        for each in stands:
            del self.divergences[each.fingerprint]
            count += each.seq or 0
        more = further(*place, divergence.offset, count)
        self.divergences[more.fingerprint] = more

    def acknowledged(self) -> dict[str, Acknowledgement]:
        """See `Acknowledgements`."""
        return dict(self._acknowledged)

    def acknowledge(self, findings: Mapping[str, str], actor: str, reason: str) -> int:
        """See `Acknowledgements`."""
        new = [fingerprint for fingerprint in findings if fingerprint not in self._acknowledged]
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._acknowledged |= {each: Acknowledgement(each, actor, reason, at) for each in new}
        return len(new)

    def _append(self, events: Sequence[HistoryEvent]) -> Iterator[Divergence]:
        """Append what is not there yet; what is there with other bytes."""
        for event in events:
            key = (event.execution, event.run, event.seq)
            stored = self.events.setdefault(key, event)
            if stored.hash != event.hash or sha256(stored.body).digest() != sha256(event.body).digest():
                detail = "the same (execution, run, seq) is stored with other bytes"
                place = (event.topic, event.partition, event.offset)
                yield Divergence("conflict", detail, *place, *key, body=event.body)
            head = self.heads.get(RunKey(event.execution, event.run))
            if head is None or event.seq > head.seq:
                self.heads[RunKey(event.execution, event.run)] = Head(event.seq, event.hash)

    def _set_rows(self, changes: Changes, known: Mapping[RunKey, Head]) -> None:
        """A run that has events but no row any more was deleted by somebody: it stays deleted."""
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

    def _define(self, change: DefinitionChange) -> None:
        match change:
            case Registered(hash_, definition):
                self.workflows.setdefault((definition.name, definition.version), Version(hash_, is_current=False))
            case Pointed():
                self._point(change)
            case Removed():
                kept = {name: each for name, each in self.workflows.items() if not _names(change, name, each)}
                self.workflows = kept

    def _point(self, change: Pointed) -> None:
        name = (change.workflow, change.version)
        if change.definition is not None:
            stored = self.workflows.setdefault(name, Version(change.definition.hash, is_current=False))
            if not change.current:  # of two registrations of a version, its own pointer says which it is
                self.workflows[name] = stored._replace(definition=change.definition.hash)
        if change.current:
            for key, stored in self.workflows.items():
                if key[0] == change.workflow:
                    self.workflows[key] = stored._replace(is_current=key == name)

    def fates(self, topic: str, partition: int, offset: int) -> list[Fate]:
        """The current outcomes of a trigger record, by workflow."""
        place = (topic, partition, offset)
        found = [
            begun(
                row.get("workflow_name"), *run, row["origin_topic_id"], row["status"], row.get("reason"),
                row.get("errors"),
            )
            for run, row in self.executions.items()
            if (row.get("origin_topic"), row.get("origin_partition"), row.get("origin_offset")) == place
        ]  # fmt: skip
        found += [
            Fate(part.workflow, "filtered", part.reason, topic_id=message.topic_id)
            for message in self.filtered
            if (message.topic, message.partition) == (topic, partition)
            for part in message.filtered
            if any(first <= offset <= last for first, last in part.ranges)
        ]
        for repeat in self.repeats.values():
            if (repeat.topic, repeat.partition, repeat.offset) == place:
                of = self.executions.get(RunKey(repeat.execution, repeat.run), {}).get("workflow_name")
                found.append(Fate(of, repeat.fate, None, None, repeat.execution, repeat.run, repeat.topic_id))
        found += [
            Fate(message.workflow, "dead_letter", message.reason, message.detail, topic_id=message.topic_id)
            for message, _ in self.letters.values()
            if (message.topic, message.partition, message.offset) == place
        ]
        return current(found)

    def runs(self, execution: str | None = None) -> Iterator[StoredRun]:
        """See `AuditArchive.runs`: as they are now, whatever is written while they are looked at."""
        events: dict[RunKey, list[HistoryEvent]] = {run: [] for run in sorted({*self.heads, *self.executions})}
        for key in sorted(self.events):
            events[RunKey(*key[:2])].append(self.events[key]._replace(fields={}))
        tasks: dict[RunKey, dict[str, Row]] = {run: {} for run in events}
        for task, row in self.tasks.items():
            tasks[RunKey(task.execution, task.run)][task.step] = dict(row)
        rows = {run: dict(row) for run, row in self.executions.items()}
        return iter(
            [
                StoredRun(run, found, rows.get(run), self.parents.get(run), tasks[run])
                for run, found in events.items()
                if execution in (None, run.execution)
            ]
        )


class MemoryAuditStore:
    """See `flowpilot.ports.audit.AuditStore`: a writer's connection to `tables`, which may be replaced."""

    def __init__(self, tables: AuditTables | None = None) -> None:
        self.tables = AuditTables() if tables is None else tables

    async def positions(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Position]:
        """See the port."""
        stored = self.tables.positions
        return {partition: stored[partition] for partition in partitions if partition in stored}

    async def begin(self, positions: Mapping[TopicPartition, Position]) -> None:
        """See the port."""
        self.tables.begin(positions)

    async def write(self, batch: Batch, project: Project) -> Sequence[Divergence]:
        """See the port."""
        return self.tables.write(batch, project)

    async def close(self) -> None:
        """See the port."""


def _names(change: Removed, name: tuple[str, str], version: Version) -> bool:
    if change.hash is not None:
        return version.definition == change.hash
    return change.workflow == name[0] and change.version in (None, name[1])


def _check(changes: Changes) -> None:
    """Raises TypeError or ValueError for a value that its column cannot hold."""
    for row in (*changes.executions.values(), *changes.tasks.values()):
        for name, value in row.items():
            _check_value(name, value)
    for task in changes.tasks:
        _check_value("step_name", task.step)
    for parent in changes.parents.values():
        _check_value("parent", parent)
    for repeat in changes.repeats:
        for name in ("topic", "topic_id", "partition", "offset"):
            if getattr(repeat, name) is None:
                raise TypeError(f"nothing where {name} belongs")
            _check_value(name, getattr(repeat, name))


def _check_ranges(filtered: Iterable[TriggerFiltered]) -> None:
    for first, last in (bounds for message in filtered for part in message.filtered for bounds in part.ranges):
        if first > last:
            raise ValueError(f"the range of offsets {first} to {last} ends before it begins")


def _check_bytes(letters: Iterable[Letter]) -> None:
    for message, _ in letters:
        for text in (message.key, message.value, *_base64_of(message.headers or ())):
            b64decode(text or "")


def _base64_of(headers: Iterable[RecordHeader]) -> Iterator[str | None]:
    for header in headers:
        yield header.value
        yield header.name_base64


def _check_value(name: str, value: Any) -> None:
    if value is None:
        return
    if name in _JSON:
        if _ESCAPED_NUL.search(orjson.dumps(value)):
            raise ValueError(f"a NUL within {name}")
    elif name in _NUMBERS:
        if not isinstance(value, int):
            raise TypeError(f"{type(value).__name__} where the number {name} belongs")
        if not -(1 << _NUMBERS[name]) <= value < 1 << _NUMBERS[name]:
            raise OverflowError(f"{name} is out of range")
    elif not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where the text {name} belongs")
    elif "\0" in value:
        raise ValueError(f"a NUL within {name}")
    elif name.endswith("_at"):
        datetime.fromisoformat(value)
    else:
        value.encode()
