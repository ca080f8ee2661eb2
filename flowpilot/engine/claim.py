"""Taking a partition over (rule 1): check the log, claim it in the changelog, repair, find where to start."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from flowpilot.core.murmur2 import partition_of
from flowpilot.engine.changelog import Changelog
from flowpilot.engine.errors import EngineHalt, PartitionStopped
from flowpilot.engine.owned import OwnedPartition, Watermark, unreadable
from flowpilot.engine.rule_sets import check_rule_sets
from flowpilot.engine.table import WATERMARK_KEY, PartitionTable
from flowpilot.engine.trial import CRASHES
from flowpilot.ports.log import Reader
from flowpilot_schemas.ids import root_id
from flowpilot_schemas.topics import HOUR, Topics

_CLAIMS = 100
# What was in hand when the last process ended lies within a batch after the watermark.
_TRIAL_REACH = 500
# Each of a batch's records may end processes before anything of it is committed.
_TRIALS_KEPT = CRASHES * _TRIAL_REACH

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EventsTopic:
    """The events topic as it is now. `topic_id` (KIP-516) tells it from another one of the same name."""

    topics: Topics
    topic_id: str
    partitions: int

    def home(self, execution: str) -> int:
        """The partition of an execution's events."""
        return partition_of(root_id(execution).encode(), self.partitions)


async def claim(
    table: PartitionTable,
    events: EventsTopic,
    changelog: Changelog,
    reader: Reader,
    committed: int | None,
    nonce: str,
    now: int,
    rules: int,
) -> tuple[OwnedPartition, int]:
    """The partition as owned, and the offset of the events topic to read on from.

    `table` holds what recovery read of the changelog. Raises `PartitionStopped` for a log that is not the one
    the table was folded from or that permits a rule set above `rules`, `EngineHalt` if no claim succeeds.
    """
    low, end = await reader.bounds(events.topics.events, table.partition)
    _check_log(table, events, low, end)
    check_rule_sets(table, rules)
    _check_age(table, now)
    epoch = await _append_claim(table, changelog, events.topic_id, nonce)
    table.claimed_at = max(table.claimed_at, now)
    won = _watermark(table)
    # An earlier owner may have gone on until the claim: what it wrote was merged, and may be newer than `end`.
    low, end = await reader.bounds(events.topics.events, table.partition)
    _check_log(table, events, low, end)
    check_rule_sets(table, rules)
    await _repair(table, changelog, epoch)
    start = won.offset + 1 if committed is None else min(committed, won.offset + 1)
    if committed is None:
        start = min(start, low)
    elif won.offset + 1 < committed:
        log.error(
            "state is behind the committed offset; reading back",
            partition=table.partition,
            watermark=won.offset,
            committed=committed,
        )
    start = max(start, low)
    won = won._replace(trials=tuple([trial for trial in won.trials if trial.last >= start][-_TRIALS_KEPT:]))
    owned = OwnedPartition(
        table,
        epoch,
        won,
        recovered_watermark=won.offset,
        sent_through=(committed if committed is not None else start) - 1,
        trial_until=max([won.offset + _TRIAL_REACH, *(trial.last for trial in won.trials)]),
    )
    owned.sent_through = min(owned.sent_through, start - 1)
    table.put(WATERMARK_KEY, won.entry(epoch))
    owned.index_all()
    return owned, start


async def _append_claim(table: PartitionTable, changelog: Changelog, topic_id: str, nonce: str) -> int:
    for _ in range(_CLAIMS):
        epoch, expected = table.highest_epoch + 1, table.next_changelog_offset
        known = _watermark(table)
        mine = known._replace(nonce=nonce, topic_id=topic_id).entry(epoch)
        [offset] = await changelog.send(table.partition, {WATERMARK_KEY: mine})
        if offset == expected:
            table.highest_epoch, table.next_changelog_offset = epoch, offset + 1
            table.put(WATERMARK_KEY, mine)
            return epoch
        for record in await changelog.read(table.partition, expected, offset + 1):
            table.load(record)
        table.next_changelog_offset = offset + 1
    raise EngineHalt(f"partition {table.partition} could not be claimed: others keep writing to its changelog")


async def _repair(table: PartitionTable, changelog: Changelog, epoch: int) -> None:
    """Write again each winner that is not its key's last record."""
    again = {key: table.once_more(key, entry, epoch) for key, entry in table.overtaken()}
    if again:
        log.warning("late records in the changelog; repairing", partition=table.partition, keys=len(again))
        expected = table.next_changelog_offset
        offsets = await changelog.send(table.partition, again)
        if offsets[0] != expected or offsets[-1] - expected != len(offsets) - 1:
            raise EngineHalt(f"partition {table.partition}: somebody else wrote during the repair")
        table.next_changelog_offset = offsets[-1] + 1
        for key, entry in again.items():
            table.put(key, entry)
    table.settle()


def _watermark(table: PartitionTable) -> Watermark:
    try:
        return Watermark.of(table.get(WATERMARK_KEY))
    except ValueError as error:
        raise unreadable(table.partition, WATERMARK_KEY, error) from None


def _check_log(table: PartitionTable, events: EventsTopic, low: int, end: int) -> None:
    watermark = _watermark(table)
    where = f"partition {table.partition} of {events.topics.events}"
    if watermark.topic_id and watermark.topic_id != events.topic_id:
        raise PartitionStopped(
            f"{where} belongs to another topic than the table was folded from (it was deleted and created "
            "again): restore it, or remove the changelog topic as well to begin anew"
        )
    if watermark.offset + 1 > end:
        raise PartitionStopped(
            f"{where} ends at offset {end}, but events up to {watermark.offset} are folded: the log was "
            "truncated; restore it before the engine goes on"
        )
    if low > watermark.offset + 1:
        raise PartitionStopped(
            f"{where} begins at offset {low}, but events from {watermark.offset + 1} on are not folded yet: "
            "retention has removed them; raise it, and accept the loss by moving the changelog away"
        )


def _check_age(table: PartitionTable, now: int) -> None:
    """Late foreign records can be told from lawful ones only while compaction has left both (rule 8)."""
    if table.overtaken() and now - table.claimed_at > HOUR:
        raise PartitionStopped(
            f"partition {table.partition}: its changelog has records of an earlier owner behind the last claim, "
            "and no engine ran for longer than the compaction lag of 1 h, so what they overwrote may be gone: "
            "rebuild the partition from the events topic"
        )
