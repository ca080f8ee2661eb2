"""Which topics there are, asked again and again by a running role."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException, TopicCollection, Uuid
from confluent_kafka.admin import AdminClient

from flowpilot.adapters.kafka.config import client_properties
from flowpilot.ports.log import LogUnavailable
from flowpilot.settings import Settings

_TIMEOUT = 10.0  # seconds

# What concerns one topic must not stop the others. A name that Kafka does not allow cannot be there either.
_NOT_THERE = frozenset(
    {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_EXCEPTION, KafkaError.TOPIC_AUTHORIZATION_FAILED}
)


def written(topic_id: Uuid) -> str:
    """A topic's id (KIP-516) as Kafka's own tools print it: 22 characters of URL-safe base64."""
    return str(topic_id).replace("+", "-").replace("/", "_")


class KafkaTopicCatalog:
    """The ids of topics as `written`: a topic made again has another."""

    def __init__(self, settings: Settings) -> None:
        self._properties = client_properties(settings)
        self._client = AdminClient(self._properties)

    async def topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        """See the port."""
        wanted = sorted(set(names))
        try:
            return await asyncio.to_thread(self._topic_ids, wanted) if wanted else {}
        except LogUnavailable:
            # After the loss of the broker that it takes for the controller, a client asks that one for minutes.
            self._client = AdminClient(self._properties)
            raise

    def _topic_ids(self, names: list[str]) -> dict[str, str]:
        found = {}
        answers = self._client.describe_topics(TopicCollection(names), request_timeout=_TIMEOUT)
        for name, future in answers.items():
            try:
                found[name] = written(future.result(_TIMEOUT + 1).topic_id)
            except KafkaException as error:
                reason = error.args[0]
                if reason.code() not in _NOT_THERE:
                    raise LogUnavailable(f"{reason.name()}: {reason.str()}") from None
            except TimeoutError:
                raise LogUnavailable(f"the topics were not described within {_TIMEOUT:.0f} s") from None
        return found
