"""Creating and checking topics. Every call blocks for up to a few seconds: from async code, use a thread."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its __all__ lacks two of them
    AdminClient,
    AlterConfigOpType,
    ClusterMetadata,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
    TopicMetadata,
)

from flowpilot.adapters.kafka.config import client_properties
from flowpilot.adapters.kafka.replication import advice, refusal
from flowpilot.settings import Settings
from flowpilot_schemas.topics import Topic

_TIMEOUT = 10.0
# A broker on a busy machine makes some ten partitions a second.
_PATIENCE = 60.0
# Where every broker refuses the connection, so many seconds are enough; a broker that is slow has more.
_REFUSED = 3.0


class AdminError(Exception):
    """Kafka does not allow what was asked; one sentence with the remedy."""


class KafkaUnreachable(AdminError):
    """No broker answered."""


class UnknownTopic(AdminError):
    """A topic is not there."""


class PartitionsChanged(AdminError):
    """A topic whose partition count is fixed for life has another one than the settings say."""


class ReplicationRefused(AdminError):
    """With the settings' replication no record could be written."""


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
        self._timeout = timeout
        self._client = AdminClient(client_properties(settings))

    def reach(self) -> None:
        """Return once a broker has answered.

        Raises `KafkaUnreachable` after three seconds if all refuse the connection, else after the time-out.
        """
        down: list[KafkaError] = []
        properties = client_properties(self._settings)
        properties["error_cb"] = down.append
        client = AdminClient(properties)
        begun, patience = time.monotonic(), 0.5
        while True:
            try:
                client.list_topics(timeout=patience)
                return
            except KafkaException as error:
                failure = self._translated(error, "list the topics")
            client.poll(0)
            all_down = any(error.code() == KafkaError._ALL_BROKERS_DOWN for error in down)
            left = begun + (_REFUSED if all_down else self._timeout) - time.monotonic()
            if left <= 0 or not isinstance(failure, KafkaUnreachable):
                raise failure
            patience = min(2 * patience, left)  # one that answers slowly gets the time for it

    def plan(self, queues: Iterable[str] = ()) -> list[TopicPlan]:
        """What `setup(queues)` would do. Changes nothing."""
        declared, fixed = self._declared(queues)
        there = self._metadata().topics
        counts = {name: len(topic.partitions) for name, topic in there.items()}
        known = [topic for topic in declared if topic.name in there]
        different = self._differences(known, {topic.name: _replicas(there[topic.name]) for topic in known})
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
        found = self._metadata()
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
        there = self._metadata().topics
        missing = [Topic(name, partitions, "delete") for name in dict.fromkeys(names) if name not in there]
        created = self._create(missing)
        self._await_leaders(created)
        return created

    def topic_id(self, name: str) -> str:
        """The topic's id (KIP-516), 22 characters of URL-safe base64: another topic of that name has another."""
        described = self._describe([name])[name]
        return str(described.topic_id).replace("+", "-").replace("/", "_")

    def partitions(self, name: str) -> int:
        """The topic's partition count. Raises `UnknownTopic`."""
        return len(self._describe([name])[name].partitions)

    def exists(self, names: Iterable[str]) -> set[str]:
        """Those of `names` that there are."""
        return set(names) & set(self._metadata().topics)

    def names(self) -> set[str]:
        """All topics there are under this FlowPilot's prefix."""
        prefixes = (f"{self._settings.namespace}.", f"{self._settings.topics.app_id}-")
        return {name for name in self._metadata().topics if name.startswith(prefixes)}

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
        there = self._metadata().topics
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
        created = self._create([topic for topic in declared if topic.name not in counts])
        updated = self._mend(
            [topic for topic in declared if topic.name not in created],
            {name: _replicas(there[name]) for name in checked},
        )
        for topic in declared:
            name = topic.name
            outcomes[name] = "created" if name in created else "updated" if name in updated else "unchanged"
        self._await_leaders(created)
        return [TopicOutcome(name, outcome) for name, outcome in outcomes.items()]

    def _create(self, topics: Sequence[Topic]) -> set[str]:
        """The names of those created here; one that another process created meanwhile is none of them."""
        if not topics:
            return set()
        factor = self._settings.replication_factor
        wanted = [
            NewTopic(topic.name, topic.partitions or 1, factor, config={**topic.config(), **self._in_sync(factor)})
            for topic in topics
        ]
        created = set()
        for name, future in self._client.create_topics(wanted, request_timeout=self._timeout).items():
            try:
                self._result(future, f"create topic {name}")
                created.add(name)
            except _Refused as refused:
                if refused.code == KafkaError.INVALID_REPLICATION_FACTOR:
                    raise AdminError(
                        f"{refused}; set FLOWPILOT_REPLICATION_FACTOR to at most the number of brokers"
                    ) from None
                if refused.code != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
        return created

    def _in_sync(self, replicas: int) -> dict[str, str]:
        return {"min.insync.replicas": str(self._settings.in_sync(replicas))}

    def _mend(self, topics: Sequence[Topic], replicas: Mapping[str, int]) -> set[str]:
        """The names of those whose configuration was changed. `replicas`: of those whose in-sync ones count too."""
        different = self._differences(topics, replicas)
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
                self._result(future, f"change the configuration of topic {resource.name}")
        return set(different)

    def _differences(
        self, topics: Sequence[Topic], replicas: Mapping[str, int]
    ) -> dict[str, dict[str, tuple[str, str]]]:
        """Of those that are configured otherwise than declared: by name, what they have and shall have."""
        if not topics:
            return {}
        resources = [ConfigResource(ResourceType.TOPIC, topic.name) for topic in topics]
        answers = self._client.describe_configs(resources, request_timeout=self._timeout)
        found = {
            resource.name: self._result(future, f"read the configuration of topic {resource.name}")
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

    def _await_leaders(self, names: set[str]) -> None:
        """A topic that was just created is not known everywhere at once, and a leader is known before it leads."""
        deadline = time.monotonic() + _PATIENCE
        while names:
            try:
                described = self._describe(sorted(names))
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
        for partition, future in self._client.list_offsets(asked, request_timeout=self._timeout).items():
            try:
                self._result(future, f"tell the end of {partition.topic}")
            except _Refused as refused:
                if refused.code not in _ELECTING:
                    raise
                unserved.add(partition.topic)
        return unserved

    def _metadata(self) -> ClusterMetadata:
        try:
            return self._client.list_topics(timeout=self._timeout)
        except KafkaException as error:
            raise self._translated(error, "list the topics") from None

    def _describe(self, names: Sequence[str]) -> dict[str, Any]:
        answers = self._client.describe_topics(TopicCollection(list(names)), request_timeout=self._timeout)
        found = {}
        for name, future in answers.items():
            try:
                found[name] = self._result(future, f"describe topic {name}")
            except _Refused as refused:
                if refused.code == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise UnknownTopic(f"there is no topic {name}; `flowpilot setup` creates FlowPilot's") from None
                raise
        return found

    def _result(self, future: Future[Any], what: str) -> Any:
        try:
            return future.result()
        except KafkaException as error:
            raise self._translated(error, what) from None

    def _translated(self, error: KafkaException, what: str) -> AdminError:
        reason = error.args[0]
        if reason.code() in _UNREACHABLE:
            servers = self._settings.bootstrap_servers
            return KafkaUnreachable(f"cannot reach Kafka at {servers}: start it or set FLOWPILOT_BOOTSTRAP_SERVERS")
        return _Refused(reason.code(), f"Kafka refused to {what}: {reason.str()}")


def _replicas(topic: TopicMetadata) -> int:
    """Those of the partition that has the fewest."""
    return min((len(partition.replicas) for partition in topic.partitions.values()), default=0)


class _Refused(AdminError):
    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


_UNREACHABLE = frozenset(
    {KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE}
)
_ELECTING = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
    }
)
