"""`flowpilot setup`: topics and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flowpilot.adapters.kafka.admin import KafkaAdmin, TopicOutcome
from flowpilot.app.database import address, prepare_database
from flowpilot.app.topics import registered_queues
from flowpilot.settings import Settings


class SetupOutcome(NamedTuple):
    """What was there and what was made."""

    topics: list[TopicOutcome]
    database: str
    database_created: bool
    warnings: list[str]


def setup(settings: Settings, queues: Sequence[str] = ()) -> SetupOutcome:
    """Make what is missing: the topics, those of the queues of registered workflows and `queues`; the database
    and its tables. Idempotent. Kafka comes first, because a changed partition count and an impossible
    replication are refused there.

    Raises `AdminError`, `DatabaseUnreachable`, `DatabaseRefused`, `LogUnavailable`.
    """
    admin = KafkaAdmin(settings)
    topics = admin.setup()
    used = dict.fromkeys([*registered_queues(settings, admin), *queues])
    topics += admin.ensure_step_topics(used, replication=True)
    created = prepare_database(settings)
    return SetupOutcome(topics, address(settings), created, admin.advice())
