"""The command line against real servers: set-up, the roles as processes, an execution's whole life."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from flowpilot.cli.failures import Exit
from flowpilot.local.services import LocalServices
from flowpilot.settings import Settings
from tests.conftest import delete_topics
from tests.waiting import eventually

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]

FLOWS = """
import time
from flowpilot import NonRetryable, Workflow, on_topic

shop = Workflow("shop", version="1", input=dict[str, int], triggers=[on_topic("{topic}")])

@shop.step
def double(input: dict[str, int]) -> int:
    if input["n"] < 0:
        raise NonRetryable("n is negative")
    while input["n"] == 999:
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

    @contextmanager
    def role(self, *arguments: str, ready: str) -> Iterator[subprocess.Popen[bytes]]:
        """The role as a process, from its readiness on stderr to its end by SIGTERM."""
        log = self.folder / f"{arguments[0]}.log"
        with log.open("wb") as to:
            process = subprocess.Popen(
                self._command(*arguments), stdout=subprocess.DEVNULL, stderr=to, cwd=self.folder, env=self.env
            )
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
    with ExitStack() as roles:
        roles.enter_context(cli.role("engine", ready="engine ready"))
        roles.enter_context(cli.role("router", ready="router ready: reading 1 topic"))
        roles.enter_context(cli.role("audit", ready="audit ready"))
        roles.enter_context(cli.role("worker", "flows:shop", ready="worker ready: serving shop"))

        done = cli("execution", "start", "shop", "--input", '{"n": 3}', "--key", "k", "--wait", "--timeout", "60")
        assert json.loads(done.stdout) == 36
        execution = done.stderr.split()[1]
        again = cli("execution", "start", "flows:shop", "-i", '{"n": 3}', "-k", "k", "--wait", "--timeout", "60")
        assert (json.loads(again.stdout), again.stderr.split()[1]) == (36, execution)
        exists = cli(
            *("execution", "start", "shop", "-i", '{"n": 4}', "-k", "k", "--if-exists", "fail"), code=Exit.ERROR
        )
        assert "another input" in exists.stderr

        failed = cli(
            *("execution", "start", "shop", "-i", '{"n": -1}', "--wait", "--timeout", "60"),
            code=Exit.EXECUTION_FAILED,
        )
        assert "n is negative" in failed.stderr
        assert failed.stdout == ""

        slow = cli("execution", "start", "shop", "-i", '{"n": 999}', "-o", "json")
        slow_id = json.loads(slow.stdout)["execution"]
        eventually(lambda: slow_id in cli("execution", "list", "--status", "running", "-o", "jsonl").stdout, 60)
        cli("execution", "cancel", slow_id, "--reason", "too slow")
        eventually(lambda: slow_id in cli("execution", "list", "--status", "cancelled", "-o", "jsonl").stdout, 60)
        shown = json.loads(cli("execution", "show", slow_id, "--history", "-o", "json").stdout)
        ended = shown["history"][-1]
        assert (ended["type"], ended["actor"], ended["reason"]) == (
            "ExecutionCancelled", "user:tester", "too slow",
        )  # fmt: skip

        table = cli("execution", "show", execution, "--history").stdout
        assert "square" in table
        assert "ExecutionCompleted" in table
        assert cli("execution", "list", "--workflow", "shop", "--limit", "2").stdout.count("\n") == 3
        assert cli("execution", "verify").stderr == "no differences: the audit is sound\n"
