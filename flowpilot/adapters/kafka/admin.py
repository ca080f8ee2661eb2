"""Creating and checking topics. Every call blocks for up to a few seconds: from async code, use a thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from confluent_kafka.admin import TopicMetadata  # type: ignore[attr-defined]  # its __all__ lacks it

from flowpilot.adapters.kafka.catalog import written
from flowpilot.adapters.kafka.changes import TopicChanges
from flowpilot.adapters.kafka.cluster import AdminError as AdminError
from flowpilot.adapters.kafka.cluster import Cluster
from flowpilot.adapters.kafka.cluster import KafkaUnreachable as KafkaUnreachable
from flowpilot.adapters.kafka.cluster import PartitionsChanged as PartitionsChanged
from flowpilot.adapters.kafka.cluster import ReplicationRefused as ReplicationRefused
from flowpilot.adapters.kafka.cluster import UnknownTopic as UnknownTopic
from flowpilot.adapters.kafka.replication import advice, refusal
from flowpilot.settings import Settings
from flowpilot_schemas.topics import Topic

_TIMEOUT = 10.0  # seconds


class TopicOutcome(NamedTuple):
    """What `setup` did about one topic; `updated` says that its configuration was set to what it should be."""

    topic: str
    outcome: Literal["created", "unchanged", "updated"]


class TopicPlan(NamedTuple):
    """What `setup` would do about one topic; `detail` says what differs. `refuse`: its partition count is fixed."""

    topic: str
    action: Literal["create", "change", "keep", "refuse"]
    partitions: int
    cleanup: str
    detail: str


class KafkaAdmin:
    """The topics of one FlowPilot. Raises `AdminError`s."""

    def __init__(self, settings: Settings, *, timeout: float = _TIMEOUT) -> None:
        self._settings = settings
        self._cluster = Cluster(settings, timeout)
        self._changes = TopicChanges(self._cluster, settings)

    def reach(self) -> None:
        """Return once a broker has answered. Raises `KafkaUnreachable`, as `Cluster.reach`."""
        self._cluster.reach()

    def plan(self, queues: Iterable[str] = ()) -> list[TopicPlan]:
        """What `setup(queues)` would do. Changes nothing."""
        declared, fixed = self._declared(queues)
        there = self._cluster.metadata().topics
        counts = {name: len(topic.partitions) for name, topic in there.items()}
        known = [topic for topic in declared if topic.name in there]
        different = self._changes.differences(known, {topic.name: _replicas(there[topic.name]) for topic in known})
        return [self._planned(topic, topic.name in fixed, counts, different) for topic in declared]

    @staticmethod
    def _planned(
        topic: Topic,
        fixed: bool,
        counts: Mapping[str, int],
        different: Mapping[str, Mapping[str, tuple[str, str]]],
    ) -> TopicPlan:
        wanted = topic.partitions or 1
        count = counts.get(topic.name)
        if count is None:
            return TopicPlan(topic.name, "create", wanted, topic.cleanup, "missing")
        if fixed and count != wanted:
            return TopicPlan(topic.name, "refuse", count, topic.cleanup, f"{count} partitions instead of {wanted}")
        if changes := different.get(topic.name):
            detail = ", ".join(f"{name}={was} instead of {value}" for name, (was, value) in changes.items())
            return TopicPlan(topic.name, "change", count, topic.cleanup, detail)
        return TopicPlan(topic.name, "keep", count, topic.cleanup, "")

    def setup(self, queues: Iterable[str] = ()) -> list[TopicOutcome]:
        """Create the topics that are missing, with a worker topic for each of `queues`; mend configurations.

        Idempotent; nothing is created or changed if a partition count or the replication is refused. Returns
        when every partition is served by its leader.
        """
        return self._ensure(*self._declared(queues), replication=True)

    def ensure_step_topics(self, queues: Iterable[str], *, replication: bool = False) -> list[TopicOutcome]:
        """Create the worker topics of `queues` that are missing; their partition counts may be anything.

        `replication`: whether those that are there get the settings' `min.insync.replicas`, as in `setup`. A
        worker leaves them as they are: its settings are not those of whoever set the cluster up.
        """
        return self._ensure(self._step_topics(queues), set(), replication=replication)

    def advice(self) -> list[str]:
        """What works and is still not meant about the replication of FlowPilot's topics: a sentence each."""
        found = self._cluster.metadata()
        topics = self._settings.topics
        ours = {topic.name for topic in topics.core()}
        replicas = {
            name: _replicas(topic)
            for name, topic in found.topics.items()
            if name in ours or name.startswith(topics.steps(""))
        }
        return advice(self._settings, len(found.brokers), replicas)

    def ensure_user_topics(self, names: Iterable[str], partitions: int) -> set[str]:
        """Create those of the users' topics `names` that are missing, with the broker's defaults; those created."""
        there = self._cluster.metadata().topics
        missing = [Topic(name, partitions, "delete") for name in dict.fromkeys(names) if name not in there]
        created = self._changes.create(missing)
        self._changes.await_leaders(created)
        return created

    def topic_id(self, name: str) -> str:
        """The topic's id as `written`: another topic of that name has another. Raises `UnknownTopic`."""
        return written(self._cluster.describe([name])[name].topic_id)

    def partitions(self, name: str) -> int:
        """The topic's partition count. Raises `UnknownTopic`."""
        return len(self._cluster.describe([name])[name].partitions)

    def exists(self, names: Iterable[str]) -> set[str]:
        """Those of `names` that there are."""
        return set(names) & set(self._cluster.metadata().topics)

    def names(self) -> set[str]:
        """All topics there are under this FlowPilot's prefix."""
        prefixes = (f"{self._settings.namespace}.", f"{self._settings.topics.app_id}-")
        return {name for name in self._cluster.metadata().topics if name.startswith(prefixes)}

    def _declared(self, queues: Iterable[str]) -> tuple[list[Topic], set[str]]:
        """All topics as they shall be, and the names of those whose partition count is fixed."""
        topics = self._settings.topics
        declared = [self._counted(topic) for topic in topics.core()]
        fixed = {topic.name for topic in declared} - {topics.triggers, topics.replies}
        return [*declared, *self._step_topics(queues)], fixed

    def _step_topics(self, queues: Iterable[str]) -> list[Topic]:
        names = dict.fromkeys(queues)
        return [self._settings.topics.step_topic(queue, self._settings.step_partitions) for queue in names]

    def _counted(self, topic: Topic) -> Topic:
        if topic.partitions is not None:
            return topic
        count = self._settings.event_partitions
        return Topic(topic.name, count, topic.cleanup, topic.retention_ms, topic.extra)

    def _ensure(self, declared: Sequence[Topic], fixed: set[str], *, replication: bool) -> list[TopicOutcome]:
        there = self._cluster.metadata().topics
        counts = {name: len(topic.partitions) for name, topic in there.items()}
        for topic in declared:
            count = counts.get(topic.name, topic.partitions)
            if topic.name in fixed and count != topic.partitions:
                raise PartitionsChanged(
                    f"topic {topic.name} has {count} partitions instead of {topic.partitions}: the count is fixed "
                    "for life, so set FLOWPILOT_EVENT_PARTITIONS back or use another FLOWPILOT_NAMESPACE"
                )
        checked = [topic.name for topic in declared if replication and topic.name in there]
        if sentence := refusal(self._settings, {name: _replicas(there[name]) for name in checked}):
            raise ReplicationRefused(sentence)
        outcomes: dict[str, Literal["created", "unchanged", "updated"]] = {}
        created = self._changes.create([topic for topic in declared if topic.name not in counts])
        updated = self._changes.mend(
            [topic for topic in declared if topic.name not in created],
            {name: _replicas(there[name]) for name in checked},
        )
        for topic in declared:
            name = topic.name
            outcomes[name] = "created" if name in created else "updated" if name in updated else "unchanged"
        self._changes.await_leaders(created)
        return [TopicOutcome(name, outcome) for name, outcome in outcomes.items()]


def _replicas(topic: TopicMetadata) -> int:
    """Those of the partition that has the fewest."""
    return min((len(partition.replicas) for partition in topic.partitions.values()), default=0)
