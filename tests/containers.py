"""Kafka and PostgreSQL in containers, where a Docker engine answers.

What they are started with is declared here, once: `docker-compose.yml` says the same, and a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flowpilot.local.kafka import PROPERTIES
from flowpilot.local.ports import LOOPBACK, free_ports
from tests.waiting import eventually

KAFKA_IMAGE = "apache/kafka:4.4.0"
KAFKA_PORT = 9092
KAFKA_DATA = "/var/lib/kafka/data"
# For other containers, under the name that compose gives the broker.
KAFKA_INSIDE = "kafka:19092"
POSTGRES_IMAGE = "postgres:18-alpine"
POSTGRES_PORT = 5432
POSTGRES_DATA = "/var/lib/postgresql"
POSTGRES_ENVIRONMENT = {"POSTGRES_DB": "flowpilot", "POSTGRES_USER": "flowpilot", "POSTGRES_PASSWORD": "flowpilot"}


def kafka_environment(port: int = KAFKA_PORT) -> dict[str, str]:
    """The embedded broker's properties as the image takes them, for a container whose `port` is published on
    127.0.0.1. One variable of this kind makes the image ignore its own configuration: all are given.
    """
    text = PROPERTIES.format(host=LOOPBACK, port=port, cport=9093, data=KAFKA_DATA)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    properties = dict(line.split("=", 1) for line in lines)
    # The image formats its storage for voters that are named, and cannot be told to do it otherwise.
    quorum = properties.pop("controller.quorum.bootstrap.servers")
    properties["controller.quorum.voters"] = f"1@{quorum}"
    inside = KAFKA_INSIDE.rpartition(":")[2]
    properties["listeners"] = f"PLAINTEXT://0.0.0.0:{port},INSIDE://0.0.0.0:{inside},CONTROLLER://{quorum}"
    properties["advertised.listeners"] = f"PLAINTEXT://{LOOPBACK}:{port},INSIDE://{KAFKA_INSIDE}"
    properties["listener.security.protocol.map"] += ",INSIDE:PLAINTEXT"
    return {f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in properties.items()}


def docker_answers() -> bool:
    """Whether there is an engine to start containers on."""
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=2)
    except DockerException:
        return False
    try:
        return bool(client.ping())
    except (DockerException, OSError):
        return False
    finally:
        client.close()


@contextmanager
def kafka_container() -> Iterator[str]:
    """A broker; gives its bootstrap servers."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient
    from testcontainers.core.container import DockerContainer

    [port] = free_ports(1)
    container = DockerContainer(KAFKA_IMAGE, env=kafka_environment(port)).with_bind_ports(port, (LOOPBACK, port))
    with container:
        servers = f"{LOOPBACK}:{port}"
        client = AdminClient({"bootstrap.servers": servers, "log_level": 2})

        def answers() -> bool:
            try:
                return bool(client.list_topics(timeout=1).brokers)
            except KafkaException:
                return False

        eventually(answers, 60, what="the broker in its container answers")
        yield servers


@contextmanager
def postgres_container() -> Iterator[str]:
    """A database server; gives the address of a database on it."""
    from testcontainers.community.postgres import PostgresContainer

    names = {"POSTGRES_DB": "dbname", "POSTGRES_USER": "username", "POSTGRES_PASSWORD": "password"}
    arguments = {names[variable]: value for variable, value in POSTGRES_ENVIRONMENT.items()}
    with PostgresContainer(POSTGRES_IMAGE, port=POSTGRES_PORT, driver=None, **arguments) as container:
        yield container.get_connection_url()
