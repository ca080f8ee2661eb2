"""Asking Kafka's administration: an answer, or one sentence with the remedy. Every call may block for seconds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ClusterMetadata  # type: ignore[attr-defined]  # not in its __all__

from flowpilot.adapters.kafka.config import client_properties
from flowpilot.core.errors import FlowPilotError
from flowpilot.settings import Settings

# Where every broker refuses the connection, so many seconds are enough; a broker that is slow has more.
_REFUSED = 3.0

_UNREACHABLE = frozenset(
    {KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE}
)


class AdminError(FlowPilotError):
    """Kafka does not allow what was asked; one sentence with the remedy."""


class KafkaUnreachable(AdminError):
    """No broker answered."""


class UnknownTopic(AdminError):
    """A topic is not there."""


class PartitionsChanged(AdminError):
    """A topic whose partition count is fixed for life has another one than the settings say."""


class ReplicationRefused(AdminError):
    """With the settings' replication no record could be written."""


class Refused(AdminError):
    """Kafka answered with the error `code`."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Cluster:
    """A connection to the settings' brokers; `client` has `timeout` seconds for each answer."""

    def __init__(self, settings: Settings, timeout: float) -> None:
        self._settings = settings
        self.timeout = timeout
        self.client = AdminClient(client_properties(settings))

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
            left = begun + (_REFUSED if all_down else self.timeout) - time.monotonic()
            if left <= 0 or not isinstance(failure, KafkaUnreachable):
                raise failure
            patience = min(2 * patience, left)  # one that answers slowly gets the time for it

    def metadata(self) -> ClusterMetadata:
        """The brokers, and all topics there are."""
        try:
            return self.client.list_topics(timeout=self.timeout)
        except KafkaException as error:
            raise self._translated(error, "list the topics") from None

    def describe(self, names: Sequence[str]) -> dict[str, Any]:
        """Topics by their names. Raises `UnknownTopic`."""
        answers = self.client.describe_topics(TopicCollection(list(names)), request_timeout=self.timeout)
        found = {}
        for name, future in answers.items():
            try:
                found[name] = self.result(future, f"describe topic {name}")
            except Refused as refused:
                if refused.code == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise UnknownTopic(f"there is no topic {name}; `flowpilot setup` creates FlowPilot's") from None
                raise
        return found

    def result(self, future: Future[Any], what: str) -> Any:
        """An answer, once it is there; `what` was asked, as a verb and its object."""
        try:
            return future.result()
        except KafkaException as error:
            raise self._translated(error, what) from None

    def _translated(self, error: KafkaException, what: str) -> AdminError:
        reason = error.args[0]
        if reason.code() in _UNREACHABLE:
            servers = self._settings.bootstrap_servers
            return KafkaUnreachable(f"cannot reach Kafka at {servers}: start it or set FLOWPILOT_BOOTSTRAP_SERVERS")
        return Refused(reason.code(), f"Kafka refused to {what}: {reason.str()}")
