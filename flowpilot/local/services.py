"""Kafka and PostgreSQL for a developer, the demo and the tests: started here, or given."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from flowpilot.local import databases
from flowpilot.local.jars import ensure_jars
from flowpilot.local.kafka import KafkaBroker, Tiered
from flowpilot.local.postgres import PostgresServer
from flowpilot.local.supervisor import Supervisor
from flowpilot.local.unprivileged import remove_reachable_directory

DATABASE = "flowpilot"


class LocalServices:
    """A broker and a database server with their data in `data_dir`, as a context manager.

    A server that is given (`bootstrap_servers`, `database_url`) is used as it is and not started.
    Data stay after the end, and a later start on the same directory goes on with them. The
    `supervisor` may be given further children; they are stopped before the servers.
    `on_database` is called with the database's address while the broker may still be starting, `start` returns
    after it. Without `kafka_port` and `postgres_port` they listen where they did last time, or on any free port.
    Raises LocalError; StateInUse if another living process runs services on `data_dir`.
    """

    def __init__(
        self,
        data_dir: Path | str,
        *,
        bootstrap_servers: str | None = None,
        database_url: str | None = None,
        tiered: Tiered = "full",
        kafka_port: int | None = None,
        postgres_port: int | None = None,
        on_database: Callable[[str], None] = lambda url: None,
    ) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.bootstrap_servers = bootstrap_servers or ""
        """"127.0.0.1:port" once started."""
        self.database_url = database_url or ""
        """"postgresql://user:password@127.0.0.1:port/flowpilot" once started."""
        self._tiered = tiered
        self._kafka_port, self._postgres_port = kafka_port, postgres_port
        self._on_database = on_database
        self._supervisor: Supervisor | None = None

    @property
    def supervisor(self) -> Supervisor:
        if self._supervisor is None:
            raise RuntimeError("the services are not started: use LocalServices in a with statement")
        return self._supervisor

    def start(self) -> Self:
        """Start what was not given, both servers at the same time, and wait until they answer."""
        if not self.bootstrap_servers:
            ensure_jars()  # first and alone: its progress bar wants the terminal for itself
        self._supervisor = Supervisor(self.data_dir)
        with ThreadPoolExecutor(2) as pool:
            try:
                database = None if self.database_url else pool.submit(self._start_postgres)
                broker = None if self.bootstrap_servers else pool.submit(self._start_kafka)
                if database is not None:
                    self.database_url = database.result()
                if broker is not None:
                    self.bootstrap_servers = broker.result()
            except BaseException:
                self.stop()  # before the pool is waited for: what still starts ends with its child
                raise
        return self

    def stop(self) -> None:
        """Stop everything under the supervisor, the last started first. The data stay."""
        if self._supervisor is not None:
            self._supervisor.stop_all()

    def create_database(self, name: str) -> str:
        """Create a further database on the same server unless it is there; its address."""
        return databases.create_database(self.database_url, name)

    def drop_database(self, name: str) -> None:
        """Drop a database, ending the sessions in it."""
        databases.drop_database(self.database_url, name)

    def _start_kafka(self) -> str:
        return KafkaBroker(self.data_dir / "kafka", tiered=self._tiered, port=self._kafka_port).start(
            self.supervisor
        )

    def _start_postgres(self) -> str:
        server = PostgresServer(self.data_dir / "postgres", port=self._postgres_port).start(self.supervisor)
        url = databases.create_database(server, DATABASE)
        self._on_database(url)
        return url

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.stop()


def remove_data(data_dir: Path | str) -> None:
    """Delete the data of stopped services, wherever they are (see `PostgresServer`)."""
    remove_reachable_directory(Path(data_dir) / "postgres")
    shutil.rmtree(data_dir, ignore_errors=True)


@contextmanager
def temporary_services(
    *, bootstrap_servers: str | None = None, database_url: str | None = None, tiered: Tiered = "full"
) -> Iterator[LocalServices]:
    """Services in a new temporary directory, which is deleted at the end: for tests."""
    directory = Path(tempfile.mkdtemp(prefix="flowpilot-"))
    directory.chmod(0o755)  # so that the database server's user can enter it if this is root
    try:
        with LocalServices(
            directory, bootstrap_servers=bootstrap_servers, database_url=database_url, tiered=tiered
        ) as services:
            yield services
    finally:
        remove_data(directory)
