"""Every topic of FlowPilot's, declared once. `schemas/README.md` is the table for readers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
MIB = 1 << 20

# One bound for whatever carries definitions, states or poison records.
LARGE_MESSAGE = 10 * MIB
# An announcement of a process (see `flowpilot_schemas.members`).
MEMBER_MESSAGE = 256 << 10
# How long a step message waits for a worker at most.
STEP_RETENTION = 7 * DAY


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic's declaration. `partitions` None: as many as the events topic, partition by partition."""

    name: str
    partitions: int | None
    cleanup: str
    retention_ms: int | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    def config(self) -> dict[str, str]:
        """The topic's configuration as the broker takes it."""
        config = {"cleanup.policy": self.cleanup, "message.timestamp.type": "LogAppendTime", **self.extra}
        if self.retention_ms is not None:
            config["retention.ms"] = str(self.retention_ms)
        return config


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics under one prefix. `namespace` keeps several FlowPilots apart on one cluster."""

    namespace: str = "flowpilot"

    @classmethod
    def of_step_topic(cls, name: str) -> Topics:
        """The topics beside the worker topic `name`: a namespace has no dot."""
        return cls(name.partition(".steps.")[0])

    @property
    def triggers(self) -> str:
        return f"{self.namespace}.triggers"

    @property
    def events(self) -> str:
        return f"{self.namespace}.events"

    @property
    def app_id(self) -> str:
        """The Faust app's id: the engine's consumer group and its changelog's prefix. Never renamed."""
        return f"{self.namespace}-engine"

    @property
    def changelog(self) -> str:
        """The name Faust gives the changelog of the table `executions`."""
        return f"{self.app_id}-executions-changelog"

    @property
    def history(self) -> str:
        return f"{self.namespace}.history"

    @property
    def definitions(self) -> str:
        return f"{self.namespace}.definitions"

    @property
    def control(self) -> str:
        return f"{self.namespace}.control"

    @property
    def replies(self) -> str:
        return f"{self.namespace}.replies"

    @property
    def dead_letters(self) -> str:
        return f"{self.namespace}.dead-letters"

    @property
    def positions(self) -> str:
        return f"{self.namespace}.positions"

    @property
    def fates(self) -> str:
        return f"{self.namespace}.trigger-fates"

    @property
    def members(self) -> str:
        return f"{self.namespace}.members"

    def steps(self, queue: str) -> str:
        """The worker topic of a queue."""
        return f"{self.namespace}.steps.{queue}"

    def worker_group(self, queue: str) -> str:
        """The consumer group of a queue's workers."""
        return f"{self.namespace}.worker.{queue}"

    @property
    def router_group(self) -> str:
        return f"{self.namespace}.router"

    @property
    def reader_group(self) -> str:
        """Named by consumers outside any group: librdkafka wants a name, and asks for its coordinator."""
        return f"{self.namespace}-reader"

    @property
    def audit_group(self) -> str:
        return f"{self.namespace}.audit"

    def core(self) -> list[Topic]:
        """All topics but the worker topics, in the order they are created."""
        large = {"max.message.bytes": str(LARGE_MESSAGE)}
        return [
            Topic(self.events, None, "delete", 14 * DAY, large),
            Topic(
                self.changelog,
                None,
                "compact",
                extra={
                    **large,
                    "min.compaction.lag.ms": str(HOUR),
                    "max.compaction.lag.ms": str(2 * HOUR),
                    "segment.ms": str(10 * MINUTE),
                    "min.cleanable.dirty.ratio": "0.05",
                    "delete.retention.ms": str(7 * DAY),
                },
            ),
            Topic(self.history, None, "delete", -1, large),
            Topic(self.dead_letters, None, "delete", 30 * DAY, large),
            Topic(self.triggers, 4, "delete", 7 * DAY),
            Topic(
                self.positions,
                1,
                "compact",
                # A router reads it whole before it begins. The lag is for whoever was overtaken and writes late.
                extra={
                    "min.compaction.lag.ms": str(10 * MINUTE),
                    "segment.ms": str(10 * MINUTE),
                    "min.cleanable.dirty.ratio": "0.1",
                },
            ),
            Topic(self.fates, 1, "delete", 30 * DAY, large),
            Topic(self.definitions, 1, "compact", extra=large),
            Topic(
                self.members,
                1,
                "compact",
                # Every process writes some times a minute, and only the last minutes count.
                extra={
                    "max.message.bytes": str(MEMBER_MESSAGE),
                    "segment.ms": str(10 * MINUTE),
                    "min.cleanable.dirty.ratio": "0.1",
                    "delete.retention.ms": str(HOUR),
                },
            ),
            Topic(self.control, 1, "delete", DAY),
            Topic(self.replies, 4, "delete", HOUR),
        ]

    def step_topic(self, queue: str, partitions: int) -> Topic:
        """The declaration of a queue's worker topic."""
        extra = {"max.message.bytes": str(LARGE_MESSAGE)}
        return Topic(self.steps(queue), partitions, "delete", STEP_RETENTION, extra)
