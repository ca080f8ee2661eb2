"""The declared permissions for one FlowPilot: its namespace, and the topics that its workflows read."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable

from flowpilot.adapters.kafka.admin import KafkaAdmin
from flowpilot.app.topics import registered_workflows
from flowpilot.settings import Settings
from flowpilot_schemas.access import Grant, Role, grants

_PATIENCE = 3.0  # seconds


def trigger_topics(settings: Settings) -> list[str]:
    """The users' topics that current workflows read; none before `setup`. Raises `AdminError`, `LogUnavailable`."""
    admin = KafkaAdmin(settings, timeout=_PATIENCE)
    admin.reach()
    found = registered_workflows(settings, admin)
    return sorted({trigger.topic for definition in found for trigger in definition.triggers})


def declared(settings: Settings, roles: Collection[Role], triggers: Iterable[str]) -> list[Grant]:
    """What these roles need."""
    return [grant for grant in grants(settings.topics, triggers=triggers) if grant.role in roles]


def as_command(grant: Grant, servers: str) -> str:
    """The grant as a call of Kafka's `kafka-acls.sh` (the principal is named after the role)."""
    words = ["kafka-acls.sh", "--bootstrap-server", servers, "--add", "--allow-principal", f"User:{grant.role}"]
    for operation in grant.operations:
        words += ["--operation", operation]
    words += [f"--{grant.resource}", grant.name]
    if grant.pattern == "prefixed":
        words += ["--resource-pattern-type", "prefixed"]
    return shlex.join(words)
