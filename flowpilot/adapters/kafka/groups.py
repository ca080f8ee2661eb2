"""Consumer groups as an operator looks at them: who is in, and how far behind. Every call blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # its __all__ lacks it

from flowpilot.adapters.kafka.config import client_properties
from flowpilot.ports.log import LogUnavailable
from flowpilot.ports.log import TopicPartition as LogPartition
from flowpilot.settings import Settings

Places = dict[tuple[str, int], int]


class Member(NamedTuple):
    """A member of a group. `member`: its static id, else the one Kafka gave it; `client`: its client id."""

    member: str
    host: str
    partitions: list[tuple[str, int]]
    client: str = ""


class KafkaGroups:
    """The consumer groups of one cluster. Raises `LogUnavailable`."""

    def __init__(self, settings: Settings, *, timeout: float = 10.0) -> None:
        self._client = AdminClient(client_properties(settings))
        self._timeout = timeout

    def members(self, groups: Iterable[str]) -> dict[str, list[Member]]:
        """The members of each of `groups`; none for one that Kafka does not know."""
        wanted = list(dict.fromkeys(groups))
        if not wanted:
            return {}
        answers = self._client.describe_consumer_groups(wanted, request_timeout=self._timeout)
        found: dict[str, list[Member]] = {}
        for group, future in answers.items():
            try:
                described = future.result()
            except KafkaException as error:
                if error.args[0].name() != "GROUP_ID_NOT_FOUND":
                    raise _unavailable(error) from None
                found[group] = []
                continue
            found[group] = sorted(_member(member) for member in described.members)
        return found

    def committed(self, group: str) -> Places:
        """The group's committed positions."""
        return {(item.topic, item.partition): item.offset for item in self._committed(group)}

    def noted(self, group: str) -> dict[LogPartition, tuple[int, str]]:
        """The group's committed positions with their notes, of those that have one."""
        return {
            LogPartition(item.topic, item.partition): (item.offset, item.metadata)
            for item in self._committed(group)
            if item.metadata
        }

    def _committed(self, group: str) -> list[TopicPartition]:
        try:
            answers = self._client.list_consumer_group_offsets(
                [ConsumerGroupTopicPartitions(group)], request_timeout=self._timeout
            )
            partitions = answers[group].result().topic_partitions
        except KafkaException as error:
            if error.args[0].name() == "GROUP_ID_NOT_FOUND":
                return []
            raise _unavailable(error) from None
        return [item for item in partitions if item.offset >= 0]

    def bounds(self, topic: str) -> dict[tuple[str, int], tuple[int, int]]:
        """The first and the next offset of each partition; empty if there is no such topic."""
        try:
            metadata = self._client.list_topics(topic, timeout=self._timeout).topics[topic]
            if metadata.error is not None:
                return {}
            low, high = (
                self._offsets(topic, list(metadata.partitions), spec)
                for spec in (OffsetSpec.earliest(), OffsetSpec.latest())  # type: ignore[no-untyped-call]
            )
        except KafkaException as error:
            raise _unavailable(error) from None
        return {place: (low[place], high[place]) for place in high}

    def lag(self, topics: Iterable[str], positions: Places) -> int:
        """Records of `topics` that a reader which stands at `positions` has not read."""
        behind = 0
        for topic in topics:
            for place, (low, high) in self.bounds(topic).items():
                behind += max(0, high - max(low, positions.get(place, low)))
        return behind

    def _offsets(self, topic: str, partitions: list[int], spec: Any) -> Places:
        wanted = {TopicPartition(topic, partition): spec for partition in partitions}
        answers = self._client.list_offsets(wanted, request_timeout=self._timeout)
        return {(place.topic, place.partition): future.result().offset for place, future in answers.items()}


def _member(member: Any) -> Member:
    assigned = member.assignment.topic_partitions if member.assignment else []
    return Member(
        member.group_instance_id or member.member_id,
        str(member.host).removeprefix("/"),
        sorted((item.topic, item.partition) for item in assigned),
        str(member.client_id or ""),
    )


def _unavailable(error: KafkaException) -> LogUnavailable:
    reason = error.args[0]
    return LogUnavailable(f"{reason.name()}: {reason.str()}")
