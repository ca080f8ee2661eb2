"""`flowpilot setup`: topics, tables and the permitted rule set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flowpilot.adapters.kafka.admin import KafkaAdmin, TopicOutcome
from flowpilot.app.database import address, prepare_database
from flowpilot.app.rule_sets import RaiseOutcome, raise_rules
from flowpilot.app.topics import registered_queues
from flowpilot.settings import Settings


class SetupOutcome(NamedTuple):
    """What was there and what was made."""

    topics: list[TopicOutcome]
    database: str
    database_created: bool
    warnings: list[str]
    # None: this release has but the first rule set.
    rules: RaiseOutcome | None = None


def setup(settings: Settings, queues: Sequence[str] = (), *, force_rules: bool = False) -> SetupOutcome:
    """Make what is missing: the topics, those of the queues of registered workflows and `queues`; the database
    and its tables; and permit the rule sets of this release if all engines have them, if the namespace is new, or
    with `force_rules`. Idempotent. Kafka comes first, because a changed partition count and an impossible
    replication are refused there.

    Raises `AdminError`, `DatabaseUnreachable`, `DatabaseRefused`, `LogUnavailable`.
    """
    admin = KafkaAdmin(settings)
    topics = admin.setup()
    used = dict.fromkeys([*registered_queues(settings, admin), *queues])
    topics += admin.ensure_step_topics(used, replication=True)
    is_new = any(topic.topic == settings.topics.events and topic.outcome == "created" for topic in topics)
    created = prepare_database(settings)
    rules = raise_rules(settings, force=is_new or force_rules)
    return SetupOutcome(topics, address(settings), created, admin.advice(), rules)
