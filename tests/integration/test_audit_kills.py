"""The audit writer as real processes on real Kafka and PostgreSQL: kills, competitors, a server that goes away."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy.exc import OperationalError

from flowpilot.adapters.kafka.config import producer_properties
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.local.services import temporary_services
from flowpilot.ports.log import Record
from flowpilot.settings import Settings
from tests.audit_history import Chain, interleaved, spread
from tests.audit_world import AuditWorld
from tests.waiting import eventually

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
EXECUTIONS = 400


@contextmanager
def writer(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """An audit writer's process; killed at the end if it still runs."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FLOWPILOT_")},
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "agents", "schemas")),
        "FLOWPILOT_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "FLOWPILOT_NAMESPACE": settings.namespace,
        "FLOWPILOT_DATABASE_URL": settings.database_url.get_secret_value(),
    }
    process = subprocess.Popen([sys.executable, "-m", "flowpilot.cli.main", "audit"], cwd=ROOT, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def produce(settings: Settings, records: Sequence[Record]) -> None:
    """Produce all, and wait for the acknowledgements."""
    producer = KafkaProducer(producer_properties(settings))
    try:
        deliveries = asyncio.run(producer.send(records))
    finally:
        producer.close()
    assert all(delivery.error is None for delivery in deliveries)


@pytest.fixture
def world(full_settings: Settings) -> Iterator[AuditWorld]:
    made = AuditWorld(full_settings.database_url.get_secret_value())
    made.ask("DELETE FROM consumer_offset")
    yield made
    made.close()


@pytest.fixture
def histories(settings: Settings) -> list[Chain]:
    return spread(EXECUTIONS, settings.topics.history, settings.event_partitions)


def portions(histories: list[Chain]) -> Iterator[list[Record]]:
    """All records in twenty parts; some come again, as after an engine's restart."""
    records = list(interleaved(histories))
    size = len(records) // 20 + 1
    again = random.Random(1)
    for start in range(0, len(records), size):
        part = records[start : start + size]
        yield [*part, *again.sample(part, len(part) // 12)]


def stored(world: AuditWorld, number: int) -> None:
    """Wait until that many events are stored."""
    eventually(lambda: world.one("SELECT count(*) FROM audit_event") >= number, 60)


def everything_is_sound(world: AuditWorld, histories: list[Chain]) -> None:
    """Nothing lost, nothing double, nothing different."""
    stored(world, sum(len(history.records) for history in histories))
    assert world.queries.status_counts() == {"completed": len(histories)}
    assert world.one("SELECT count(*) FROM audit_event") == sum(len(history.records) for history in histories)
    assert world.queries.divergences() == []
    assert world.differences() == []


def test_a_killed_writer_loses_and_doubles_nothing(
    full_settings: Settings, world: AuditWorld, histories: list[Chain]
) -> None:
    parts = portions(histories)
    written = 0
    for _ in range(3):
        with writer(full_settings) as process:
            for _ in range(5):
                produce(full_settings, next(parts))
            stored(world, written + 1)
            written = world.one("SELECT count(*) FROM audit_event")
            produce(full_settings, next(parts))
            os.kill(process.pid, signal.SIGKILL)
    with writer(full_settings) as process:
        for part in parts:
            produce(full_settings, part)
        everything_is_sound(world, histories)
        process.terminate()
        assert process.wait(20) == 0


def test_a_frozen_writer_that_wakes_up_writes_nothing(
    full_settings: Settings, world: AuditWorld, histories: list[Chain]
) -> None:
    parts = portions(histories)
    with writer(full_settings) as zombie:
        for _ in range(5):
            produce(full_settings, next(parts))
        stored(world, 1)
        os.kill(zombie.pid, signal.SIGSTOP)  # its session ends, its partitions move
        with writer(full_settings):
            for part in parts:
                produce(full_settings, part)
            # Wakes up while the other one is writing.
            stored(world, sum(len(history.records) for history in histories) // 2)
            os.kill(zombie.pid, signal.SIGCONT)
            everything_is_sound(world, histories)
            assert zombie.poll() is None


def test_postgres_is_killed_under_load(kafka_settings: Settings, histories: list[Chain]) -> None:
    """A server of this test's own: those that are given belong to others."""
    with temporary_services(bootstrap_servers=kafka_settings.bootstrap_servers) as services:
        settings = kafka_settings.model_copy(update={"database_url": SecretStr(services.database_url)})
        world = AuditWorld(services.database_url)
        world.ask("DELETE FROM consumer_offset")
        world.engine.dispose()
        with writer(settings) as process:
            for number, part in enumerate(portions(histories)):
                produce(settings, part)
                if number in (5, 10, 15):
                    died = services.supervisor.restarts("postgres")
                    services.supervisor.kill("postgres", signal.SIGQUIT if number == 10 else signal.SIGKILL)
                    services.supervisor.wait_restarted("postgres", died)
            world.engine.dispose()
            eventually(lambda: _answers(world), 60)
            everything_is_sound(world, histories)
            assert process.poll() is None
        world.close()


def _answers(world: AuditWorld) -> bool:
    try:
        return bool(world.one("SELECT 1"))
    except OperationalError:
        world.engine.dispose()
        return False
