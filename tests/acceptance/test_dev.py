"""`flowpilot dev` as a developer lives with it: one start for most of it, then a kill -9 and the next start."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowpilot.cli.failures import Exit
from flowpilot.local.identity import identity
from flowpilot.local.ports import is_free
from tests.acceptance.running import PATIENCE, ROOT
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

FLOWS = """
from flowpilot import Workflow

greetings = Workflow("greetings", version="1")

@greetings.step
def greet() -> str:
    return "good morning"
"""
COMMAND = (sys.executable, "-m", "flowpilot.cli.main")
START = ("execution", "start", "greetings", "--wait", "--timeout", "60")


class Developer:
    """A folder with a workflow, and one terminal with `flowpilot dev`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.flows = folder / "flows.py"
        self.flows.write_text(FLOWS)
        self.screen = folder / "screen"
        clean = {name: text for name, text in os.environ.items() if not name.startswith("FLOWPILOT_")}
        paths = os.pathsep.join(str(ROOT / part) for part in (".", "agents", "schemas"))
        self.environment = {**clean, "PYTHONPATH": paths}
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self, *options: str) -> None:
        """Start it and wait until it is ready."""
        with self.screen.open("wb") as screen:
            self.process = subprocess.Popen(
                [*COMMAND, "dev", *options],
                cwd=self.folder,
                env=self.environment,
                stdout=screen,
                stderr=screen,
                process_group=0,
            )
        eventually(lambda: self.ended() or "execution list" in self.seen(), PATIENCE, what="ready")
        assert not self.ended(), self.seen()

    def seen(self) -> str:
        """What the terminal shows."""
        return self.screen.read_text()

    def shows(self, *words: str) -> None:
        """Wait until the terminal shows all of `words`."""
        eventually(lambda: all(word in self.seen() for word in words), PATIENCE, what=f"{words} in {self.seen()}")

    def ended(self) -> bool:
        """Whether it ended."""
        return self.process is None or self.process.poll() is not None

    def end(self, number: signal.Signals) -> int:
        """Its exit status after the signal."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def types(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command in another terminal of the same folder."""
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def greeting(self) -> str:
        """The output of a new execution."""
        done = self.types(*START)
        assert done.returncode == Exit.OK, done.stderr
        return str(json.loads(done.stdout))

    def children(self) -> list[int]:
        """The processes that it has started."""
        entries = json.loads((self.folder / ".flowpilot" / "processes.json").read_text())
        assert {"kafka", "postgres", "engine", "router", "audit", "worker", "api"} <= {
            entry["name"] for entry in entries
        }
        return [entry["pid"] for entry in entries]

    def ports(self) -> list[int]:
        """Where its servers listen."""
        text = (self.folder / ".flowpilot" / "dev.env").read_text()
        return [int(port) for port in re.findall(r"(?:127\.0\.0\.1:|API_PORT=)(\d+)", text)]

    def api(self, path: str) -> Any:
        """What the API answers at the address that the terminal shows."""
        [address] = re.findall(r"^  API +(http://\S+) ", self.seen(), re.MULTILINE)
        answer = httpx.get(f"{address}{path}", timeout=PATIENCE)
        assert answer.status_code == 200, answer.text
        return answer.json()


def at_work(folder: Path) -> Iterator[Developer]:
    folder.mkdir()
    person = Developer(folder)
    yield person
    if not person.ended():
        person.end(signal.SIGTERM)


@pytest.fixture
def developer(tmp_path: Path) -> Iterator[Developer]:
    yield from at_work(tmp_path / "here")


@pytest.fixture
def neighbour(tmp_path: Path) -> Iterator[Developer]:
    yield from at_work(tmp_path / "there")


def statuses(rows: Sequence[dict[str, str]]) -> dict[str, str]:
    return {row["check"]: row["status"] for row in rows}


@pytest.mark.timeout(480)
def test_a_day_with_flowpilot_dev(developer: Developer, neighbour: Developer) -> None:
    developer.begin()
    ready = developer.seen().splitlines()[1:]
    assert len(ready) <= 10, ready
    assert any("greetings (flows.py:greetings)" in line for line in ready)

    # Another terminal in the same folder needs no settings, and the API is where it says.
    assert developer.greeting() == "good morning"
    assert developer.api("/readyz")["status"] == "ok"
    assert [row["workflow"] for row in developer.api("/workflows")["items"]] == ["greetings"]
    again = developer.types("dev")
    assert (again.returncode, again.stderr.count("\n")) == (Exit.ERROR, 1), again.stderr
    assert "runs in this folder already" in again.stderr
    shown = json.loads(developer.types("config", "show", "-o", "json").stdout)
    from_dev = {row["name"]: row["value"] for row in shown if row["source"] == ".flowpilot/dev.env"}
    assert ":***@" in from_dev["FLOWPILOT_DATABASE_URL"]

    # A changed step is served, under the version that it has; changed content under one of its own.
    developer.flows.write_text(FLOWS.replace("good morning", "good evening"))
    developer.shows("flows.py changed: serving greetings 1\n")
    assert developer.greeting() == "good evening"
    developer.flows.write_text(FLOWS.replace("def greet", "def salute").replace("good morning", "good night"))
    developer.shows("serving greetings 1+dev.")
    assert developer.greeting() == "good night"

    # A mistake while editing is told once; what was served goes on.
    developer.flows.write_text(FLOWS + "\n1 / 0\n")
    developer.shows("ZeroDivisionError", "the worker goes on with what it had")
    assert developer.greeting() == "good night"

    # Everything is well, and what is not is named with what mends it.
    doctor = developer.types("doctor", "-o", "json")
    found = json.loads(doctor.stdout)
    assert doctor.returncode == Exit.OK, doctor.stdout
    assert {"kafka", "topics", "migrations", "engine", "router", "audit", "queue greetings"} <= set(statuses(found))
    [queue] = json.loads(developer.types("queue", "list", "-o", "json").stdout)
    assert (queue["queue"], queue["worker"], queue["partitions"]) == ("greetings", "worker", [0, 1, 2, 3])

    # A role that dies is started again, and that is told.
    engine = next(
        entry["pid"]
        for entry in json.loads((developer.folder / ".flowpilot" / "processes.json").read_text())
        if entry["name"] == "engine"
    )
    os.kill(engine, signal.SIGKILL)
    developer.shows("engine ended (killed by SIGKILL) and was started again")

    # kill -9 leaves nothing that hinders the next start, which goes on with the same data.
    children, ports = developer.children(), developer.ports()
    assert developer.end(signal.SIGKILL) == -signal.SIGKILL
    eventually(lambda: not any(map(identity, children)), PATIENCE, what="the end of the children")
    lost = developer.types("execution", "list")
    assert lost.returncode == Exit.UNREACHABLE
    assert "`flowpilot dev` is not running in this folder" in lost.stderr
    developer.flows.write_text(FLOWS)
    developer.begin()
    assert developer.ports() == ports
    assert developer.greeting() == "good morning"
    assert developer.api("/readyz")["status"] == "ok"
    assert len(json.loads(developer.types("execution", "list", "-o", "json").stdout)) >= 5

    # A second one, elsewhere, starts beside it; a port that is asked for and taken is one sentence.
    assert len(ports) == 3
    neighbour.begin("--ephemeral")
    assert not set(neighbour.ports()) & set(ports)
    assert neighbour.greeting() == "good morning"
    assert neighbour.api("/executions")["items"][0]["workflow"] == "greetings"
    assert neighbour.end(signal.SIGTERM) == 128 + signal.SIGTERM
    refused = neighbour.types("dev", "--api-port", str(ports[-1]))
    assert refused.returncode == Exit.ERROR
    assert f"the API cannot use port {ports[-1]}: another program has it" in refused.stderr
    assert "Traceback" not in refused.stderr

    # Ctrl-C leaves no process and no port.
    children = developer.children()
    assert developer.end(signal.SIGINT) == Exit.INTERRUPTED
    assert "Traceback" not in developer.seen()
    assert not any(map(identity, children))
    assert all(map(is_free, ports))
