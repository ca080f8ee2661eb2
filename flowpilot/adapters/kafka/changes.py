"""Topics as they shall be: what differs, and making it so."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from confluent_kafka import KafkaError, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its __all__ lacks one of them
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from flowpilot.adapters.kafka.cluster import AdminError, Cluster, Refused, UnknownTopic
from flowpilot.settings import Settings
from flowpilot_schemas.topics import Topic

# Seconds: a broker on a busy machine makes some ten partitions in one.
_PATIENCE = 60.0
_ELECTING = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
    }
)


class TopicChanges:
    """Creates topics and mends their configurations. Raises `AdminError`s."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._client, self._timeout = cluster.client, cluster.timeout
        self._settings = settings

    def create(self, topics: Sequence[Topic]) -> set[str]:
        """The names of those created here; one that another process created meanwhile is none of them."""
        if not topics:
            return set()
        factor = self._settings.replication_factor
        wanted = [
            NewTopic(topic.name, topic.partitions or 1, factor, config={**topic.config(), **self._in_sync(factor)})
            for topic in topics
        ]
        created = set()
        for name, future in self._client.create_topics(wanted, request_timeout=self._cluster.timeout).items():
            try:
                self._cluster.result(future, f"create topic {name}")
                created.add(name)
            except Refused as refused:
                if refused.code == KafkaError.INVALID_REPLICATION_FACTOR:
                    raise AdminError(
                        f"{refused}; set FLOWPILOT_REPLICATION_FACTOR to at most the number of brokers"
                    ) from None
                if refused.code != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
        return created

    def _in_sync(self, replicas: int) -> dict[str, str]:
        return {"min.insync.replicas": str(self._settings.in_sync(replicas))}

    def mend(self, topics: Sequence[Topic], replicas: Mapping[str, int]) -> set[str]:
        """The names of those whose configuration was changed. `replicas`: of those whose in-sync ones count too."""
        different = self.differences(topics, replicas)
        changes = []
        for topic in topics:
            if topic.name in different:
                resource = ConfigResource(ResourceType.TOPIC, topic.name)
                for name, (_, value) in different[topic.name].items():
                    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
                    resource.add_incremental_config(entry)
                changes.append(resource)
        if changes:
            altered = self._client.incremental_alter_configs(changes, request_timeout=self._timeout)
            for resource, future in altered.items():
                self._cluster.result(future, f"change the configuration of topic {resource.name}")
        return set(different)

    def differences(
        self, topics: Sequence[Topic], replicas: Mapping[str, int]
    ) -> dict[str, dict[str, tuple[str, str]]]:
        """Of those that are configured otherwise than declared: by name, what they have and shall have."""
        if not topics:
            return {}
        resources = [ConfigResource(ResourceType.TOPIC, topic.name) for topic in topics]
        answers = self._client.describe_configs(resources, request_timeout=self._timeout)
        found = {
            resource.name: self._cluster.result(future, f"read the configuration of topic {resource.name}")
            for resource, future in answers.items()
        }
        different: dict[str, dict[str, tuple[str, str]]] = {}
        for topic in topics:
            entries = found[topic.name]
            wanted = topic.config()
            if topic.name in replicas:
                wanted |= self._in_sync(replicas[topic.name])
            for name, value in wanted.items():
                has = entries[name].value if name in entries else "nothing"
                if has != value:
                    different.setdefault(topic.name, {})[name] = has, value
        return different

    def await_leaders(self, names: set[str]) -> None:
        """A topic that was just created is not known everywhere at once, and a leader is known before it leads."""
        deadline = time.monotonic() + _PATIENCE
        while names:
            try:
                described = self._cluster.describe(sorted(names))
                partitions = {name: item.partitions for name, item in described.items()}
                if all(part.leader is not None for parts in partitions.values() for part in parts):
                    names = self._unserved(
                        [TopicPartition(name, part.id) for name, parts in partitions.items() for part in parts]
                    )
                    if not names:
                        return
            except UnknownTopic:
                pass
            if time.monotonic() > deadline:
                raise AdminError(
                    f"{', '.join(sorted(names))} got no leader within {_PATIENCE:.0f} s: are all brokers up?"
                )
            time.sleep(0.02)

    def _unserved(self, partitions: Sequence[TopicPartition]) -> set[str]:
        """The topics with a partition whose leader does not answer for it yet."""
        asked = {partition: OffsetSpec.latest() for partition in partitions}  # type: ignore[no-untyped-call]
        unserved = set()
        for partition, future in self._client.list_offsets(asked, request_timeout=self._cluster.timeout).items():
            try:
                self._cluster.result(future, f"tell the end of {partition.topic}")
            except Refused as refused:
                if refused.code not in _ELECTING:
                    raise
                unserved.add(partition.topic)
        return unserved
