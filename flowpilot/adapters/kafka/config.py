"""librdkafka properties, in one place. Only what differs from librdkafka's defaults, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from confluent_kafka import KafkaError

from flowpilot.settings import Settings
from flowpilot_schemas.topics import LARGE_MESSAGE

# Strings, numbers, booleans and, under `error_cb`, a function.
Properties = dict[str, Any]

_log = structlog.get_logger("flowpilot.kafka")
_PASSING = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    }
)


def _report(error: KafkaError) -> None:
    # A broker that is away comes back, or a call fails for it and says so; this comes twenty times a second.
    log = _log.debug if error.code() in _PASSING else _log.warning
    log("kafka client", error=error.name(), detail=error.str())


def client_properties(settings: Settings) -> Properties:
    """What every client has: servers, security, and silence on stderr (errors come through calls and our log)."""
    return {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": "flowpilot",
        "log.connection.close": False,
        "log_level": 2,
        "error_cb": _report,
        "socket.nagle.disable": True,
        # A broker that comes back is found within a second, not ten.
        "reconnect.backoff.max.ms": 1_000,
        **_typed(settings.kafka_properties),
    }


def producer_properties(settings: Settings, *, gapless: bool = False) -> Properties:
    """Idempotent, acknowledged by all in-sync replicas, partitioned as Kafka's Java clients do."""
    return {
        **client_properties(settings),
        "acks": "all",
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
        "linger.ms": 0,
        "message.max.bytes": LARGE_MESSAGE + 4096,
        "queue.buffering.max.messages": 200_000,
        # A topic the cluster does not know fails its record after two seconds, not thirty: `setup` waits until
        # what it made is known everywhere.
        "topic.metadata.propagation.max.ms": 2_000,
        "compression.type": "none",
        # With a gap the sequence is broken for good: the process ends rather than carry on in doubt.
        **({"enable.gapless.guarantee": True} if gapless else {}),
    }


def announcer_properties(settings: Settings) -> Properties:
    """For announcements: one that is not delivered within seconds is made again, with what is true then."""
    return {**producer_properties(settings), "message.timeout.ms": 5_000}


def consumer_properties(settings: Settings, group: str, *, member: str = "") -> Properties:
    """A group member that commits by hand. `member` tells apart the consumers of one process."""
    static = {"group.instance.id": f"{settings.member_id}{member}"} if settings.member_id else {}
    return {
        **client_properties(settings),
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": 6_000,
        # A member hears of a rebalance with its next heartbeat, and a cooperative one takes two.
        "heartbeat.interval.ms": 500,
        "max.poll.interval.ms": 60_000,
        "fetch.wait.max.ms": 100,
        # After a broker was away, and after a full queue has drained: at once, not after half a second or one.
        "fetch.error.backoff.ms": 50,
        "fetch.queue.backoff.ms": 50,
        "fetch.message.max.bytes": LARGE_MESSAGE + 4096,
        **static,
    }


def reader_properties(settings: Settings) -> Properties:
    """A consumer outside any group (the group id is required by librdkafka, and never used)."""
    return {
        **client_properties(settings),
        "group.id": settings.topics.reader_group,
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        "enable.partition.eof": True,
        # A fetch at the end of the log would hold up the next question on the same connection.
        "fetch.wait.max.ms": 2,
        "fetch.error.backoff.ms": 50,
        "fetch.queue.backoff.ms": 10,
        "fetch.message.max.bytes": LARGE_MESSAGE + 4096,
    }


def _typed(properties: Mapping[str, str]) -> Properties:
    return dict(properties)
