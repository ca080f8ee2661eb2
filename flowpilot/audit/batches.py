"""From fetched records to what is written in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from flowpilot.audit.records import dead_letter, definition_change, diverges, filtered, history_event, without_nul
from flowpilot.ports.audit import (
    Advance,
    Batch,
    DefinitionChange,
    Divergence,
    Pointed,
    Position,
    Registered,
    Removed,
)
from flowpilot.ports.log import Fetched, TopicPartition
from flowpilot_schemas.topics import MIB, Topics

BATCH = 5_000
BATCH_BYTES = 8 * MIB


class Definitions:
    """The definitions and pointers seen so far, so that a pointer is taken with what it points to.

    Compaction keeps the last record of a key: a definition that was registered twice may come after its pointers.
    """

    def __init__(self) -> None:
        self._known: dict[str, Registered] = {}
        self._pointers: dict[tuple[str, str | None], Pointed] = {}  # a version's own by workflow and version

    def learn(self, records: Iterable[Fetched]) -> None:
        """Take note of what was on the topic before the stored position."""
        for record in records:
            self.changes(record)

    def changes(self, record: Fetched) -> Sequence[DefinitionChange] | Divergence:
        """What a record changes; a pointer comes with its definition, or once more after it."""
        change = definition_change(record)
        match change:
            case Registered():
                self._known[change.hash] = change
                pointers = [each for each in self._pointers.values() if each.hash == change.hash]
                return [change, *(each._replace(definition=change) for each in pointers)]
            case Pointed():
                self._pointers[change.workflow, None if change.current else change.version] = change
                return [change._replace(definition=self._known.get(change.hash))]
            case Removed():
                self._forget(change)
                return [change]
        return change

    def _forget(self, change: Removed) -> None:
        if change.hash is not None:
            self._known.pop(change.hash, None)
        for workflow, version in list(self._pointers):
            if workflow == change.workflow and change.version in (None, version):
                del self._pointers[workflow, version]


def chunks(records: Sequence[Fetched]) -> Iterator[Sequence[Fetched]]:
    """`records` in transactions of up to `BATCH` records and about `BATCH_BYTES`."""
    start = size = 0
    for index, record in enumerate(records):
        size += len(record.key or b"") + len(record.value or b"")
        if size >= BATCH_BYTES or index - start + 1 >= BATCH:
            yield records[start : index + 1]
            start, size = index + 1, 0
    if start < len(records):
        yield records[start:]


def batch_of(
    records: Sequence[Fetched],
    stored: Mapping[TopicPartition, Position],
    topics: Topics,
    definitions: Definitions,
) -> Batch:
    """What `records`, in the order of their partitions, say; `stored` has the position of each partition."""
    batch = Batch(advances=_advances(records, stored))
    history = topics.history
    for record in records:
        if record.topic == history:
            event, divergence = history_event(record)
            if event is not None:
                batch.events.append(event)
            if divergence is not None:
                batch.divergences.append(divergence)
        elif record.topic == topics.definitions:
            changes = definitions.changes(record)
            if isinstance(changes, Divergence):
                batch.divergences.append(changes)
            else:
                batch.definitions.extend(changes)
        elif record.topic == topics.fates:
            left_out = filtered(record)
            if isinstance(left_out, Divergence):
                batch.divergences.append(left_out)
            else:
                batch.filtered.append(left_out)
        else:
            letter = dead_letter(record)
            if isinstance(letter, Divergence):
                batch.divergences.append(letter)
            else:
                batch.letters.append(letter)
    return batch


def set_aside(record: Fetched, stored: Mapping[TopicPartition, Position], why: str) -> Batch:
    """A record that the store refuses, kept as bytes with the reason."""
    detail = without_nul(why)[:1_000]
    return Batch(advances=_advances([record], stored), divergences=[diverges(record, "unstorable", detail)])


def _advances(records: Iterable[Fetched], stored: Mapping[TopicPartition, Position]) -> list[Advance]:
    ends = {TopicPartition(record.topic, record.partition): record.offset + 1 for record in records}
    return [
        Advance(partition, stored[partition].topic_id, stored[partition].next_offset, end)
        for partition, end in ends.items()
    ]
