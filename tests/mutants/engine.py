"""More defects of the engine: what `make mutants` plants beside the rules of the protocol."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from flowpilot.core.status import TERMINAL_EXECUTION
from flowpilot.engine import changelog as changelogs
from flowpilot.engine import claim as claiming
from flowpilot.engine import fold
from flowpilot.engine.changelog import Changelog
from flowpilot.engine.due import DueIndex
from flowpilot.engine.engine import Engine
from flowpilot.engine.fold import Fold
from flowpilot.engine.overlay import Overlay
from flowpilot.engine.owned import OwnedPartition
from flowpilot.engine.sender import Sender
from flowpilot.engine.table import PartitionTable, entry_of
from flowpilot.engine.trial import Fate
from flowpilot.ports.log import Fetched
from tests.mutants.catalogue import Catalogue, Patch
from tests.mutants.protocol import lawful_owner

planted = Catalogue("engine")
Shares = Sequence[tuple[OwnedPartition, list[Fetched]]]


@planted("R2", "storm")
def acknowledged_before_state(patch: Patch) -> None:
    """A batch counts as finished before anything of it is in the changelog: a commit may overtake its states."""
    whole = Engine._process

    async def process(self: Any, shares: Shares, fate: Fate = Fate.FOLDED) -> list[Fetched]:
        for owned, records in shares:
            process = lawful_owner(self, owned.partition)
            if process is not None and process.engine is self:
                process.world.committed[owned.partition] = records[-1].offset + 1
        return await whole(self, shares, fate)

    patch.setattr(Engine, "_process", process)


@planted("S9", "unit", "storm", "simulation")
def finished_state_dropped_at_once(patch: Patch) -> None:
    """An execution that has ended is removed in the batch that ended it: it is not known again."""
    whole = Overlay.writes

    def writes(self: Any) -> Any:
        yield from whole(self)
        for state in self.changed.values():
            if state.status in TERMINAL_EXECUTION:
                yield state.id.encode(), None, state.src, False

    patch.setattr(Overlay, "writes", writes)


@planted("R1", "unit")
def no_repair(patch: Patch) -> None:
    """A claim does not write again what late records of an earlier owner lie behind."""

    async def repair(table: PartitionTable, changelog: Changelog, epoch: int) -> None:
        table.settle()

    patch.setattr(claiming, "_repair", repair)


@planted("R1", "unit", "simulation")
def epoch_before_src(patch: Patch) -> None:
    """Of two records of a key the one of the later claim counts, whatever was folded into them."""

    def load(self: Any, record: Fetched) -> None:
        self.next_changelog_offset = max(self.next_changelog_offset, record.offset + 1)
        entry = entry_of(record)
        self.highest_epoch = max(self.highest_epoch, entry.epoch)
        known = self._entries.get(record.key)
        if known is None or (entry.epoch, entry.src) >= (known.epoch, known.src):
            self._entries[record.key] = entry
            self._overtaken.discard(record.key)
        else:
            self._overtaken.add(record.key)

    patch.setattr(PartitionTable, "load", load)


@planted("R1", "unit")
def any_log_will_do(patch: Patch) -> None:
    """A claim does not look whether the events topic is the one, and as long as, that the table was folded from."""
    patch.setattr(claiming, "_check_log", lambda table, events, low, end: None)


@planted("R1", "unit")
def a_newer_owner_is_overwritten(patch: Patch) -> None:
    """An owner takes the records of a newer claim for late ones of an older."""
    whole = changelogs._answer

    def answer(owned: OwnedPartition, written: Any, foreign: Any) -> Any:
        ours = [record for record in foreign if entry_of(record).epoch < owned.epoch]
        return whole(owned, written, ours)

    patch.setattr(changelogs, "_answer", answer)


@planted("L1", "unit")
def crashes_are_not_counted(patch: Patch) -> None:
    """A record that ends every process that takes it is taken again, for ever."""

    async def write_trial(self: Any, owned: OwnedPartition, *trials: Any, bars: bool = False) -> None:
        return

    patch.setattr(Engine, "_write_trial", write_trial)


@planted("S6", "unit")
def what_was_given_up_bars_nothing(patch: Patch) -> None:
    """A record that was given up comes back with what an earlier owner writes late, if that one was further."""
    patch.setattr(PartitionTable, "_bar", lambda self, key, entry: None)


@planted("L1", "unit", "simulation")
def timers_fire_once(patch: Patch) -> None:
    """A deadline leaves the heap when its timer is sent, not when it is folded: a lost timer is not sent again."""
    whole = DueIndex.set

    def set_(self: DueIndex, execution: str, due: int | None) -> None:
        rearmed = sys._getframe(1).f_code.co_name == "due_events"
        whole(self, execution, None if rearmed else due)

    patch.setattr(DueIndex, "set", set_)


@planted("S4", "simulation")
def the_pointer_counts(patch: Patch) -> None:
    """A start begins a run of the version that is current when the engine comes to it, not of the pinned one."""
    whole = fold.begin

    def begin(record: Fetched, message: Any, overlay: Overlay, known: Any) -> Any:
        engine = getattr(known, "__self__", None)
        current = engine._definitions.current(message.workflow) if isinstance(engine, Engine) else None
        if current is not None and message.retry is None:
            message = message.model_copy(update={"definition": current.hash, "version": current.version})
        return whole(record, message, overlay, known)

    patch.setattr(fold, "begin", begin)


@planted("S4", "simulation")
def the_newest_definition_counts(patch: Patch) -> None:
    """A deploy changes what runs: an execution goes on under the newest version of its workflow that was met."""
    whole = Fold._definition_of

    def definition_of(self: Any, state: Any) -> Any:
        pinned = whole(self, state)
        versions = [each for each in self._overlay._decoded.values() if pinned and each.name == pinned.name]
        return max(versions, key=lambda each: each.version, default=pinned)

    patch.setattr(Fold, "_definition_of", definition_of)


@planted("R2", "unit", "simulation")
def refused_outputs_are_forgotten(patch: Patch) -> None:
    """An output that the broker refuses for good is dropped: a step that was never sent is waited for."""

    async def send(self: Any, outputs: Any) -> None:
        await self._producer.send([output.record for output in outputs])

    patch.setattr(Sender, "send", send)
