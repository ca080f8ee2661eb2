"""Defects of rule sets: raises, and starts judged by them (tests/model has the same ones as traces)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from flowpilot.core.rule_sets import Raise, RuleSets
from flowpilot.engine import claim, fold
from flowpilot.engine.errors import PartitionStopped
from flowpilot.engine.keys import RULES_KEY
from flowpilot.engine.overlay import Overlay
from flowpilot.engine.rule_sets import fold_raise
from tests.mutants.catalogue import Catalogue, Patch

planted = Catalogue("engine")


@planted("S3", "unit")
def judged_by_the_latest_raise(patch: Patch) -> None:
    """A start is judged by all raises that its owner knows, those behind it too: a replay decides otherwise."""
    patch.setattr(RuleSets, "permitted_at", lambda self, offset: self.highest)


@planted("S3", "unit", "releases")
def only_the_newest_raise_is_kept(patch: Patch) -> None:
    """A raise takes the place of the one before it, of which what lies between is judged."""

    def decode(value: bytes | None) -> RuleSets:
        found = orjson.loads(value) if value is not None else {"src": -1, "raises": []}
        return RuleSets(found["src"], tuple(Raise(*entry) for entry in found["raises"]))

    patch.setattr(RuleSets, "raised", lambda self, offset, rules: RuleSets(offset, (Raise(offset, rules),)))
    patch.setattr(RuleSets, "decode", staticmethod(decode))


@planted("S3", "unit", "releases")
def a_raise_is_not_written(patch: Patch) -> None:
    """What is permitted is known to the batch alone that has the raise."""
    whole = Overlay.writes

    def writes(self: Any) -> Iterator[Any]:
        return (write for write in whole(self) if write[0] != RULES_KEY)

    patch.setattr(Overlay, "writes", writes)


@planted("S3", "unit", "releases")
def an_unknown_permitted_set_is_ignored(patch: Patch) -> None:
    """An engine goes on by its own rules where others are permitted."""

    def pass_over(record: Any, message: Any, *given: Any) -> None:
        if message.rules <= given[-1]:
            fold_raise(record, message, *given)

    patch.setattr(fold, "fold_raise", pass_over)
    patch.setattr(claim, "check_rule_sets", lambda table, known: None)


@planted("S3", "unit", "releases")
def an_unknown_set_in_the_table_is_overlooked(patch: Patch) -> None:
    """An engine takes over a partition that permits what it does not have."""
    patch.setattr(claim, "check_rule_sets", lambda table, known: None)


@planted("S1", "unit")
def a_refused_start_is_not_recorded(patch: Patch) -> None:
    """A start above the permitted set leaves neither a state nor a word."""
    whole = fold.begin

    def begin(*given: Any) -> Any:
        decision = whole(*given)
        refused = any(getattr(event, "reason", None) == "rules_not_permitted" for event in decision.events)
        return decision._replace(events=[]) if refused else decision

    patch.setattr(fold, "begin", begin)


@planted("S11", "unit", "releases")
def raises_may_skip_sets(patch: Patch) -> None:
    """A raise to any number is taken: a forged one stops the partition under every release."""

    def jump(record: Any, message: Any, *given: Any) -> None:
        if message.rules > given[-1]:
            raise PartitionStopped(f"partition {record.partition} permits rule set {message.rules}")
        fold_raise(record, message, *given)

    patch.setattr(fold, "fold_raise", jump)
