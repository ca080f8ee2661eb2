"""The embedded services: real Kafka, real PostgreSQL, real kills."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from flowpilot.local.identity import identity
from flowpilot.local.services import LocalServices, remove_data
from flowpilot.local.unprivileged import server_user

pytestmark = pytest.mark.integration


@pytest.fixture
def data_dir() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="flowpilot-test-"))
    directory.chmod(0o755)
    yield directory
    remove_data(directory)


def create_topic(bootstrap_servers: str, name: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(30)


def topics(bootstrap_servers: str, timeout: float = 30) -> set[str]:
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    return set(admin.list_topics(timeout=timeout).topics)


def query(database_url: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(database_url, connect_timeout=10)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


def wait_for_sql(database_url: str, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            assert query(database_url, "SELECT 1") == [(1,)]
            return
        except psycopg2.OperationalError:
            assert time.monotonic() < deadline, "the database did not come back"
            time.sleep(0.05)


def port_of(address: str) -> int:
    return int(re.findall(r":(\d+)", address)[-1])


def pids_of(services: LocalServices) -> list[int]:
    return [services.supervisor.pid(name) or 0 for name in services.supervisor.names()]


def wait_gone(pids: list[int], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while alive := [pid for pid in pids if identity(pid) is not None]:
        assert time.monotonic() < deadline, f"still alive: {alive}"
        time.sleep(0.02)


def processes_on(directory: Path) -> list[str]:
    """Command lines of living processes that name the directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(directory) in line and identity(int(entry.name)) is not None:
            found.append(line)
    return found


def test_they_start_survive_kills_stop_and_keep_their_data(data_dir: Path) -> None:
    with LocalServices(data_dir) as services:
        assert services.bootstrap_servers.startswith("127.0.0.1:")
        assert services.database_url.endswith("/flowpilot")
        create_topic(services.bootstrap_servers, "kept")
        query(services.database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert query(services.create_database("further"), "SELECT current_database()") == [("further",)]
        assert query(services.create_database("further"), "SELECT 1") == [(1,)]  # again, without harm
        first = (services.bootstrap_servers, services.database_url)

        supervisor = services.supervisor
        supervisor.kill("kafka")
        supervisor.kill("postgres")
        supervisor.wait_restarted("kafka", 0)
        supervisor.wait_restarted("postgres", 0)
        wait_for_sql(services.database_url)
        assert "kept" in topics(services.bootstrap_servers)
        assert (supervisor.restarts("kafka"), supervisor.restarts("postgres")) == (1, 1)
        pids = pids_of(services)
    wait_gone(pids, timeout=0)
    if sys.platform == "linux":
        assert processes_on(data_dir) == []

    # If others have the ports by now, both servers move and the data stay.
    taken = [socket.create_server(("127.0.0.1", port_of(address))) for address in first]
    try:
        with LocalServices(data_dir) as services:
            assert services.bootstrap_servers != first[0]
            assert services.database_url != first[1]
            assert "kept" in topics(services.bootstrap_servers)
            create_topic(services.bootstrap_servers, "after-the-move")
            assert query(services.database_url, "SELECT answer FROM kept") == [(42,)]
            second = (services.bootstrap_servers, services.database_url)
    finally:
        for holder in taken:
            holder.close()
    with LocalServices(data_dir) as services:
        assert (services.bootstrap_servers, services.database_url) == second


OWNER = """
import sys, time
from flowpilot.local.services import LocalServices
services = LocalServices(sys.argv[1])
services.start()
print(services.bootstrap_servers, services.database_url, flush=True)
print(*(services.supervisor.pid(name) for name in services.supervisor.names()), flush=True)
time.sleep(600)
"""


def test_a_start_follows_at_once_on_a_kill_of_the_owner(data_dir: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(data_dir)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        bootstrap_servers, database_url = owner.stdout.readline().split()
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        create_topic(bootstrap_servers, "kept")
        query(database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
    finally:
        owner.kill()
        owner.wait()
    with LocalServices(data_dir) as services:
        wait_gone(pids, timeout=0)
        assert "kept" in topics(services.bootstrap_servers)
        assert query(services.database_url, "SELECT answer FROM kept") == [(42,)]


def test_ctrl_c_during_the_start_leaves_nothing(data_dir: Path) -> None:
    command = [sys.executable, "-m", "flowpilot.local", "up", "--data", str(data_dir)]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0)
    log = data_dir / "logs" / "kafka.log"  # the broker's process is there, but does not answer yet
    deadline = time.monotonic() + 60
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=30) == 130
    assert run.stderr is not None
    assert "Traceback" not in run.stderr.read()
    if sys.platform == "linux":
        assert processes_on(data_dir) == []


def test_a_server_that_nobody_supervises_is_recognised(data_dir: Path) -> None:
    given = "kafka.example:9092"
    with LocalServices(data_dir, bootstrap_servers=given) as services:
        pid = services.supervisor.pid("postgres") or 0
        arguments = (Path("/proc") / str(pid) / "cmdline").read_bytes().decode().split("\0")[:-1]
    user = server_user() or (None, None)
    alone = subprocess.Popen(arguments, user=user[0], group=user[1], stderr=subprocess.DEVNULL)
    try:
        wait_for_sql(services.database_url)
        with LocalServices(data_dir, bootstrap_servers=given) as services:
            assert alone.wait(timeout=10) == 0
            assert query(services.database_url, "SELECT 1") == [(1,)]
    finally:
        alone.kill()
        alone.wait()


def test_given_servers_are_used_and_nothing_is_started(data_dir: Path) -> None:
    given = {"bootstrap_servers": "kafka.example:9092", "database_url": "postgresql://db.example/x"}
    with LocalServices(data_dir, **given) as services:
        assert services.supervisor.names() == []
        assert services.bootstrap_servers == given["bootstrap_servers"]
        assert services.database_url == given["database_url"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run the server as another user")
def test_below_a_private_folder_root_keeps_the_database_elsewhere(data_dir: Path) -> None:
    private = data_dir / "private"
    private.mkdir(mode=0o700)
    given = "kafka.example:9092"
    with LocalServices(private / "data", bootstrap_servers=given) as services:
        query(services.database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
    elsewhere = Path((private / "data" / "postgres" / "location").read_text().strip())
    assert (elsewhere / "data" / "PG_VERSION").exists()
    with LocalServices(private / "data", bootstrap_servers=given) as services:
        assert query(services.database_url, "SELECT answer FROM kept") == [(42,)]
    remove_data(private / "data")
    assert not elsewhere.exists()
