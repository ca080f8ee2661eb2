"""What each role does with Kafka, declared once: topics, groups, operations. `flowpilot topic acls` prints it as
Kafka ACLs, docs/deploy.md as a table, and a test grants each role exactly this and runs it.

Operations are Kafka's (KIP-11, KIP-290). Read, Write, Alter and Delete imply Describe; an idempotent producer needs
no more than Write (KIP-679).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from flowpilot_schemas.topics import Topics

Role = Literal["setup", "deploy", "engine", "router", "worker", "audit", "client", "operator"]
Resource = Literal["topic", "group"]
Pattern = Literal["literal", "prefixed"]

ROLES: dict[Role, str] = {
    "setup": "`flowpilot setup`, `topic apply`: creates topics and corrects their configuration",
    "deploy": "`flowpilot workflow apply` and `delete`, and workers that register a version themselves",
    "engine": "`flowpilot engine`",
    "router": "`flowpilot router`",
    "worker": "`flowpilot worker`, for versions that are registered already",
    "audit": "`flowpilot audit`",
    "client": "`flowpilot api`, `Client`, `flowpilot execution start`, `cancel` and `retry`",
    "operator": "`flowpilot doctor`, `queue list`, `topic list` and `plan`, `execution show`",
}


class Grant(NamedTuple):
    """`role` may do `operations` on the `resource` called `name`, or on all whose names begin with it."""

    role: Role
    resource: Resource
    name: str
    pattern: Pattern
    operations: tuple[str, ...]


READ, WRITE, BOTH = ("Read",), ("Write",), ("Read", "Write")
_SEE = ("Describe", "DescribeConfigs")


def grants(topics: Topics, *, triggers: Iterable[str] = ()) -> list[Grant]:
    """Everything each role needs. `triggers`: the users' topics that workflows read."""
    steps, ours = topics.steps(""), f"{topics.namespace}."
    manage = ("Create", "AlterConfigs", "Describe")
    members: dict[Role, list[tuple[Resource, str, Pattern, tuple[str, ...]]]] = {
        "setup": [
            ("topic", ours, "prefixed", manage),
            ("topic", topics.changelog, "literal", manage),
            *_topics(READ, topics.definitions),
            # A new rule set is permitted once every engine announces it.
            *_topics(BOTH, topics.events, topics.members),
            ("group", topics.app_id, "literal", ("Describe",)),
        ],
        "deploy": [
            ("topic", topics.definitions, "literal", BOTH),
            ("topic", steps, "prefixed", ("Create", *_SEE)),
        ],
        "engine": [
            *_topics(BOTH, topics.events, topics.changelog),
            *_topics(READ, topics.definitions),
            *_topics(WRITE, topics.history, topics.dead_letters, topics.control, topics.replies, topics.members),
            ("topic", steps, "prefixed", WRITE),
            *_topics(("Describe",), topics.triggers, topics.positions, topics.fates),
            ("group", topics.app_id, "literal", READ),
        ],
        "router": [
            *_topics(READ, topics.triggers, *triggers, topics.definitions),
            *_topics(BOTH, topics.positions),
            *_topics(WRITE, topics.fates, topics.events, topics.dead_letters),
            ("group", topics.router_group, "literal", READ),
        ],
        "worker": [
            ("topic", steps, "prefixed", ("Read", "DescribeConfigs")),
            *_topics(READ, topics.definitions, topics.control),
            *_topics(WRITE, topics.events, topics.dead_letters, topics.members),
            ("group", topics.worker_group(""), "prefixed", READ),
        ],
        "audit": [
            *_topics(READ, topics.history, topics.dead_letters, topics.definitions, topics.fates),
            ("group", topics.audit_group, "literal", READ),
        ],
        "client": [
            *_topics(READ, topics.definitions, topics.replies),
            *_topics(WRITE, topics.events),
        ],
        "operator": [
            ("topic", ours, "prefixed", _SEE),
            ("topic", topics.changelog, "literal", _SEE),
            *_topics(READ, topics.definitions, topics.positions),
            *_topics(BOTH, topics.members),
            *_topics(("Describe",), *triggers),
            ("group", ours, "prefixed", ("Describe",)),
            ("group", topics.app_id, "literal", ("Describe",)),
        ],
    }
    return [
        Grant(role, resource, name, pattern, operations)
        for role, each in members.items()
        for resource, name, pattern, operations in (*each, ("group", topics.reader_group, "literal", ("Describe",)))
    ]


def _topics(operations: tuple[str, ...], *names: str) -> list[tuple[Resource, str, Pattern, tuple[str, ...]]]:
    return [("topic", name, "literal", operations) for name in names]
