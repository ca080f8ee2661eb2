"""The client that users import: its ports made from the settings."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.kafka.config import producer_properties, reader_properties
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.adapters.opentelemetry import OpenTelemetryTracer
from flowpilot.app.logging import quieten
from flowpilot.client.blocking import BlockingClient
from flowpilot.client.client import ConnectedClient
from flowpilot.client.connection import AuditView, Connection, Started, StartSeen
from flowpilot.settings import Settings, load_settings
from flowpilot_schemas.messages import ExecutionEnded


class Client(ConnectedClient):
    """Starts executions, waits for their results, cancels and retries them.

        async with Client() as client:
            handle = await client.start(onboarding, NewPatient(...), key="p-17")
            print(await handle.result())

    Used on one event loop. `Client.blocking()` is the same without async. `settings`: unless given, those of the
    environment. `actor`: who asks, in the audit record; unless given, the settings' or the user's name.
    `patience`: seconds until Kafka's silence is an error, instead of librdkafka's five minutes.
    Raises `SettingsError`.
    """

    def __init__(
        self, settings: Settings | None = None, *, actor: str | None = None, patience: float | None = None
    ) -> None:
        settings = settings or load_settings()
        quieten(settings, "client")
        producing, reading = producer_properties(settings), reader_properties(settings)
        if patience is None:
            self._reader = KafkaReader(reading)
        else:
            # What was given up is not sent after all once Kafka is back.
            producing["message.timeout.ms"] = int(patience * 1_000)
            # Half, so that who asked behind somebody that waited in vain has time for an answer of his own.
            self._reader = KafkaReader(reading, timeout=patience / 2)
        self._producer = KafkaProducer(producing)
        definitions = LogDefinitions(
            self._producer, self._reader, settings.topics.definitions, dev_versions=settings.dev_versions
        )
        audit = _audit_view(settings)
        connection = Connection(
            *(settings.topics, settings.limits, self._producer, self._reader, definitions, audit, patience),
            tracer=OpenTelemetryTracer(),
        )
        super().__init__(connection, actor=actor or settings.actor)

    @classmethod
    def blocking(cls, settings: Settings | None = None, *, actor: str | None = None) -> BlockingClient:
        """A client without async; close it, or use `with`.

        with Client.blocking() as client:
            print(client.start(onboarding, NewPatient(...)).result(timeout=30))
        """
        return BlockingClient(lambda: cls(settings, actor=actor))

    async def close(self) -> None:
        """Stop reading replies and let go of connections. Executions go on."""
        await super().close()
        await asyncio.to_thread(self._producer.close)
        await asyncio.to_thread(self._reader.close)


class _LazyAuditView:
    """The audit record, with SQLAlchemy imported when it is first asked: a start alone never asks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._view: AuditView | None = None
        self._making = asyncio.Lock()

    async def start_seen(self, execution: str, cause: int) -> StartSeen | None:
        """See `AuditView`."""
        return await (await self._made()).start_seen(execution, cause)

    async def ended(self, execution: str, run: int | None) -> ExecutionEnded | None:
        """See `AuditView`."""
        return await (await self._made()).ended(execution, run)

    async def started(self, execution: str) -> Started | None:
        """See `AuditView`."""
        return await (await self._made()).started(execution)

    async def _made(self) -> AuditView:
        async with self._making:
            if self._view is None:
                self._view = await asyncio.to_thread(_connect, self._settings)
            return self._view


def _connect(settings: Settings) -> AuditView:
    from flowpilot.adapters.postgres.engine import connect
    from flowpilot.app.audit_view import PostgresAuditView

    engine = connect(
        settings.database_url.get_secret_value(), application="flowpilot-client", pool_size=1, max_overflow=4
    )
    return PostgresAuditView(engine)


def _audit_view(settings: Settings) -> AuditView | None:
    if find_spec("sqlalchemy") is None or find_spec("psycopg2") is None:
        return None  # the base installation: results come by the replies topic
    return _LazyAuditView(settings)
