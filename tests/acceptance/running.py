"""FlowPilot as a user runs it: each role a process of the command line, on the session's Kafka and PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE, CompletedProcess, Popen
from typing import Any, NamedTuple

import psycopg2
import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from flowpilot.adapters.kafka.config import reader_properties
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.cli.failures import Exit
from flowpilot.local.services import LocalServices
from flowpilot.local.system import LocalSystem
from flowpilot.ports.log import Fetched
from flowpilot.settings import Settings
from flowpilot_schemas.ids import keyed_execution_id
from tests import planted
from tests.conftest import delete_topics
from tests.lines import whole_lines
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


class Place(NamedTuple):
    """Where a record is."""

    topic: str
    partition: int
    offset: int


class Ended(NamedTuple):
    """How an execution ended, by the audit record."""

    status: str
    output: Any
    errors: dict[str, Any] | None
    reason: str | None


class RunningSystem(LocalSystem):
    """The roles, and what a test asks them: the command line, Kafka as any client sees it, the audit by SQL."""

    def __init__(self, services: LocalServices, settings: Settings, folder: Path, more: Mapping[str, str]) -> None:
        self.settings, self.namespace = settings, settings.namespace
        self.calls_file = folder / "calls"
        self.calls_file.touch()
        path = os.pathsep.join(str(ROOT / part) for part in (".", "agents", "schemas"))
        environment = {
            "PYTHONPATH": path,
            "FLOWPILOT_NAMESPACE": settings.namespace,
            "FLOWPILOT_EVENT_PARTITIONS": str(settings.event_partitions),
            "FLOWPILOT_STEP_PARTITIONS": str(settings.step_partitions),
            "FLOWPILOT_ACTOR": "user:tester",
            "ACCEPTANCE_CALLS": str(self.calls_file),
        }
        super().__init__(services, environment={**planted.ENVIRONMENT, **environment, **more}, cwd=folder)
        self._servers: dict[str, Any] = {
            "bootstrap.servers": services.bootstrap_servers,
            "log_level": 2,  # these clients outlive the broker by a moment
        }
        self._producer = Producer(
            {**self._servers, "message.max.bytes": 8_000_000, "partitioner": "murmur2_random"}
        )
        self._admin = AdminClient(self._servers)
        self._audit = psycopg2.connect(services.database_url)
        self._audit.autocommit = True

    def close(self) -> None:
        """Let go of the database."""
        self._audit.close()

    # The command line

    def cli(self, *arguments: str, code: Exit = Exit.OK, **environment: str) -> CompletedProcess[str]:
        """A command to its end, which has to be `code`; with `environment` over that of the roles."""
        other = LocalSystem(self.services, environment={**self.environment, **environment}, cwd=self.cwd)
        done = other.run(*arguments, check=False, timeout=PATIENCE)
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        assert planted.printed_in([("stdout", done.stdout), ("stderr", done.stderr)]) == []
        return done

    def cli_process(self, *arguments: str) -> Popen[str]:
        """A command that goes on, its output in pipes."""
        command = [sys.executable, "-m", "flowpilot.cli.main", *arguments]
        environment = {**os.environ, **self.environment}
        return Popen(command, cwd=self.cwd, env=environment, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)

    def cli_json(self, *arguments: str) -> Any:
        """What a command prints with `-o json`."""
        return json.loads(self.cli(*arguments, "-o", "json").stdout)

    def start_roles(self, workflows: Sequence[str], *, concurrency: int = 16) -> None:
        """Set up, and start one process of every role, all at the same time, as any order is allowed."""
        self.run("setup")
        roles = [
            ("engine", "engine"),
            ("router", "router"),
            ("audit", "audit"),
            ("worker-1", "worker", *workflows, "--concurrency", str(concurrency)),
        ]
        with ThreadPoolExecutor(len(roles)) as pool:
            for started in [pool.submit(self.start, *role, ready_timeout=PATIENCE) for role in roles]:
                started.result()

    def printed_secrets(self) -> list[str]:
        """The lines of its processes' logs that have a planted secret."""
        logs = [self.supervisor.log_path(name) for name in self.supervisor.names()]
        return planted.printed_in([(log.name, log.read_text(errors="replace")) for log in logs if log.exists()])

    def restarts(self) -> dict[str, int]:
        """How often each role was started again."""
        return {name: self.supervisor.restarts(name) for name in self.supervisor.names()}

    # Kafka

    def create_topic(self, name: str, config: dict[str, str] | None = None) -> None:
        """A topic of a user's, with 4 partitions."""
        for created in self._admin.create_topics([NewTopic(name, 4, 1, config=config or {})]).values():
            created.result(30)

    def delete_topic(self, name: str) -> None:
        """A topic of a user's, and its records."""
        for deleted in self._admin.delete_topics([name]).values():
            deleted.result(30)

    def publish(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: str | None = None,
        partition: int = -1,
        headers: Mapping[str, bytes] | None = None,
    ) -> Place:
        """A record, once the broker has it."""
        return self.publish_all(topic, [value], key=key, partition=partition, headers=headers)[0]

    def publish_all(
        self,
        topic: str,
        values: Iterable[bytes | None],
        *,
        key: str | None = None,
        partition: int = -1,
        headers: Mapping[str, bytes] | None = None,
    ) -> list[Place]:
        """Records, in their order, once the broker has all of them."""
        places: dict[int, Place] = {}

        def delivered(error: object, message: Message, number: int) -> None:
            assert error is None, error
            places[number] = Place(topic, message.partition() or 0, message.offset() or 0)

        for number, value in enumerate(values):
            self._producer.produce(
                topic,
                value,
                key=key,
                partition=partition,
                headers=dict(headers or {}),
                on_delivery=partial(delivered, number=number),
            )
        assert self._producer.flush(30) == 0
        return [places[number] for number in range(len(places))]

    def records(self, topic: str) -> list[Fetched]:
        """Every record of a topic."""
        return asyncio.run(self._records(topic))

    async def _records(self, topic: str) -> list[Fetched]:
        reader = KafkaReader(reader_properties(self.settings))
        try:
            found: list[Fetched] = []
            for partition in range(4):
                first, end = await reader.bounds(topic, partition)
                found += await reader.read(topic, partition, first, end)
            return found
        finally:
            reader.close()

    def trigger(self, workflow: str, input: Any = None, key: str | None = None) -> str:
        """Start an execution by a record on the topic of triggers; its id."""
        key = key or f"k-{uuid.uuid4()}"
        record = {"v": 1, "workflow": workflow, "key": key, "input": input}
        self.publish(self.settings.topics.triggers, json.dumps(record).encode(), key=key)
        return keyed_execution_id(workflow, key)

    # The audit record

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with self._audit.cursor() as cursor:
            cursor.execute(query, values)
            return cursor.fetchall() if cursor.description else []

    def ended(self, execution: str) -> Ended:
        """How the execution ended, once it has."""
        query = """
            select status, output, errors, reason from workflow_execution
            where execution_id = %s and status not in ('running', 'unknown')
        """
        [row] = eventually(lambda: self.ask(query, execution), PATIENCE, what=f"the end of {execution}")
        return Ended(*row)

    def history(self, execution: str) -> list[dict[str, Any]]:
        """Its history events so far."""
        found = self.ask("select body from audit_event where execution_id = %s order by run, seq", execution)
        return [json.loads(bytes(body)) for (body,) in found]

    def told(self, execution: str, kind: str, count: int = 1) -> list[dict[str, Any]]:
        """Its history events of one type, once there are `count`."""

        def there() -> list[dict[str, Any]]:
            found = [event for event in self.history(execution) if event["type"] == kind]
            return found if len(found) >= count else []

        return eventually(there, PATIENCE, what=f"{count} {kind} of {execution}")

    def dead_letters(self, places: Sequence[Place]) -> dict[Place, str]:
        """The reasons of the dead letters that these records became so far."""
        [topic] = {place.topic for place in places}
        query = 'select topic, partition, "offset", reason from dead_letter where topic = %s'
        found = {Place(*place): reason for *place, reason in self.ask(query, topic)}
        return {place: found[place] for place in places if place in found}

    # Handlers

    def calls(self) -> list[str]:
        """The lines that handlers have noted."""
        return whole_lines(self.calls_file)


@contextmanager
def prepared_system(
    services: LocalServices, folder: Path, environment: Mapping[str, str]
) -> Iterator[RunningSystem]:
    """A system with a namespace and a database of its own, of which nothing runs yet."""
    settings = Settings(
        _env_file=None,
        bootstrap_servers=services.bootstrap_servers,
        namespace=f"a{uuid.uuid4().hex[:8]}",
        event_partitions=4,
        step_partitions=4,
    )
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in Settings.model_fields:  # what a developer has set is no part of a test
            patch.delenv(f"FLOWPILOT_{name.upper()}", raising=False)
        database = planted.with_password(services.create_database(settings.namespace))
        stack.callback(services.drop_database, settings.namespace)
        stack.callback(delete_topics, settings)
        own = LocalServices(
            folder / "services", bootstrap_servers=services.bootstrap_servers, database_url=database
        )
        stack.enter_context(own)
        system = RunningSystem(own, settings, folder, environment)
        stack.callback(system.close)
        yield system
        assert system.printed_secrets() == []


@contextmanager
def running_system(
    services: LocalServices,
    folder: Path,
    workflows: Sequence[str],
    environment: Mapping[str, str],
    *,
    concurrency: int = 16,
) -> Iterator[RunningSystem]:
    """`prepared_system` with every role started; at the end its audit has to be in order."""
    with prepared_system(services, folder, environment) as system:
        system.start_roles(workflows, concurrency=concurrency)
        yield system
