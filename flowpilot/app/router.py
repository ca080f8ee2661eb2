"""The router's process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.kafka.catalog import KafkaTopicCatalog
from flowpilot.adapters.kafka.config import consumer_properties, producer_properties, reader_properties
from flowpilot.adapters.kafka.consumer import KafkaConsumer
from flowpilot.adapters.kafka.offsets import KafkaTriggerReader
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.adapters.opentelemetry import OpenTelemetryTracer
from flowpilot.app.metrics import serving_metrics
from flowpilot.app.signals import run_until_signalled
from flowpilot.ports.log import Rebalanced
from flowpilot.router.router import Router
from flowpilot.settings import Settings


async def run_router(settings: Settings, on_ready: Callable[[frozenset[str]], None] = lambda topics: None) -> int:
    """Route until a signal; the exit code. Raises what `Router.run` raises, and `MetricsUnavailable`."""
    properties = {
        **consumer_properties(settings, settings.topics.router_group, member="-router"),
        # Partitions that users add to their topics are read within seconds, not minutes.
        "topic.metadata.refresh.interval.ms": 10_000,
        # Where a position is not in the log the router decides; librdkafka would go on elsewhere without a word.
        "auto.offset.reset": "error",
    }

    def consumer(topics: Sequence[str], *, on_assigned: Rebalanced, on_revoked: Rebalanced) -> KafkaConsumer:
        return KafkaConsumer(properties, topics, on_assigned=on_assigned, on_revoked=on_revoked)

    with serving_metrics(settings, "router") as meter:
        producer = KafkaProducer(producer_properties(settings))
        reader = KafkaReader(reader_properties(settings))
        trigger_reader = KafkaTriggerReader(settings, reader_properties(settings))
        try:
            router = Router(
                settings.topics,
                settings.limits,
                consumer=consumer,
                producer=producer,
                reader=reader,
                trigger_reader=trigger_reader,
                definitions=LogDefinitions(producer, reader, settings.topics.definitions),
                catalog=KafkaTopicCatalog(settings),
                on_ready=on_ready,
                meter=meter,
                tracer=OpenTelemetryTracer(),
            )
            return await run_until_signalled(router)
        finally:
            producer.close()
            reader.close()
            trigger_reader.close()
