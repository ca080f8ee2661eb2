"""The engine: the commit protocol over ports. State first, outbox in the state, acknowledge last.

`process` reads in the order of the protocol: fold (rule 2), state (3) and gap check (4), outputs (5), put (6).
None of `assign`, `process` and `tick` may run while another does. Whatever they raise but `PartitionStopped`,
which they handle, is a doubt: the process has to end without acknowledging anything.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from flowpilot.core.payloads import is_over
from flowpilot.engine import trial
from flowpilot.engine.changelog import Changelog
from flowpilot.engine.claim import EventsTopic, claim
from flowpilot.engine.errors import DefinitionNeeded, DefinitionsUnread, EngineHalt, PartitionStopped
from flowpilot.engine.fold import Fold, Frame
from flowpilot.engine.housekeeping import due_events, next_due, tombstones
from flowpilot.engine.observed import Observed
from flowpilot.engine.outputs import Output, Outputs
from flowpilot.engine.overlay import Overlay
from flowpilot.engine.owned import OwnedPartition, Trial
from flowpilot.engine.sender import Sender
from flowpilot.engine.table import WATERMARK_KEY, Entry, PartitionTable
from flowpilot.engine.trial import Fate
from flowpilot.ports.log import Fetched, Producer, Reader
from flowpilot.ports.meter import OFF, Meter
from flowpilot_schemas import messages as m
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.mac import NO_SECRETS, StepSecrets

_IDLE_CHECK_MS = 3_000

log = structlog.get_logger()


class DefinitionSource(Protocol):
    """Where definitions come from (`flowpilot.ports.definitions.Definitions` has it)."""

    async def refresh(self) -> None:
        """Read to the end of what there is."""
        ...

    def get(self, definition_hash: str) -> WorkflowDefinition | None:
        """The definition of that hash, None if it is not registered."""
        ...


@dataclass
class _Work:
    """One partition's share of a batch."""

    owned: OwnedPartition
    records: list[Fetched]
    overlay: Overlay
    outputs: list[Output]
    entries: dict[bytes, Entry]
    ignored: Counter[str]


class Engine:
    """Owns partitions of the events topic. `clock` is this machine's time in ms: it only wakes timers.

    `rules`: the highest rule set that this release has. `secrets` sign what it tells workers.
    """

    def __init__(
        self,
        events: EventsTopic,
        producer: Producer,
        reader: Reader,
        definitions: DefinitionSource,
        clock: Callable[[], int],
        nonce: Callable[[], str] = lambda: uuid.uuid4().hex,
        meter: Meter = OFF,
        rules: int | None = None,
        secrets: StepSecrets = NO_SECRETS,
    ) -> None:
        self._events = events
        self._reader = reader
        self._definitions = definitions
        self._clock = clock
        self._nonce = nonce
        self._rules = m.RULES if rules is None else rules
        self._observed = Observed(meter)
        self._changelog = Changelog(events.topics.changelog, producer, reader)
        self._sender = Sender(events, producer, secrets)
        self._tables: dict[int, PartitionTable] = {}
        self._owned: dict[int, OwnedPartition] = {}
        self._decoded: dict[str, WorkflowDefinition] = {}
        self._missing: set[str] = set()
        self.stopped: dict[int, str] = {}
        self._is_cut_short = False

    def table(self, partition: int) -> PartitionTable:
        """The partition's table: empty and to be loaded from the changelog if it was not kept."""
        return self._tables.setdefault(partition, PartitionTable(partition))

    def revoke(self, partition: int) -> None:
        """The partition is another's: drop everything of it."""
        self._tables.pop(partition, None)
        self._owned.pop(partition, None)
        self.stopped.pop(partition, None)
        self._observed.gone(partition)

    async def assign(self, partition: int, committed: int | None) -> int:
        """Claim a partition whose table is recovered; the offset to read on from (rule 1)."""
        table = self.table(partition)
        if table.passed_over:
            table = await self._read_again(partition)
        self._owned.pop(partition, None)
        self.stopped.pop(partition, None)
        try:
            owned, start = await claim(
                *(table, self._events, self._changelog, self._reader),
                *(committed, self._nonce(), self._clock(), self._rules),
            )
        except PartitionStopped as stop:
            self._stop(partition, stop)
            return committed or 0
        self._owned[partition] = owned
        self._observed.claimed(owned)
        return start

    async def _read_again(self, partition: int) -> PartitionTable:
        self._tables.pop(partition)
        table = self.table(partition)
        low, end = await self._reader.bounds(self._changelog.topic, partition)
        for record in await self._changelog.read(partition, low, end):
            table.load(record)
        table.next_changelog_offset = end
        return table

    def cut_short(self) -> None:
        """Let the `process` under way return soon: what is taken one by one is left to the next owner."""
        self._is_cut_short = True

    async def process(self, batch: Sequence[Fetched]) -> list[Fetched]:
        """Process records of one or more partitions; those that may be acknowledged now, in their order."""
        self._is_cut_short = False
        shares: dict[int, list[Fetched]] = {}
        for record in batch:
            if record.partition in self._owned:
                shares.setdefault(record.partition, []).append(record)
        done: list[Fetched] = []
        together: list[tuple[OwnedPartition, list[Fetched]]] = []
        for partition, records in shares.items():
            owned = self._owned.get(partition)
            if owned is None:
                continue  # revoked while another was on trial
            if records[0].offset <= owned.trial_until:
                done += await self._process_on_trial(owned, records)
            else:
                together.append((owned, records))
        return done + await self._process(together)

    async def _process_on_trial(self, owned: OwnedPartition, records: list[Fetched]) -> list[Fetched]:
        """The first records after a claim (`flowpilot.engine.trial`)."""
        done: list[Fetched] = []
        for share in trial.shares(owned, records):
            in_hand = Trial(share.records[0].offset, share.records[-1].offset)
            await self._write_trial(owned, in_hand, bars=share.crashes >= trial.CRASHES)
            fate = trial.fate(owned, share)
            if fate is not Fate.FOLDED:
                await self._tell_of_crashes(share.records[0])
            try:
                done += await self._process([(owned, share.records)], fate)
            except DefinitionsUnread:
                await self._write_trial(owned)  # the records did not end the process
                raise
            if self._owned.get(owned.partition) is not owned:
                break
            if self._is_cut_short:
                break  # owners that take it from each other before the batch's end would never come on
        return done

    async def _write_trial(self, owned: OwnedPartition, *trials: Trial, bars: bool = False) -> None:
        """Records are in hand, or (none) not any more. The batch's own watermark says that, too.

        `bars`: one may be given up. Before that an earlier owner's watermark, over what is not folded here, goes.
        """
        watermark = owned.watermark._replace(trials=(*owned.watermark.trials, *trials))
        await self._changelog.append([(owned, {WATERMARK_KEY: watermark.entry(owned.epoch)._replace(bars=bars)})])

    async def _tell_of_crashes(self, record: Fetched) -> None:
        """Before it is passed over: whoever comes next may take for folded what was passed over."""
        outputs = Outputs(self._events.topics)
        detail = f"{trial.CRASHES} processes ended while this record was in hand"
        outputs.dead_letter(record, "engine_crash", detail)
        await self._sender.send(outputs.records)

    async def _process(
        self, shares: Sequence[tuple[OwnedPartition, list[Fetched]]], fate: Fate = Fate.FOLDED
    ) -> list[Fetched]:
        works = [await self._fold(owned, records, fate) for owned, records in shares]
        await self._changelog.append([(work.owned, work.entries) for work in works])
        works = [work for work in works if work.records]
        await self._sender.send([output for work in works for output in work.outputs])
        for work in works:
            self._put(work)
            self._observed.batch(work.owned, work.records, work.overlay.changed.values(), self._clock())
            self._observed.ignored(work.ignored)
        return [record for work in works for record in work.records]

    async def _fold(self, owned: OwnedPartition, records: list[Fetched], fate: Fate) -> _Work:
        """Fold `records`, or pass over them; of a partition that stops on the way, those before it does."""
        overlay = Overlay(owned.table, self._decoded)
        frame = Frame(
            owned.partition,
            self._events.partitions,
            self._events.topics,
            overlay,
            owned.recovered_watermark,
            owned.sent_through,
            self._known,
            lambda bound: owned.forgets.reached(bound, len(owned.forgets)),
            lambda offset: owned.owing.get(offset, ()),
            self._rules,
        )
        fold = Fold(frame)
        for position, record in enumerate(records):
            try:
                if fate is Fate.FOLDED:
                    await self._fold_one(fold, record)
                else:
                    fold.pass_over(record, unread=fate is Fate.LEFT_UNREAD)
            except PartitionStopped as stop:
                self._stop(owned.partition, stop)
                records = records[:position]
                break
        entries = {key: Entry(value, src, owned.epoch, bars) for key, value, src, bars in overlay.writes()}
        if records:
            reached = max(owned.watermark.offset, records[-1].offset)
            owned.watermark = owned.watermark._replace(offset=reached)
        # Also if it stays where it was: no process has ended over what is in hand.
        entries[WATERMARK_KEY] = owned.watermark.entry(owned.epoch)._replace(bars=fate is not Fate.FOLDED)
        return _Work(owned, records, overlay, fold.outputs.records, entries, fold.ignored)

    async def _fold_one(self, fold: Fold, record: Fetched) -> None:
        try:
            fold.record(record)
        except DefinitionNeeded as needed:
            try:
                await self._definitions.refresh()
            except Exception as error:
                raise DefinitionsUnread(f"the definitions topic cannot be read ({error})") from error
            if self._definitions.get(needed.definition_hash) is None:
                self._missing.add(needed.definition_hash)
            try:
                await self._fold_one(fold, record)
            finally:
                self._missing.clear()
        except (PartitionStopped, EngineHalt):
            raise
        except Exception as error:
            where = {"partition": record.partition, "offset": record.offset}
            log.exception("the fold met a defect; the execution stands still", **where)
            fold.fault(record, f"{type(error).__name__}: {error}")

    def _known(self, definition_hash: str) -> WorkflowDefinition | None:
        found = self._definitions.get(definition_hash)
        if found is None and definition_hash not in self._missing:
            raise DefinitionNeeded(definition_hash)
        return found

    def _put(self, work: _Work) -> None:
        """Everything is acknowledged: the overlay becomes the table (rule 6)."""
        owned = work.owned
        owned.apply(work.entries)
        owned.sent_through = max(owned.sent_through, work.records[-1].offset)
        for state in work.overlay.changed.values():
            owned.index(state)
        over = [state for state in work.overlay.changed.values() if is_over(state)]
        for state in (*work.overlay.replaced, *over):
            definition = work.overlay.definition(state.definition)
            if definition is not None:
                owned.remove_later(state, definition)

    def _stop(self, partition: int, stop: PartitionStopped) -> None:
        self._owned.pop(partition, None)
        self.stopped[partition] = str(stop)
        self._observed.stopped(partition)
        log.error("partition stopped", partition=partition, reason=str(stop))

    async def tick(self) -> None:
        """Between batches: fire timers, ask to forget, remove what is over, look for foreign writers."""
        now = self._clock()
        events = [event for owned in self._owned.values() for event in due_events(owned, self._events, now)]
        if events:
            await self._sender.send([Output(event) for event in events])
        removed = [(owned, tombstones(owned)) for owned in self._owned.values()]
        removed = [(owned, entries) for owned, entries in removed if entries]
        if removed:
            await self._changelog.append(removed)
            for owned, entries in removed:
                owned.apply(entries)
        for owned in list(self._owned.values()):
            if now - owned.checked_at >= _IDLE_CHECK_MS:
                await self._changelog.check_end(owned)
                owned.checked_at = owned.table.claimed_at = now

    def next_due(self) -> int | None:
        """The time by `clock` at which `tick` has a timer to fire or something to forget; None: nothing waits."""
        times = [next_due(owned) for owned in self._owned.values()]
        return min([due for due in times if due is not None], default=None)

    def live(self) -> Mapping[int, int]:
        """Entries in the table of each owned partition."""
        return {partition: len(owned.table) for partition, owned in self._owned.items()}
