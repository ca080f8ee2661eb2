"""The commit protocol under random faults, and that the storm would notice each rule's absence.

`storm(seed)` is one run; a seed that fails fails again. The mutants are failing variants of the model check; those
that chance finds too seldom (no repair, (epoch, src) for (src, epoch)) have tests of their own in tests/unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from flowpilot.core import events as e
from flowpilot.core import lineage, notices
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
from flowpilot.ports.log import Fetched
from flowpilot_schemas import messages as m
from flowpilot_schemas.ids import retry_id
from tests.property.storm import Storm, storm
from tests.unit.engine_world import T, quiet  # noqa: F401

SEEDS = 300
_AT_ONCE = 20
_MUTANT_SEEDS = 250


@pytest.fixture(autouse=True)
def no_record_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The storm crashes more often than three times: here no record is the reason."""
    monkeypatch.setattr(engines, "CRASHES", 10**9)
    monkeypatch.setattr(notices, "SHORTEST_FAMILY_MS", 0)


@pytest.mark.parametrize("first", range(0, SEEDS, _AT_ONCE))
def test_whatever_happens_the_log_alone_decides(first: int) -> None:
    wrong = {seed: found[:5] for seed in range(first, first + _AT_ONCE) if (found := storm(seed))}
    assert not wrong


def test_the_storm_reaches_what_it_is_for() -> None:
    """Of some seeds: replays, repairs, forgetting, new runs, refusals and dead letters do occur."""
    kinds: set[str] = set()
    taken: set[str] = set()
    goes: set[bytes] = set()
    repeated = epochs = tombstones = 0
    for seed in range(8):
        run = Storm(seed)
        run.run()
        history = run.world.values(T.history)
        kinds |= {value["type"] for value in history}
        places = [(value["execution"], value["run"], value["seq"]) for value in history]
        repeated += len(places) - len(set(places))
        changelog = run.world.log.records(T.changelog)
        epochs = max(epochs, *(entry_of(record).epoch for record in changelog))
        tombstones += sum(record.value is None for record in changelog)
        taken |= {value["execution"] for value in history if value.get("taken")}
        goes |= {record.value or b"" for record in run.world.log.records(T.events)}
    assert repeated > 20
    assert epochs > 5
    assert tombstones > 20
    assert len(taken) > 2
    for kind in (b'"retry.ended"', b'"retry.forget"'):
        assert any(kind in value for value in goes)
    assert kinds >= {
        *("ExecutionStarted", "ExecutionCompleted", "ExecutionFailed", "ExecutionCancelled", "StartRefused"),
        *("StepReady", "StepStarted", "StepRetryScheduled", "StepTimedOut", "StepSkipped", "DispatchFailed"),
        *("StartDeduplicated", "KeyConflict", "CompletionIgnored", "RetryRefused"),
    }


# -- mutants --------------------------------------------------------------------------------------------------

Patch = pytest.MonkeyPatch
Shares = Sequence[tuple[OwnedPartition, list[Fetched]]]


def outputs_before_state(patch: Patch) -> None:
    async def process(self: Any, shares: Shares, *, skip: bool = False) -> list[Fetched]:
        works = [await self._fold(owned, [] if skip else records, records) for owned, records in shares]
        works = [work for work in works if work.records]
        await self._send([output for work in works for output in work.outputs])
        await self._changelog.append([(work.owned, work.entries) for work in works])
        for work in works:
            self._put(work)
        return [record for work in works for record in work.records]

    patch.setattr(Engine, "_process", process)


def acknowledged_before_outputs(patch: Patch) -> None:
    """What is finished is told before the outputs are sent: a commit may overtake them."""

    async def process(self: Any, shares: Shares, *, skip: bool = False) -> list[Fetched]:
        works = [await self._fold(owned, [] if skip else records, records) for owned, records in shares]
        works = [work for work in works if work.records]
        await self._changelog.append([(work.owned, work.entries) for work in works])
        owner = self._producer._world.lawful
        for work in works:
            process = owner.get(work.owned.partition)
            if process is not None and process.engine is self:
                process.world.committed[work.owned.partition] = work.records[-1].offset + 1
        await self._send([output for work in works for output in work.outputs])
        for work in works:
            self._put(work)
        return [record for work in works for record in work.records]

    patch.setattr(Engine, "_process", process)


def outbox_overwritten(patch: Patch) -> None:
    def kept(self: Fold, before: Execution, begins: bool) -> tuple[OutboxEntry, ...]:
        return ()

    patch.setattr(Fold, "_kept", kept)


def history_not_in_the_outbox(patch: Patch) -> None:
    whole = Fold._send_again

    def send_again(self: Any, record: Fetched, state: Execution) -> bool:
        outputs = self.outputs.records
        before = len(outputs)
        found = whole(self, record, state)
        outputs[before:] = [output for output in outputs[before:] if output.record.topic != T.history]
        return found

    patch.setattr(Fold, "_send_again", send_again)


def replay_sends_nothing(patch: Patch) -> None:
    patch.setattr(Fold, "_send_again", lambda self, record, state: True)


def last_record_wins(patch: Patch) -> None:
    def load(self: Any, record: Fetched) -> None:
        self.next_changelog_offset = max(self.next_changelog_offset, record.offset + 1)
        entry = entry_of(record)
        self.highest_epoch = max(self.highest_epoch, entry.epoch)
        self._entries[record.key] = entry

    patch.setattr(PartitionTable, "load", load)


def no_gap_check(patch: Patch) -> None:
    async def settle(self: Any, owned: OwnedPartition, written: Any, mine: list[int], end: int) -> None:
        owned.table.next_changelog_offset = max(owned.table.next_changelog_offset, end)

    patch.setattr(Changelog, "_settle", settle)


def below_the_watermark_nothing(patch: Patch) -> None:
    """protocol.md a3."""
    whole = Fold.record

    def record(self: Any, record: Fetched) -> None:
        whole(self, record)
        if record.offset <= self._frame.recovered_watermark:
            found = self.outputs.records
            found[:] = [output for output in found if output.record.topic != T.dead_letters]

    patch.setattr(Fold, "record", record)


def tombstones_at_once(patch: Patch) -> None:
    """protocol.md c7: what a finished run needs for its last outputs is removed before they are sent."""
    whole = Overlay.writes

    def writes(self: Any) -> Any:
        yield from whole(self)
        for state in self.changed.values():
            if state.forgotten:
                yield state.id.encode(), None, state.src

    patch.setattr(Overlay, "writes", writes)


def payloads_removed_unsent(patch: Patch) -> None:
    whole = housekeeping.tombstones

    def tombstones(owned: OwnedPartition) -> Any:
        owned.sent_through, before = 10**9, owned.sent_through
        try:
            return whole(owned)
        finally:
            owned.sent_through = before

    patch.setattr(engines, "tombstones", tombstones)


def starts_at_the_watermark(patch: Patch) -> None:
    """The committed position is left out of rule 1 (v): what was folded counts as sent."""
    whole = claiming.claim

    async def claim(*given: Any) -> Any:
        owned, _ = await whole(*given)
        return owned, owned.watermark.offset + 1

    patch.setattr(engines, "claim", claim)


def starts_at_the_commit(patch: Patch) -> None:
    """The watermark is left out of rule 1 (v), and the sent mark is the watermark."""
    whole = claiming.claim

    async def claim(*given: Any) -> Any:
        owned, start = await whole(*given)
        owned.sent_through = owned.watermark.offset
        return owned, start

    patch.setattr(engines, "claim", claim)


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


def inputs_without_a_state_removed(patch: Patch) -> None:
    whole = OwnedPartition.index_all

    def index_all(self: OwnedPartition) -> None:
        mark, self.watermark = self.watermark, self.watermark._replace(offset=10**9)
        whole(self)
        self.watermark = mark

    patch.setattr(OwnedPartition, "index_all", index_all)


def results_not_held_for_a_retry(patch: Patch) -> None:
    """A root that is forgotten in its own time, whoever refers to its results."""

    def decide_forget(state: Execution, at: int) -> e.CoreEvent:
        ended = [retry for retry in state.retries if not retry.is_open]
        return e.FamilyForgotten([[retry_id(state.id, retry.number), retry.run] for retry in ended])

    patch.setattr(lineage, "CHECK_EVERY_MS", 1_500)
    patch.setattr(lineage, "decide_forget", decide_forget)


def forgets_say_it_once(patch: Patch) -> None:
    """A Forget read again sends nothing of what it made a root say."""
    whole = OwnedPartition.index_all

    def index_all(self: OwnedPartition) -> None:
        whole(self)
        self.owing.clear()

    patch.setattr(OwnedPartition, "index_all", index_all)


def nobody_is_checked(patch: Patch) -> None:
    """A retry that is asked for its end says nothing."""
    patch.setattr(lineage, "decide_check", lambda state, message: [])


def lost_starts_are_waited_for(patch: Patch) -> None:
    """A retry that never began is asked, and nothing comes of it."""
    whole = Fold._of_a_family

    def of_a_family(self: Fold, record: Fetched, state: Execution | None, message: Any) -> None:
        if state is not None or not isinstance(message, m.RetryCheck):
            whole(self, record, state, message)

    patch.setattr(Fold, "_of_a_family", of_a_family)


def replaced_runs_keep_their_input(patch: Patch) -> None:
    """What a run leaves behind that was begun anew in the batch that forgot it."""
    whole = Overlay.put

    def put(self: Overlay, state: Execution) -> None:
        whole(self, state)
        self.replaced.clear()
        self._undo = [undo for undo in self._undo if undo != self.replaced.pop]

    patch.setattr(Overlay, "put", put)


MUTANTS: list[Callable[[Patch], None]] = [
    outputs_before_state,
    acknowledged_before_outputs,
    outbox_overwritten,
    history_not_in_the_outbox,
    replay_sends_nothing,
    last_record_wins,
    no_gap_check,
    below_the_watermark_nothing,
    tombstones_at_once,
    payloads_removed_unsent,
    starts_at_the_watermark,
    starts_at_the_commit,
    forgets_by_the_batch,
    inputs_without_a_state_removed,
    results_not_held_for_a_retry,
    forgets_say_it_once,
    nobody_is_checked,
    lost_starts_are_waited_for,
    replaced_runs_keep_their_input,
]


def seeds_needed(most: int = _MUTANT_SEEDS) -> int | None:
    """How many seeds it takes until a storm goes wrong; None if none of them does."""
    return next((seed + 1 for seed in range(most) if storm(seed)), None)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_storm_finds_a_rule_that_is_left_out(mutant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    assert seeds_needed() is not None
