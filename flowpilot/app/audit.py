"""The audit writer's process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowpilot.adapters.kafka.catalog import KafkaTopicCatalog
from flowpilot.adapters.kafka.config import consumer_properties, reader_properties
from flowpilot.adapters.kafka.consumer import KafkaConsumer
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.adapters.postgres.store import PostgresAuditStore
from flowpilot.app.metrics import serving_metrics
from flowpilot.app.signals import run_until_signalled
from flowpilot.audit.writer import AuditWriter
from flowpilot.ports.log import Rebalanced
from flowpilot.settings import Settings


async def run_audit(settings: Settings, on_ready: Callable[[], None] = lambda: None) -> int:
    """Write the audit record until a signal; the exit code. Raises what `AuditWriter.run` raises, and
    `MetricsUnavailable`."""
    properties = consumer_properties(settings, settings.topics.audit_group, member="-audit")

    def consumer(topics: Sequence[str], *, on_assigned: Rebalanced, on_revoked: Rebalanced) -> KafkaConsumer:
        return KafkaConsumer(properties, topics, on_assigned=on_assigned, on_revoked=on_revoked)

    with serving_metrics(settings, "audit") as meter:
        store = PostgresAuditStore(settings.database_url.get_secret_value())
        reader = KafkaReader(reader_properties(settings))
        try:
            writer = AuditWriter(
                settings.topics,
                store=store,
                consumer=consumer,
                reader=reader,
                catalog=KafkaTopicCatalog(settings),
                on_ready=on_ready,
                meter=meter,
            )
            return await run_until_signalled(writer)
        finally:
            await store.close()
            reader.close()
