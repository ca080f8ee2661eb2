"""The engine with its adapters: the one place that chooses them."""

from __future__ import annotations

import time

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.kafka.admin import KafkaAdmin
from flowpilot.adapters.kafka.config import reader_properties
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.engine.claim import EventsTopic
from flowpilot.engine.engine import Engine
from flowpilot.ports.log import Producer
from flowpilot.ports.meter import Meter
from flowpilot.settings import Settings


def build_engine(settings: Settings, producer: Producer, meter: Meter) -> Engine:
    """The engine of these settings. All that it writes goes through `producer`. Raises AdminError."""
    topics = settings.topics
    admin = KafkaAdmin(settings)
    events = EventsTopic(topics, admin.topic_id(topics.events), admin.partitions(topics.events))
    reader = KafkaReader(reader_properties(settings))
    definitions = LogDefinitions(producer, reader, topics.definitions)
    return Engine(
        events,
        producer,
        reader,
        definitions,
        clock=lambda: time.time_ns() // 1_000_000,
        meter=meter,
        secrets=settings.step_secrets,
    )
