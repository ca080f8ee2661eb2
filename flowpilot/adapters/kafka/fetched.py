"""What confluent-kafka fetches, for the consumer and the reader: its messages as records, and errors that pass."""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaError

from flowpilot.ports.log import Fetched

# Reported while a broker is away or a topic is not there yet; librdkafka goes on trying.
PASSING = frozenset(
    {
        KafkaError._PARTITION_EOF,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._RESOLVE,
        KafkaError._MAX_POLL_EXCEEDED,
    }
)


def fetched(message: Any) -> Fetched:
    """confluent-kafka's message as the port's record."""
    headers = message.headers()
    return Fetched(
        message.topic(),
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        tuple((name, value or b"") for name, value in headers) if headers else (),
    )
