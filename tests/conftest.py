"""Real servers for the tests: those named by FLOWPILOT_TEST_*, else containers, else embedded ones."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Generator, Iterator
from contextlib import ExitStack

import pytest
import structlog
from confluent_kafka.admin import AdminClient
from pydantic import SecretStr

from flowpilot.adapters.kafka.admin import KafkaAdmin
from flowpilot.local.services import LocalServices, temporary_services
from flowpilot.settings import Settings
from tests import planted
from tests.containers import docker_answers, kafka_container, postgres_container


def pytest_configure() -> None:
    """A shell that runs the tests in the background has them ignore SIGINT, and so would all that they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Whatever a test printed, at whichever level, a planted secret in it fails the test."""
    report = yield
    printed = planted.printed_in(report.sections)
    if printed and report.passed:
        report.outcome = "failed"
        report.longrepr = "\n".join(("secrets were printed:", *printed))
    return report


@pytest.fixture(scope="session")
def services() -> Iterator[LocalServices]:
    """Kafka and PostgreSQL for the whole session: `bootstrap_servers`, `database_url`."""
    servers = os.environ.get("FLOWPILOT_TEST_BOOTSTRAP_SERVERS")
    database = os.environ.get("FLOWPILOT_TEST_DATABASE_URL")
    with ExitStack() as stack:
        if not (servers and database) and docker_answers():
            servers = servers or stack.enter_context(kafka_container())
            database = database or stack.enter_context(postgres_container())
        # Starts what is not given. Tests are short: a broker that starts fast beats one that is fast when warm.
        yield stack.enter_context(temporary_services(bootstrap_servers=servers, database_url=database, tiered="c1"))


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A FLOWPILOT_* variable of whoever runs the tests changes none of them."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FLOWPILOT_{name.upper()}", raising=False)


@pytest.fixture(autouse=True)
def _logging_of_the_test_alone() -> Iterator[None]:
    """A command run within a test sets up logging to that test's stderr, which is closed after it."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def settings(services: LocalServices) -> Settings:
    """Settings with a namespace of this test's own; no topic exists yet, and no database is named."""
    return Settings(
        _env_file=None,
        bootstrap_servers=services.bootstrap_servers,
        namespace=f"t{uuid.uuid4().hex[:8]}",
        event_partitions=4,
        step_partitions=4,
    )


@pytest.fixture
def kafka_settings(settings: Settings) -> Iterator[Settings]:
    """`settings` with all core topics created; every topic of the namespace is deleted afterwards."""
    KafkaAdmin(settings).setup()
    yield settings
    delete_topics(settings)


@pytest.fixture
def database_url(services: LocalServices) -> Iterator[str]:
    """The address of a fresh, empty database, dropped afterwards."""
    name = f"t{uuid.uuid4().hex[:8]}"
    yield planted.with_password(services.create_database(name))
    services.drop_database(name)


@pytest.fixture
def full_settings(kafka_settings: Settings, database_url: str) -> Settings:
    """`kafka_settings` with a fresh database in them."""
    return kafka_settings.model_copy(update={"database_url": SecretStr(database_url)})


def delete_topics(settings: Settings) -> None:
    """Delete all topics of the namespace, so that the broker does not carry those of a hundred tests."""
    client = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    prefixes = (f"{settings.namespace}.", f"{settings.namespace}-")
    names = [name for name in client.list_topics(timeout=10).topics if name.startswith(prefixes)]
    if names:
        for deleted in client.delete_topics(names).values():
            deleted.result(10)
