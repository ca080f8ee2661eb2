"""The definitions topic behind the `Definitions` port, on whatever log there is.

The first record of a version's key wins: every reader ignores a later one with other content, so two processes
that register the same version differently see the same winner, and the other gets `VersionConflict`. Compaction
would keep the loser's record, the last of its key; therefore the loser, and whoever registers next if the loser
did not live to do it, writes the winner's again.

The last record of a definition (`def/<hash>`) is its latest registration: whoever applies a version that is not
the newest writes the definition again, and looks once more when its pointer is written, so that of two versions
applied at once the current one is the newest. Compaction keeps exactly that record, at its offset, so every reader
finds the same order. The version's own record is not written again: its time is that of the first registration.

A deleted workflow's pointer is a record that says so, not a null value, which compaction would forget: a worker
that starts a year later must not bring the workflow back.
"""

from __future__ import annotations

import asyncio

import structlog

from flowpilot.ports.definitions import DefinitionTooLarge, Registration, VersionConflict, WorkflowDeleted
from flowpilot.ports.log import Fetched, LogUnavailable, Producer, Reader, Record, as_time
from flowpilot_schemas.codec import BadRecord, canonical, content_hash, decode_object, encode_message, parse
from flowpilot_schemas.definition import (
    DefinitionPointer,
    WorkflowDefinition,
    WorkflowDeletion,
    definition_key,
    dev_version,
    pointer_key,
    version_key,
)
from flowpilot_schemas.limits import KIB
from flowpilot_schemas.topics import LARGE_MESSAGE

_log = structlog.get_logger("flowpilot.definitions")

# What a definition may take: the record's key, headers and frame come on top, here and in the engine's copy.
LARGEST_DEFINITION = LARGE_MESSAGE - 64 * KIB


class LogDefinitions:
    """See `flowpilot.ports.definitions.Definitions`. `topic` has one partition and is compacted.

    `dev_versions`: changed content of a registered version is registered as `<version>+dev.<hash>`, not refused.
    """

    def __init__(self, producer: Producer, reader: Reader, topic: str, *, dev_versions: bool = False) -> None:
        self._producer, self._reader, self._topic = producer, reader, topic
        self._dev_versions = dev_versions
        self._position = 0
        self._reading = asyncio.Lock()
        self._definitions: dict[str, WorkflowDefinition] = {}
        self._latest: dict[str, int] = {}  # by hash, the offset of the definition's last record
        self._versions: dict[str, DefinitionPointer] = {}  # by "<workflow>@<version>"
        self._pointers: dict[str, DefinitionPointer] = {}
        self._deleted: set[str] = set()
        self._deletions: dict[str, int] = {}  # when, in ms; also of those that were registered again since
        self._registrations: dict[str, Registration] = {}
        self._contested: set[str] = set()  # versions whose last record is not the winner's

    async def refresh(self) -> None:
        """See the port."""
        async with self._reading:
            # Of what lies before an end compaction may remove a record that has a newer one behind that end.
            while (end := (await self._reader.bounds(self._topic, 0))[1]) > self._position:
                await self._read_to(end)

    async def _read_to(self, end: int) -> None:
        for record in await self._reader.read(self._topic, 0, self._position, end):
            try:
                self._take(record)
            except BadRecord as bad:
                _log.warning(
                    "bad record skipped",
                    topic=self._topic,
                    offset=record.offset,
                    reason=bad.reason,
                    detail=bad.detail,
                )
        self._position = end

    def get(self, definition_hash: str) -> WorkflowDefinition | None:
        """See the port."""
        return self._definitions.get(definition_hash)

    def position(self, definition_hash: str) -> int | None:
        """See the port."""
        return self._latest.get(definition_hash)

    def current(self, workflow: str) -> WorkflowDefinition | None:
        """See the port."""
        return self._named(self._pointers.get(workflow), workflow)

    def version(self, workflow: str, version: str) -> WorkflowDefinition | None:
        """See the port."""
        if workflow in self._deleted:
            return None
        return self._named(self._versions.get(f"{workflow}@{version}"), workflow)

    def versions(self, workflow: str) -> list[WorkflowDefinition]:
        """See the port."""
        found = [self.version(workflow, pointer.version) for pointer in self._versions_of(workflow)]
        return [definition for definition in found if definition is not None]

    def is_deleted(self, workflow: str) -> bool:
        """See the port."""
        return workflow in self._deleted

    def workflows(self) -> list[str]:
        """See the port."""
        return sorted(self._pointers)

    def registered(self, definition: WorkflowDefinition) -> WorkflowDefinition:
        """See the port."""
        known = self._versions.get(f"{definition.name}@{definition.version}")
        if not self._dev_versions or known is None or known.definition == definition.hash:
            return definition
        return dev_version(definition)

    def registration(self, workflow: str) -> Registration | None:
        """See the port. The versions' own records are written once: compaction leaves the first of them."""
        return self._registrations.get(workflow)

    async def register(self, definition: WorkflowDefinition, *, move_pointer: bool = False) -> bool:
        """See the port."""
        await self.refresh()
        await self._write_winners_again()
        definition = self.registered(definition)
        name, version = definition.name, definition.version
        self._refuse_deleted(name, move_pointer)
        if name in self._deleted:
            await self._take_back(name)  # what a delete that died half-way has left
        known = self._versions.get(f"{name}@{version}")
        if known is not None and known.definition != definition.hash:
            raise VersionConflict(name, version)
        pointer = DefinitionPointer(definition=definition.hash, version=version)
        added = known is None or definition.hash not in self._definitions
        if added:
            await self._add(definition, pointer)
            self._refuse_deleted(name, move_pointer)
        elif move_pointer:
            await self._make_newest(definition)
        if move_pointer or self.current(name) is None:
            await self._send(pointer_key(name), encode_message(pointer))
            await self.refresh()
        if move_pointer and self._pointers.get(name) == pointer:
            await self._make_newest(definition)  # another may have been applied between the two records
        return added

    async def delete(self, workflow: str) -> list[str]:
        """See the port."""
        await self.refresh()
        # The name first: who registers meanwhile is refused, and a delete that died half-way can be repeated.
        if workflow in self._pointers or (self._versions_of(workflow) and workflow not in self._deleted):
            await self._send(pointer_key(workflow), encode_message(WorkflowDeletion()))
        return await self._take_back(workflow)

    async def _take_back(self, workflow: str) -> list[str]:
        versions = [pointer.version for pointer in self._versions_of(workflow)]
        for version in versions:
            await self._send(version_key(workflow, version), None)
        await self.refresh()
        return versions

    def _versions_of(self, workflow: str) -> list[DefinitionPointer]:
        return [pointer for label, pointer in self._versions.items() if label.startswith(f"{workflow}@")]

    async def _make_newest(self, definition: WorkflowDefinition) -> None:
        positions = [self._latest[each.hash] for each in self._definitions.values() if each.name == definition.name]
        if self._latest.get(definition.hash) != max(positions, default=None):
            await self._send(definition_key(definition.hash), canonical(definition.model_dump(mode="json")))
            await self.refresh()

    def _refuse_deleted(self, workflow: str, move_pointer: bool) -> None:
        if workflow in self._deleted and not move_pointer:
            raise WorkflowDeleted(workflow)

    async def _add(self, definition: WorkflowDefinition, pointer: DefinitionPointer) -> None:
        name, version = definition.name, definition.version
        value = canonical(definition.model_dump(mode="json"))
        if len(value) > LARGEST_DEFINITION:
            raise DefinitionTooLarge(name, version, len(value), LARGEST_DEFINITION)
        # One after the other: nothing may point to a definition that was not taken.
        await self._send(definition_key(definition.hash), value)
        await self._send(version_key(name, version), encode_message(pointer))
        await self.refresh()
        taken = self._versions.get(f"{name}@{version}")
        if taken is None:
            raise WorkflowDeleted(name)  # by somebody, at this moment
        if taken.definition != definition.hash:
            await self._write_winners_again()
            raise VersionConflict(name, version)

    async def _write_winners_again(self) -> None:
        for label in sorted(self._contested):
            await self._send(f"name/{label}".encode(), encode_message(self._versions[label]))
            self._contested.discard(label)

    async def _send(self, key: bytes, value: bytes | None) -> None:
        [delivery] = await self._producer.send([Record(self._topic, key, value, partition=0)])
        if delivery.error is not None:
            raise LogUnavailable(f"{self._topic} does not take the record: {delivery.error}")

    def _named(self, pointer: DefinitionPointer | None, workflow: str) -> WorkflowDefinition | None:
        found = None if pointer is None else self._definitions.get(pointer.definition)
        return found if found is not None and found.name == workflow else None

    def _take(self, record: Fetched) -> None:
        try:
            kind, _, label = (record.key or b"").decode().partition("/")
        except UnicodeDecodeError:
            raise BadRecord("wrong_key", "the key is not UTF-8 text") from None
        if not label or kind not in ("def", "name"):
            raise BadRecord("wrong_key", f"the key {(record.key or b'')[:100]!r} is none of a definition's")
        if kind == "def":
            self._take_definition(label, record)
        elif "@" in label:
            self._take_version(label, record.value)
            self._note(label.partition("@")[0], record)
        else:
            self._take_pointer(label, record)

    def _take_pointer(self, workflow: str, record: Fetched) -> None:
        content = {} if record.value is None else decode_object(record.value)
        if record.value is None or "deleted" in content:
            if content:
                parse(WorkflowDeletion, content)
                self._deleted.add(workflow)
            self._pointers.pop(workflow, None)
            self._registrations.pop(workflow, None)
            self._deletions[workflow] = as_time(record.timestamp)
            return
        self._pointers[workflow] = parse(DefinitionPointer, content)
        self._deleted.discard(workflow)
        self._note(workflow, record)

    def _note(self, workflow: str, record: Fetched) -> None:
        if record.value is not None:
            found = Registration(as_time(record.timestamp), self._deletions.get(workflow))
            self._registrations.setdefault(workflow, found)

    def _take_definition(self, definition_hash: str, record: Fetched) -> None:
        value = record.value
        if value is None:
            self._definitions.pop(definition_hash, None)
            self._latest.pop(definition_hash, None)
            return
        content = decode_object(value)
        if content_hash(content) != definition_hash:
            raise BadRecord("wrong_key", "the key is not the hash of the definition")
        definition = parse(WorkflowDefinition, content)
        # Its identity is what was registered, also where this release's model would write it otherwise.
        definition.__dict__["hash"] = definition_hash
        self._definitions[definition_hash] = definition
        self._latest[definition_hash] = record.offset

    def _take_version(self, label: str, value: bytes | None) -> None:
        if value is None:
            self._versions.pop(label, None)
            self._contested.discard(label)
            return
        pointer = parse(DefinitionPointer, decode_object(value))
        winner = self._versions.setdefault(label, pointer)
        if winner.definition == pointer.definition:
            self._contested.discard(label)
        else:
            self._contested.add(label)
