"""The raise of a partition's permitted rule set, and what stops an engine that does not have that set.

Starts are judged in `flowpilot.engine.starting`, requests for retries in `flowpilot.core.lineage`.
"""

from __future__ import annotations

from flowpilot.core.rule_sets import RuleSets
from flowpilot.engine.errors import PartitionStopped
from flowpilot.engine.keys import RULES_KEY
from flowpilot.engine.outputs import Outputs
from flowpilot.engine.overlay import Overlay
from flowpilot.engine.owned import unreadable
from flowpilot.engine.reading import read_or_none
from flowpilot.engine.table import PartitionTable
from flowpilot.ports.log import Fetched
from flowpilot_schemas import messages as m


def fold_raise(
    record: Fetched, message: m.RulesPermitted, overlay: Overlay, outputs: Outputs, recovered: int, known: int
) -> None:
    """Permit the next rule set from this record on. `known` is the highest that this release has.

    Sets are permitted one after another: a number out of nowhere is a dead letter, and what is permitted already
    changes nothing. Raises `PartitionStopped`.
    """
    held = overlay.rule_sets()
    before = held.permitted_at(record.offset)
    if message.rules > before + 1:
        detail = f"rule set {message.rules} does not follow {before}, the highest that is permitted here"
        outputs.dead_letter(record, "rules_skipped", detail)
    elif message.rules == before + 1 and record.offset > max(held.src, recovered if not held.raises else -1):
        if message.rules > known:
            raise _upgrade(record.partition, message.rules, record.offset, known)
        overlay.put_rule_sets(held.raised(record.offset, message.rules))


def check_rule_sets(table: PartitionTable, known: int) -> None:
    """An engine folds no partition that permits a set which it does not have. Raises `PartitionStopped`."""
    try:
        held = RuleSets.decode(table.get(RULES_KEY))
    except ValueError as error:
        raise unreadable(table.partition, RULES_KEY, error) from None
    if held.highest > known:
        last = held.raises[-1]
        raise _upgrade(table.partition, last.rules, last.offset, known)


def is_raise(record: Fetched) -> bool:
    """Whether the record permits a rule set. It reads the record."""
    return isinstance(read_or_none(record), m.RulesPermitted)


def _upgrade(partition: int, rules: int, offset: int, known: int) -> PartitionStopped:
    return PartitionStopped(
        f"partition {partition} permits rule set {rules} from offset {offset} on; this release has rule sets up "
        f"to {known}: upgrade the engine"
    )
