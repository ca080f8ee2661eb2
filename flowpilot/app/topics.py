"""Topics and queues as an operator looks at them."""

from __future__ import annotations

import asyncio
from typing import Any

from flowpilot.adapters.kafka.admin import KafkaAdmin, TopicOutcome, TopicPlan
from flowpilot.adapters.kafka.groups import KafkaGroups
from flowpilot.app.workflows import current_workflows
from flowpilot.settings import Settings

Fields = dict[str, Any]


def registered_queues(settings: Settings, admin: KafkaAdmin) -> dict[str, list[str]]:
    """The queues of the current versions, each with the names of its workflows; none before `setup`.

    Raises `AdminError`, `LogUnavailable`.
    """
    queues: dict[str, list[str]] = {}
    if not admin.exists([settings.topics.definitions]):
        return queues
    for definition in asyncio.run(current_workflows(settings)):
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
    """Every queue of the current versions: who serves it, and how many of its steps are not done yet."""
    admin, groups, topics = KafkaAdmin(settings), KafkaGroups(settings), settings.topics
    queues = registered_queues(settings, admin)
    members = groups.members(topics.worker_group(queue) for queue in queues)
    listed: list[Fields] = []
    for queue, workflows in queues.items():
        group, topic = topics.worker_group(queue), topics.steps(queue)
        lag = groups.lag([topic], groups.committed(group))
        shared: Fields = {"queue": queue, "workflows": workflows, "lag": lag}
        if not members[group]:
            listed.append({**shared, "worker": None, "host": None, "partitions": []})
        for member in members[group]:
            partitions = [partition for name, partition in member.partitions if name == topic]
            listed.append({**shared, "worker": member.member, "host": member.host, "partitions": partitions})
    return listed
