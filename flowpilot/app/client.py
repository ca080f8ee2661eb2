"""The client that users import: its ports made from the settings."""

from __future__ import annotations

import asyncio
from typing import Self

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.kafka.config import producer_properties, reader_properties
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.app.logging import quieten
from flowpilot.client.blocking import BlockingClient
from flowpilot.client.client import ConnectedClient
from flowpilot.client.connection import AuditView, Connection
from flowpilot.settings import Settings, load_settings


class Client(ConnectedClient):
    """Starts executions, waits for their results, cancels them. Settings come from the environment.

        async with Client() as client:
            handle = await client.start(onboarding, NewPatient(...), key="p-17")
            print(await handle.result())

    Used on one event loop. `Client.blocking()` is the same without async.
    """

    def __init__(self, settings: Settings | None = None, *, actor: str | None = None) -> None:
        settings = settings or load_settings()
        quieten(settings, "client")
        self._producer = KafkaProducer(producer_properties(settings))
        self._reader = KafkaReader(reader_properties(settings))
        definitions = LogDefinitions(self._producer, self._reader, settings.topics.definitions)
        audit = _audit_view(settings)
        connection = Connection(settings.topics, settings.limits, self._producer, self._reader, definitions, audit)
        super().__init__(connection, actor=actor or settings.actor)

    @classmethod
    def blocking(cls, settings: Settings | None = None, *, actor: str | None = None) -> BlockingClient:
        """A client without async; close it, or use `with`."""
        return BlockingClient(lambda: cls(settings, actor=actor))

    async def __aenter__(self) -> Self:
        return self

    async def close(self) -> None:
        """Stop reading replies and let go of connections. Executions go on."""
        await super().close()
        await asyncio.to_thread(self._producer.close)
        await asyncio.to_thread(self._reader.close)


def _audit_view(settings: Settings) -> AuditView | None:
    try:
        from flowpilot.adapters.postgres.engine import connect
        from flowpilot.app.audit_view import PostgresAuditView
    except ModuleNotFoundError:  # the base installation has no PostgreSQL: results come by the replies topic
        return None
    engine = connect(
        settings.database_url.get_secret_value(), application="flowpilot-client", pool_size=1, max_overflow=4
    )
    return PostgresAuditView(engine)
