"""The commit protocol with one of its rules left out: the failing variants of the model check, and some more.

The storm finds each of these within its first seeds; `make test` looks (tests/property/test_protocol.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowpilot.core import events as e
from flowpilot.core import lineage
from flowpilot.core.state import Execution, OutboxEntry
from flowpilot.engine import claim as claiming
from flowpilot.engine import engine as engines
from flowpilot.engine import housekeeping
from flowpilot.engine.changelog import Changelog
from flowpilot.engine.engine import Engine
from flowpilot.engine.fold import Fold
from flowpilot.engine.overlay import Overlay
from flowpilot.engine.owned import OwnedPartition
from flowpilot.engine.table import PartitionTable, entry_of
from flowpilot.engine.trial import Fate
from flowpilot.ports.log import Fetched
from flowpilot_schemas import messages as m
from flowpilot_schemas.ids import retry_id
from flowpilot_schemas.topics import Topics
from tests.mutants.catalogue import Catalogue, Patch

planted = Catalogue("engine")
T = Topics()
Shares = Sequence[tuple[OwnedPartition, list[Fetched]]]


@planted("S8", "unit", "storm", "simulation")
def outputs_before_state(patch: Patch) -> None:
    """What a batch has to say is sent before its states are in the changelog."""

    async def process(self: Any, shares: Shares, fate: Fate = Fate.FOLDED) -> list[Fetched]:
        works = [await self._fold(owned, records, fate) for owned, records in shares]
        works = [work for work in works if work.records]
        await self._sender.send([output for work in works for output in work.outputs])
        await self._changelog.append([(work.owned, work.entries) for work in works])
        for work in works:
            self._put(work)
        return [record for work in works for record in work.records]

    patch.setattr(Engine, "_process", process)


def lawful_owner(engine: Any, partition: int) -> Any:
    """Who commits for the partition, in the world of the storm; None in others, whose commits no engine sees."""
    world = getattr(engine._sender._producer, "_world", None)
    return None if world is None else world.lawful.get(partition)


@planted("R2", "storm")
def acknowledged_before_outputs(patch: Patch) -> None:
    """What is finished is told before the outputs are sent: a commit may overtake them."""

    async def process(self: Any, shares: Shares, fate: Fate = Fate.FOLDED) -> list[Fetched]:
        works = [await self._fold(owned, records, fate) for owned, records in shares]
        works = [work for work in works if work.records]
        await self._changelog.append([(work.owned, work.entries) for work in works])
        for work in works:
            process = lawful_owner(self, work.owned.partition)
            if process is not None and process.engine is self:
                process.world.committed[work.owned.partition] = work.records[-1].offset + 1
        await self._sender.send([output for work in works for output in work.outputs])
        for work in works:
            self._put(work)
        return [record for work in works for record in work.records]

    patch.setattr(Engine, "_process", process)


@planted("R2", "unit", "storm", "simulation")
def outbox_overwritten(patch: Patch) -> None:
    """A later fold drops the decisions that were not sent yet from the outbox."""

    def kept(self: Fold, before: Execution, begins: bool) -> tuple[OutboxEntry, ...]:
        return ()

    patch.setattr(Fold, "_kept", kept)


@planted("S6", "storm", "simulation")
def history_not_in_the_outbox(patch: Patch) -> None:
    """A record that is read again sends its steps and replies again, but not its history."""
    whole = Fold._send_again

    def send_again(self: Any, record: Fetched, state: Execution) -> bool:
        outputs = self.outputs.records
        before = len(outputs)
        found = whole(self, record, state)
        outputs[before:] = [output for output in outputs[before:] if output.record.topic != T.history]
        return found

    patch.setattr(Fold, "_send_again", send_again)


@planted("R2", "unit", "storm", "simulation")
def replay_sends_nothing(patch: Patch) -> None:
    """A record that is read again is passed over: its outputs may never have been sent."""
    patch.setattr(Fold, "_send_again", lambda self, record, state: True)


@planted("R1", "unit", "storm", "simulation")
def last_record_wins(patch: Patch) -> None:
    """Recovery keeps the last record of a key, not that with the highest (src, epoch)."""

    def load(self: Any, record: Fetched) -> None:
        self.next_changelog_offset = max(self.next_changelog_offset, record.offset + 1)
        entry = entry_of(record)
        self.highest_epoch = max(self.highest_epoch, entry.epoch)
        self._entries[record.key] = entry

    patch.setattr(PartitionTable, "load", load)


@planted("R1", "storm")
def no_gap_check(patch: Patch) -> None:
    """An owner does not look at what others wrote into its changelog."""

    async def settle(self: Any, owned: OwnedPartition, written: Any, mine: list[int], end: int) -> None:
        owned.table.next_changelog_offset = max(owned.table.next_changelog_offset, end)

    patch.setattr(Changelog, "_settle", settle)


@planted("S11", "storm", "simulation")
def below_the_watermark_nothing(patch: Patch) -> None:
    """A record below the recovered watermark makes no dead letter, sent or not (protocol.md a3)."""
    """protocol.md a3."""
    whole = Fold.record

    def record(self: Any, record: Fetched) -> None:
        whole(self, record)
        if record.offset <= self._frame.recovered_watermark:
            found = self.outputs.records
            found[:] = [output for output in found if output.record.topic != T.dead_letters]

    patch.setattr(Fold, "record", record)


@planted("R2", "storm")
def tombstones_at_once(patch: Patch) -> None:
    """protocol.md c7: what a finished run needs for its last outputs is removed before they are sent."""
    whole = Overlay.writes

    def writes(self: Any) -> Any:
        yield from whole(self)
        for state in self.changed.values():
            if state.forgotten:
                yield state.id.encode(), None, state.src, False

    patch.setattr(Overlay, "writes", writes)


@planted("R2", "storm")
def payloads_removed_unsent(patch: Patch) -> None:
    """Inputs and outputs of a run that is over are removed before its last outputs were sent."""
    whole = housekeeping.tombstones

    def tombstones(owned: OwnedPartition) -> Any:
        owned.sent_through, before = 10**9, owned.sent_through
        try:
            return whole(owned)
        finally:
            owned.sent_through = before

    patch.setattr(engines, "tombstones", tombstones)


@planted("R2", "storm", "simulation")
def starts_at_the_watermark(patch: Patch) -> None:
    """The committed position is left out of rule 1 (v): what was folded counts as sent."""
    whole = claiming.claim

    async def claim(*given: Any) -> Any:
        owned, _ = await whole(*given)
        return owned, owned.watermark.offset + 1

    patch.setattr(engines, "claim", claim)


@planted("R1", "storm")
def starts_at_the_commit(patch: Patch) -> None:
    """The watermark is left out of rule 1 (v), and the sent mark is the watermark."""
    whole = claiming.claim

    async def claim(*given: Any) -> Any:
        owned, start = await whole(*given)
        owned.sent_through = owned.watermark.offset
        return owned, start

    patch.setattr(engines, "claim", claim)


@planted("S3", "storm")
def forgets_by_the_batch(patch: Patch) -> None:
    """Rule 0: a Forget that overlooks what its own batch finished."""

    def forget(self: Any, record: Fetched, message: Any) -> None:
        bound = min(message.before, record.timestamp)
        for execution in self._frame.forgettable(bound):
            state = self._overlay.state(execution)
            if state is None or record.offset <= state.src or state.forget_at is None or state.forget_at > bound:
                continue
            after = lineage.forget(state)._replace(src=record.offset, outbox=self._kept(state, begins=False))
            self._overlay.put(after)

    patch.setattr(Fold, "_forget", forget)


@planted("R1", "storm")
def inputs_without_a_state_removed(patch: Patch) -> None:
    """An input is removed whose state is not there yet: its batch did not land whole and is folded again."""
    whole = OwnedPartition.index_all

    def index_all(self: OwnedPartition) -> None:
        mark, self.watermark = self.watermark, self.watermark._replace(offset=10**9)
        whole(self)
        self.watermark = mark

    patch.setattr(OwnedPartition, "index_all", index_all)


@planted("S1", "storm")
def results_not_held_for_a_retry(patch: Patch) -> None:
    """A root that is forgotten in its own time, whoever refers to its results."""

    def decide_forget(state: Execution, at: int) -> e.CoreEvent:
        ended = [retry for retry in state.retries if not retry.is_open]
        return e.FamilyForgotten([[retry_id(state.id, retry.number), retry.run] for retry in ended])

    patch.setattr(lineage, "CHECK_EVERY_MS", 1_500)
    patch.setattr(lineage, "decide_forget", decide_forget)


@planted("R2", "storm")
def forgets_say_it_once(patch: Patch) -> None:
    """A Forget read again sends nothing of what it made a root say."""
    whole = OwnedPartition.index_all

    def index_all(self: OwnedPartition) -> None:
        whole(self)
        self.owing.clear()

    patch.setattr(OwnedPartition, "index_all", index_all)


@planted("L1", "storm")
def nobody_is_checked(patch: Patch) -> None:
    """A retry that is asked for its end says nothing."""
    patch.setattr(lineage, "decide_check", lambda state, message: [])


@planted("L1", "storm")
def lost_starts_are_waited_for(patch: Patch) -> None:
    """A retry that never began is asked, and nothing comes of it."""
    whole = Fold._of_a_family

    def of_a_family(self: Fold, record: Fetched, state: Execution | None, message: Any) -> None:
        if state is not None or not isinstance(message, m.RetryCheck):
            whole(self, record, state, message)

    patch.setattr(Fold, "_of_a_family", of_a_family)


@planted("S3", "storm")
def replaced_runs_keep_their_input(patch: Patch) -> None:
    """What a run leaves behind that was begun anew in the batch that forgot it."""
    whole = Overlay.put

    def put(self: Overlay, state: Execution) -> None:
        whole(self, state)
        self.replaced.clear()
        self._undo = [undo for undo in self._undo if undo != self.replaced.pop]

    patch.setattr(Overlay, "put", put)
