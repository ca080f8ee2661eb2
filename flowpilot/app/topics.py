"""Topics and queues as an operator looks at them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from flowpilot.adapters.kafka.admin import KafkaAdmin, TopicOutcome, TopicPlan
from flowpilot.adapters.kafka.groups import KafkaGroups, Member
from flowpilot.app.members import joined, look
from flowpilot.app.workflows import current_workflows
from flowpilot.ports.members import LiveMembers
from flowpilot.settings import Settings
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.members import WorkerAnnounced

Fields = dict[str, Any]


def registered_workflows(settings: Settings, admin: KafkaAdmin) -> list[WorkflowDefinition]:
    """The current versions; none before `setup`. Raises `AdminError`, `LogUnavailable`."""
    if not admin.exists([settings.topics.definitions]):
        return []
    return asyncio.run(current_workflows(settings))


def registered_queues(settings: Settings, admin: KafkaAdmin) -> dict[str, list[str]]:
    """The queues of the current versions, each with the names of its workflows; none before `setup`.

    Raises `AdminError`, `LogUnavailable`.
    """
    queues: dict[str, list[str]] = {}
    for definition in registered_workflows(settings, admin):
        for queue in definition.queues:
            queues.setdefault(queue, []).append(definition.name)
    return queues


def plan_topics(settings: Settings) -> list[TopicPlan]:
    """What `setup` would create or change. Raises `AdminError`, `LogUnavailable`."""
    admin = KafkaAdmin(settings)
    return admin.plan(registered_queues(settings, admin))


def apply_topics(settings: Settings) -> list[TopicOutcome]:
    """Create what is missing, mend what differs. Raises `AdminError`, `LogUnavailable`."""
    admin = KafkaAdmin(settings)
    outcomes = admin.setup()
    return outcomes + admin.ensure_step_topics(registered_queues(settings, admin))


def list_topics(settings: Settings) -> list[Fields]:
    """The declared topics, and what else lies under the prefix: queues that no current version has."""
    states = {"create": "missing", "change": "differs", "keep": "ok", "refuse": "differs"}
    admin = KafkaAdmin(settings)
    planned = admin.plan(registered_queues(settings, admin))
    listed: list[Fields] = [
        {
            "topic": plan.topic,
            "partitions": plan.partitions if plan.action != "create" else None,
            "cleanup": plan.cleanup,
            "state": states[plan.action],
            "detail": plan.detail or None,
        }
        for plan in planned
    ]
    others = admin.names() - {plan.topic for plan in planned}
    for name in sorted(others):
        unused = "no current workflow has this queue" if name.startswith(settings.topics.steps("")) else None
        listed.append(
            {
                "topic": name,
                "partitions": admin.partitions(name),
                "cleanup": None,
                "state": "unused",
                "detail": unused,
            }
        )
    return listed


def list_queues(settings: Settings) -> list[Fields]:
    """Every queue of the current versions: who serves it, in which versions, and how many steps are not done yet.

    `worker`: its static member id, else its own id or the one that Kafka gave it. `worker_id` and `versions` are
    None for a worker that does not announce them, and for no worker.
    """
    admin, groups, topics = KafkaAdmin(settings), KafkaGroups(settings), settings.topics
    queues = registered_queues(settings, admin)
    members = groups.members(topics.worker_group(queue) for queue in queues)
    announced = _announced(settings, admin)
    listed: list[Fields] = []
    for queue, workflows in queues.items():
        group, topic = topics.worker_group(queue), topics.steps(queue)
        lag = groups.lag([topic], groups.committed(group))
        shared: Fields = {"queue": queue, "workflows": workflows, "lag": lag}
        rows = _served(queue, topic, members[group], announced)
        listed += [{**shared, **row} for row in rows or [_row(None, None, [], None)]]
    return listed


def _announced(settings: Settings, admin: KafkaAdmin) -> LiveMembers:
    """Nobody before `setup` has made the topic."""
    if not admin.exists([settings.topics.members]):
        return LiveMembers([], [], 0)
    return asyncio.run(look(settings))[0]


def _served(queue: str, topic: str, members: Sequence[Member], live: LiveMembers) -> list[Fields]:
    """A row a worker: first the members of the group, then those that are announced and no members (yet)."""
    rows = []
    for member, worker in joined(queue, topic, members, live):
        if member is None:
            assert worker is not None
            rows.append(_row(worker.worker, None, worker.queues[queue], worker))
            continue
        partitions = [partition for name, partition in member.partitions if name == topic]
        # A name that Kafka made up says less than the worker's own, which `execution show` has too.
        is_static = not member.client or not member.member.startswith(f"{member.client}-")
        rows.append(
            _row(worker.worker if worker and not is_static else member.member, member.host, partitions, worker)
        )
    return rows


def _row(name: str | None, host: str | None, partitions: list[int], worker: WorkerAnnounced | None) -> Fields:
    return {
        "worker": name,
        "host": host,
        "partitions": partitions,
        "worker_id": worker.worker if worker else None,
        "versions": None if worker is None else [served.model_dump() for served in worker.definitions],
        "versions_left_out": worker.definitions_left_out if worker else 0,
        "release": worker.release if worker else None,
    }
