"""Raising the permitted rule set, when all engines have it.

The raise is a record in each partition of the events topic: an engine that does not have the set stops there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import NamedTuple

from flowpilot.adapters.kafka.admin import KafkaAdmin
from flowpilot.adapters.kafka.config import producer_properties
from flowpilot.adapters.kafka.groups import KafkaGroups
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.app.members import look
from flowpilot.core.rule_sets import FIRST
from flowpilot.ports.log import LogUnavailable, Record
from flowpilot.ports.members import LiveMembers
from flowpilot.settings import Settings
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import encode_message

KEY = b"rules"


class RaiseOutcome(NamedTuple):
    """Whether the rule sets up to `rules` are permitted now; if not, `detail` is what stands against it."""

    rules: int
    raised: bool
    detail: str


def raise_rules(settings: Settings, *, force: bool) -> RaiseOutcome | None:
    """Permit what this release has; None if that is the first rule set alone, which always is.

    It is raised if every engine process of the group announces that it has the set; with `force` unseen: in a
    new namespace, or where it is known that no other release will run. A raise that is there changes nothing.

    Raises `AdminError`, `LogUnavailable`.
    """
    if m.RULES == FIRST:
        return None
    if not force:
        live, _ = asyncio.run(look(settings))
        members = KafkaGroups(settings).members([settings.topics.app_id])[settings.topics.app_id]
        if detail := why_not(live, len(members), m.RULES):
            return RaiseOutcome(m.RULES, False, detail)
    partitions = KafkaAdmin(settings).partitions(settings.topics.events)
    asyncio.run(_write(settings, list(raises(settings.topics.events, partitions, m.RULES))))
    return RaiseOutcome(m.RULES, True, f"rule sets up to {m.RULES} are permitted")


def why_not(live: LiveMembers, members: int, rules: int) -> str | None:
    """What stands against a raise, and what to do; None if nothing does. `members`: of the engines' group."""
    if live.engines_know(rules) and members <= len(live.engines):
        return None
    older = [engine for engine in live.engines if engine.rules < rules]
    if not live.is_complete:
        reason = "the members topic has more records than are read, so not every engine is known"
    elif older:
        names = ", ".join(f"{engine.engine} (release {engine.release})" for engine in older[:3])
        more = f" and {len(older) - 3} more" if len(older) > 3 else ""
        reason = f"{names}{more} would stop: upgrade all engines, then run `flowpilot setup` again"
    elif members > len(live.engines):
        reason = (
            f"{members} engines are in the group and {len(live.engines)} of them announce which rule sets they "
            "have: upgrade the others, or wait for the end of their sessions, then run `flowpilot setup` again"
        )
    else:
        reason = (
            "no engine is live: start those of this release and run `flowpilot setup` again, or run it with "
            "--raise-rules if none of an earlier release will be started"
        )
    return f"rule set {rules} is not permitted yet: {reason}"


def raises(events: str, partitions: int, rules: int) -> Iterator[Record]:
    """The records that permit each set up to `rules`, one after another, in every partition."""
    for partition in range(partitions):
        for number in range(FIRST + 1, rules + 1):
            yield Record(events, KEY, encode_message(m.RulesPermitted(rules=number)), partition)


async def _write(settings: Settings, records: list[Record]) -> None:
    producer = KafkaProducer(producer_properties(settings))
    try:
        for delivery in await producer.send(records):
            if delivery.error is not None:
                raise LogUnavailable(
                    f"partition {delivery.partition} of {settings.topics.events} does not take the raise of the "
                    f"permitted rule set: {delivery.error}; run `flowpilot setup` again"
                )
    finally:
        producer.close()
