"""The first question to Kafka: whether it is there at all."""

from __future__ import annotations

from collections.abc import Callable
from threading import Timer

from flowpilot.adapters.kafka.admin import KafkaAdmin
from flowpilot.settings import Settings

HINT_AFTER = 1.0  # seconds


def reach_kafka(settings: Settings, waiting: Callable[[str], None]) -> None:
    """Return once a broker has answered; `waiting` is told in a sentence if that takes longer than a second.

    Raises `KafkaUnreachable`, where whatever a client is asked first might wait for minutes.
    """
    hint = Timer(HINT_AFTER, waiting, (f"waiting for Kafka at {settings.bootstrap_servers} …",))
    hint.daemon = True
    hint.start()
    try:
        KafkaAdmin(settings).reach()
    finally:
        hint.cancel()
