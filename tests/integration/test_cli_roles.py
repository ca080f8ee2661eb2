"""The command line against real servers: set-up, the roles as processes, an execution's whole life."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import uuid
from base64 import b64decode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

import psycopg2
import pytest
from confluent_kafka import Producer
from pydantic import SecretStr

from flowpilot.cli.failures import Exit
from flowpilot.local.ports import free_ports
from flowpilot.local.services import LocalServices
from flowpilot.settings import Settings
from tests.conftest import delete_topics
from tests.waiting import eventually

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]

FLOWS = """
import os
import time
from flowpilot import NonRetryable, Workflow, on_topic

shop = Workflow("shop", version="1", input=dict[str, int], triggers=[on_topic("{topic}")])

@shop.step
def double(input: dict[str, int]) -> int:
    if input["n"] < 0:
        raise NonRetryable("n is negative")
    while input["n"] == 999 or (input["n"] == 998 and not os.path.exists("go")):
        time.sleep(0.05)
    return 2 * input["n"]

@shop.step
def square(double: int) -> int:
    return double * double
"""


class Cli:
    """`flowpilot` in a directory with `flows.py`, with the settings of one test."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        clean = {name: text for name, text in os.environ.items() if not name.startswith("FLOWPILOT_")}
        self.folder = folder
        self.env = {
            **clean,
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "agents", "schemas")),
            "FLOWPILOT_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "FLOWPILOT_DATABASE_URL": settings.database_url.get_secret_value(),
            "FLOWPILOT_NAMESPACE": settings.namespace,
            "FLOWPILOT_EVENT_PARTITIONS": str(settings.event_partitions),
            "FLOWPILOT_STEP_PARTITIONS": "2",
            "FLOWPILOT_ACTOR": "user:tester",
        }

    def __call__(self, *arguments: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self._command(*arguments), capture_output=True, text=True, timeout=90, check=False,
            cwd=self.folder, env={**self.env, **env},
        )  # fmt: skip
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    def at_a_terminal(self, *arguments: str, answer: bytes) -> tuple[int, str]:
        """The command with a terminal for its stdin, and `answer` typed: its exit code, and what it said."""
        master, slave = pty.openpty()
        try:
            os.write(master, answer)
            done = subprocess.run(
                self._command(*arguments), stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, timeout=90, check=False, cwd=self.folder, env=self.env,
            )  # fmt: skip
        finally:
            os.close(slave)
            os.close(master)
        return done.returncode, done.stdout

    @contextmanager
    def role(self, *arguments: str, ready: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
        """The role as a process, from its readiness on stderr to its end by SIGTERM."""
        log = self.folder / f"{arguments[0]}.log"
        with log.open("wb") as to:
            process = subprocess.Popen(
                self._command(*arguments), stdout=subprocess.DEVNULL, stderr=to, cwd=self.folder,
                env={**self.env, **env},
            )  # fmt: skip
        try:
            eventually(lambda: ready in log.read_text() or process.poll() is not None, 60, what=arguments[0])
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                assert process.wait(30) == 0, log.read_text()
            finally:
                process.kill()

    @staticmethod
    def _command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "flowpilot.cli.main", *arguments]


@pytest.fixture
def cli(settings: Settings, services: LocalServices, tmp_path: Path) -> Iterator[Cli]:
    """Nothing is set up yet: not even the database is there."""
    (tmp_path / "flows.py").write_text(FLOWS.format(topic=f"{settings.namespace}-orders"))
    name = f"t{uuid.uuid4().hex[:8]}"
    address = services.create_database(name)
    services.drop_database(name)
    yield Cli(settings.model_copy(update={"database_url": SecretStr(address)}), tmp_path)
    delete_topics(settings)
    services.drop_database(name)


def test_setup_is_idempotent_and_refuses_a_changed_partition_count(cli: Cli) -> None:
    first = json.loads(cli("setup", "-o", "json").stdout)
    assert first["database"]["created"] is True
    assert {topic["outcome"] for topic in first["topics"]} == {"created"}
    again = json.loads(cli("setup", "-o", "json").stdout)
    assert again["database"]["created"] is False
    assert {topic["outcome"] for topic in again["topics"]} == {"unchanged"}
    refused = cli("setup", code=Exit.ERROR, FLOWPILOT_EVENT_PARTITIONS="8")
    assert "fixed for life" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_before_setup_each_command_says_what_is_missing(cli: Cli) -> None:
    missing = cli("execution", "list", code=Exit.UNREACHABLE)
    assert "does not exist" in missing.stderr
    cli("setup")
    assert cli("execution", "list").stderr == "no executions\n"
    assert (
        "no executions of a workflow 'oders'; `flowpilot workflow list`"
        in cli("execution", "list", "--workflow", "oders").stderr
    )
    unknown = cli("execution", "start", "shop", code=Exit.NOT_FOUND)
    assert "there is no workflow 'shop'" in unknown.stderr
    nobody = "6f1c0b1e-0d0f-5d0e-8a53-2f7f4c1f0b11"
    cli("execution", "show", nobody, code=Exit.NOT_FOUND)
    cli("execution", "verify", nobody, code=Exit.NOT_FOUND)


def test_workflows_are_applied_and_listed(cli: Cli) -> None:
    cli("setup")
    applied = json.loads(cli("workflow", "apply", "flows:shop", "-o", "json").stdout)
    assert (applied["workflow"], applied["version"], applied["added"]) == ("shop", "1", True)
    assert json.loads(cli("workflow", "apply", "flows.py:shop", "-o", "json").stdout)["added"] is False
    (listed,) = json.loads(cli("workflow", "list", "-o", "json").stdout)
    assert (listed["workflow"], listed["steps"], listed["queues"]) == ("shop", ["double", "square"], ["shop"])
    (cli.folder / "flows.py").write_text((cli.folder / "flows.py").read_text().replace("square", "cube"))
    conflict = cli("workflow", "apply", "flows:shop", code=Exit.ERROR)
    assert "another version" in conflict.stderr


@pytest.mark.timeout(600)  # some thirty processes of the command line, one after the other
def test_an_execution_through_the_whole_loop(cli: Cli) -> None:
    cli("setup")
    ports = [str(port) for port in free_ports(4)]
    with ExitStack() as roles:
        for port, command, ready in (
            (ports[0], ("engine",), "engine ready"),
            (ports[1], ("router",), "router ready: reading 1 topic"),
            (ports[2], ("audit",), "audit ready"),
            (ports[3], ("worker", "flows:shop"), "worker ready: serving shop"),
        ):
            roles.enter_context(cli.role(*command, ready=ready, FLOWPILOT_METRICS_PORT=port))
        for command in ("engine", "router"):
            taken = cli(command, code=Exit.ERROR, FLOWPILOT_METRICS_PORT=ports[0])
            assert taken.stderr.startswith(f"error: the {command}'s metrics cannot be served on 127.0.0.1:")
            assert taken.stderr.count("\n") == 1

        done = cli("execution", "start", "shop", "--input", '{"n": 3}', "--key", "k", "--wait", "--timeout", "60")
        assert json.loads(done.stdout) == 36
        execution = done.stderr.split()[1]
        again = cli("execution", "start", "flows:shop", "-i", '{"n": 3}', "-k", "k", "--wait", "--timeout", "60")
        assert (json.loads(again.stdout), again.stderr.split()[1]) == (36, execution)
        assert "it was there before; " in again.stderr
        other = cli("execution", "start", "shop", "-i", '{"n": 4}', "-k", "k", "--wait", "--timeout", "60")
        assert (json.loads(other.stdout), "before, with another input" in other.stderr) == (36, True)
        for given, what in (
            ('{"n": 3}', "completed"),
            ('{"n": 4}', "completed, with another input, which it keeps"),
        ):
            start = ("execution", "start", "shop", "-i", given, "-k", "k")
            told = eventually(lambda start=start: (found := cli(*start)).stderr and found, 60)
            assert (told.stdout, f"key 'k' has this execution already ({what}): " in told.stderr) == (
                f"{execution}\n", True,
            )  # fmt: skip
        unknown = cli(*start, FLOWPILOT_DATABASE_URL="postgresql://me@127.0.0.1:1/x")
        assert (unknown.stdout, unknown.stderr) == (f"{execution}\n", "")
        exists = cli(
            *("execution", "start", "shop", "-i", '{"n": 4}', "-k", "k", "--if-exists", "fail"), code=Exit.ERROR
        )
        assert "another input" in exists.stderr

        failed = cli(
            *("execution", "start", "shop", "-i", '{"n": -1}', "--wait", "--timeout", "60"),
            code=Exit.EXECUTION_FAILED,
        )
        assert "n is negative" in failed.stderr
        nothing = cli("execution", "start", "shop", code=Exit.USAGE)
        assert nothing.stderr.endswith("; none was given: --input takes it\n")
        assert failed.stdout == ""

        slow = cli("execution", "start", "shop", "-i", '{"n": 999}', "-o", "json")
        slow_id = json.loads(slow.stdout)["execution"]
        eventually(lambda: slow_id in cli("execution", "list", "--status", "running", "-o", "jsonl").stdout, 60)
        cli("execution", "cancel", slow_id, "--reason", "too slow")
        eventually(lambda: slow_id in cli("execution", "list", "--status", "cancelled", "-o", "jsonl").stdout, 60)
        shown = json.loads(cli("execution", "show", slow_id, "--history", "-o", "json").stdout)
        # What the worker says of it meanwhile (that it has started) may come after, and is ignored.
        [ended] = [event for event in shown["history"] if event["type"] == "ExecutionCancelled"]
        assert (ended["actor"], ended["reason"]) == ("user:tester", "too slow")

        table = cli("execution", "show", execution, "--history").stdout
        assert "square" in table
        assert "ExecutionCompleted" in table
        assert cli("execution", "list", "--workflow", "shop", "--limit", "2").stdout.count("\n") == 3
        assert cli("execution", "verify").stderr == "no differences: the audit is sound\n"

        engine, router, audit, worker = (_scraped(port) for port in ports)
        attempts = 'flowpilot_engine_step_attempts_total{outcome="%s",step="%s",workflow="shop"}'
        assert engine[attempts % ("completed", "square")] == engine[attempts % ("failed", "double")] == 1
        assert 0 < engine["flowpilot_engine_recovery_seconds"] < 60
        partitions = [name for name in engine if name.startswith("flowpilot_engine_running_executions")]
        assert len(partitions) == 4
        assert sum(engine[name] for name in partitions) == 0
        assert "flowpilot_router_batch_records_count" in router
        assert audit["flowpilot_audit_batch_records_sum"] > audit["flowpilot_audit_batch_seconds_count"] > 0
        ran = 'flowpilot_worker_step_run_seconds_count{outcome="completed",step="square",workflow="shop"}'
        assert (worker[ran], worker["flowpilot_worker_slots"]) == (1, 16)


def _scraped(port: str) -> dict[str, float]:
    """The samples that a role serves, by name and labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def _ask(cli: Cli, query: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(cli.env["FLOWPILOT_DATABASE_URL"])
    try:
        with connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()
    finally:
        connection.close()


def test_what_is_registered_is_shown_and_what_would_be_refused_is_said(cli: Cli) -> None:
    cli("setup")
    validate = ("workflow", "validate", "flows:shop", "--registered", "-o", "json")
    assert json.loads(cli(*validate).stdout)[0]["registered"] == "new workflow"
    cli("workflow", "apply", "flows:shop")
    source = (cli.folder / "flows.py").read_text()
    second = source.replace('version="1"', 'version="2"').replace(
        "@shop.step\ndef square", "@shop.step(timeout='5s')\ndef square"
    )
    (cli.folder / "flows.py").write_text(second)
    assert json.loads(cli(*validate).stdout)[0]["registered"] == "new version"
    cli("workflow", "apply", "flows:shop")
    assert json.loads(cli(*validate).stdout)[0]["registered"] == "current"

    (cli.folder / "flows.py").write_text(second.replace("'5s'", "'6s'"))
    [changed] = json.loads(cli(*validate, code=Exit.ERROR).stdout)
    assert changed["registered"] == "changed"
    assert changed["problem"].startswith("workflow 'shop' version '2' is registered with other content: ")
    for refused in (
        ("workflow", "apply", "flows:shop"),
        ("worker", "flows:shop"),
        ("execution", "start", "flows:shop", "-i", '{"n": 1}'),
    ):
        done = cli(*refused, code=Exit.ERROR)
        assert (done.stdout, done.stderr) == ("", f"error: {changed['problem']}\n")

    shown = json.loads(cli("workflow", "show", "shop", "-o", "json").stdout)
    assert (shown["workflow"], shown["version"]) == ("shop", "2")
    assert [(found["version"], found["current"]) for found in shown["versions"]] == [("1", False), ("2", True)]
    assert [(step["name"], step["depends_on"], step["start_to_close_ms"]) for step in shown["steps"]] == [
        ("double", [], 600_000), ("square", ["double"], 5_000),
    ]  # fmt: skip
    assert shown["input_schema"]["type"] == "object"
    table = cli("workflow", "show", "shop", "--version", "1").stdout
    assert "1, 2 (current)" in table
    assert "double\n└─ square\n" in table
    assert (
        "no version '9'; it has 1, 2"
        in cli("workflow", "show", "shop", "--version", "9", code=Exit.NOT_FOUND).stderr
    )
    code, said = cli.at_a_terminal("workflow", "delete", "shop", answer=b"n\n")
    assert code == Exit.ERROR
    assert f"Delete workflow shop (versions 1, 2; triggers on {cli.env['FLOWPILOT_NAMESPACE']}-orders end)?" in said
    assert "nothing was deleted" in said
    cli("workflow", "show", "nobody", code=Exit.NOT_FOUND)
    cli("workflow", "delete", "nobody", "--yes", code=Exit.NOT_FOUND)


@pytest.mark.timeout(600)
def test_a_deleted_workflow_finishes_what_runs_and_stays_deleted(cli: Cli) -> None:
    cli("setup")
    start = ("execution", "start", "shop", "-i", '{"n": 998}', "-o", "json")
    with cli.role("engine", ready="engine ready"), cli.role("audit", ready="audit ready"):
        with cli.role("worker", "flows:shop", ready="worker ready: serving shop"):
            execution = json.loads(cli(*start).stdout)["execution"]
            status = f"select status from workflow_execution where execution_id = '{execution}'"
            eventually(lambda: _ask(cli, status) == [("running",)], 60, what="running")
            assert "shop --yes" in cli("workflow", "delete", "shop", code=Exit.USAGE).stderr
            told = cli("workflow", "delete", "shop", "--yes")
            assert told.stdout == ""
            assert "stays deleted" in told.stderr
            again = cli("workflow", "delete", "shop", "--yes", code=Exit.NOT_FOUND)
            assert again.stderr == (
                "error: workflow 'shop' was deleted; `flowpilot workflow apply MODULE:WORKFLOW` brings it back\n"
            )
            cli(*start, code=Exit.NOT_FOUND)
            cli("execution", "start", "flows:shop", "-i", '{"n": 1}', code=Exit.NOT_FOUND)
            eventually(lambda: _ask(cli, "select count(*) from workflow") == [(0,)], 60, what="rows deleted")
            (cli.folder / "go").touch()
            eventually(lambda: _ask(cli, status) == [("completed",)], 60, what="completed")
        with cli.role("worker", "flows:shop", ready="worker ready: serving shop"):
            assert "workflow 'shop' was deleted" in (cli.folder / "worker.log").read_text()
            assert cli("workflow", "list", "-o", "json").stdout == "[]\n"
            cli("workflow", "apply", "flows:shop")
            done = cli("execution", "start", "shop", "-i", '{"n": 3}', "--wait", "--timeout", "60")
            assert done.stdout == "36\n"
            eventually(lambda: _ask(cli, "select count(*) from workflow") == [(1,)], 60, what="rows are back")
        [shown] = _ask(
            cli, f"select workflow_name, status from workflow_execution where execution_id = '{execution}'"
        )
        assert shown == ("shop", "completed")
    assert cli("execution", "verify").stderr == "no differences: the audit is sound\n"


def test_dead_letters_are_listed_and_shown_without_harm(cli: Cli) -> None:
    cli("setup")
    assert cli("dead-letter", "list").stderr == "no dead letters\n"
    cli("dead-letter", "show", "1", code=Exit.NOT_FOUND)
    topic = f"{cli.env['FLOWPILOT_NAMESPACE']}.triggers"
    hostile = b'{"v": 1, "workflow": "\x1b[2J\xe2\x80\xae\n'
    unknown = b'{"v": 1, "workflow": "nobody"}'
    producer = Producer({"bootstrap.servers": cli.env["FLOWPILOT_BOOTSTRAP_SERVERS"], "log_level": 2})
    for value in (hostile, unknown, hostile):
        producer.produce(topic, value, key=b"\x1b]0;k\x07", partition=0)
    assert producer.flush(30) == 0
    with cli.role("router", ready="router ready"), cli.role("audit", ready="audit ready"):
        eventually(lambda: _ask(cli, "select count(*) from dead_letter") == [(3,)], 60, what="dead letters")
    groups = json.loads(cli("dead-letter", "list", "-o", "json").stdout)
    assert {row["reason"]: (row["count"], row["example"]) for row in groups} == {
        "not_json": (2, f"{topic}/0/2"), "unknown_workflow": (1, f"{topic}/0/1"),
    }  # fmt: skip
    table = cli("dead-letter", "list").stdout.splitlines()
    assert table[0].split() == ["REASON", "COUNT", "NEWEST", "TOPICS", "EXAMPLE"]
    assert len(table) == 3
    one = cli("dead-letter", "list", "--reason", "not_json", "--topic", topic, "--since", "1h", "-n", "1")
    assert one.stdout.count("\n") == 2
    assert one.stderr == "the newest 1 of 2; --limit shows more\n"
    assert cli("dead-letter", "list", "--workflow", "shop").stderr == "no dead letters\n"
    assert cli("dead-letter", "list", "--letters").stdout.count("\n") == 4

    shown = cli("dead-letter", "show", f"{topic}/0/0").stdout
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert r'  {"v": 1, "workflow": "\x1b[2J\u202e' in shown
    assert "  00000000  1b 5d 30 3b 6b 07 " in shown
    assert "publish JSON" in shown
    assert f"{len(hostile)} bytes" in shown
    whole = json.loads(cli("dead-letter", "show", f"{topic}/0/0", "-o", "json").stdout)
    assert b64decode(whole["value_base64"]) == whole["value_text"].encode() == hostile
    raw = cli("dead-letter", "show", str(whole["id"]), "--raw")
    assert raw.stdout.encode() == hostile
    cli("dead-letter", "show", f"{topic}/0/99", code=Exit.NOT_FOUND)
