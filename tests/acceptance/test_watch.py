"""`flowpilot execution watch` and `show` on a running system: what a pipe and a terminal get, how they end."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flowpilot.cli.failures import Exit
from tests.acceptance.running import PATIENCE, RunningSystem
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

CUT = """
    select pg_terminate_backend(pid) from pg_stat_activity
    where application_name = 'flowpilot-watch' and datname = current_database()
"""


def test_an_execution_is_watched_to_its_end_in_a_pipe_and_on_a_terminal(
    system: RunningSystem, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    started = Terminal(system, "execution", "start", "steady", "-i", f'"{gate}"')
    assert started.end() == Exit.OK
    execution = started.screen.split()[0]
    assert f"`flowpilot execution watch {execution}` follows it" in started.screen
    system.told(execution, "StepStarted")
    late = system.cli("execution", "watch", execution, "--timeout", "0", code=Exit.TIMED_OUT)
    assert "it goes on" in late.stderr

    left = Terminal(system, "execution", "watch", execution)
    left.until("0 of 2 steps ended")
    left.process.send_signal(signal.SIGINT)
    assert left.end() == Exit.INTERRUPTED
    assert f"execution {execution} goes on" in left.screen

    terminal = Terminal(system, "execution", "watch", execution)
    terminal.until("hold")
    watching = system.cli_process("execution", "watch", execution)
    try:
        assert watching.stdout is not None
        assert f"execution {execution}  begun" in watching.stdout.readline()
        system.ask(CUT)
        assert watching.stderr is not None
        assert "trying again" in watching.stderr.readline()
        assert watching.stderr.readline() == "PostgreSQL answers again\n"
        gate.touch()
        rest, said = watching.communicate(timeout=PATIENCE)
    finally:
        watching.kill()
    assert (watching.returncode, said) == (Exit.OK, "")
    lines = rest.splitlines()
    assert {tuple(line.split("  ")[1:3]) for line in lines} >= {("hold", "completed"), ("brief", "completed")}
    assert "execution completed" in lines[-1]
    assert lines[-1].endswith("2 of 2 steps ended")
    assert "\x1b" not in rest

    assert terminal.end() == Exit.OK
    assert "2 of 2 steps ended" in terminal.screen
    assert "└─ brief" in terminal.screen
    shown = system.cli("execution", "show", execution).stdout
    assert "\n└─ brief  completed  " in shown


def test_how_a_watched_execution_ended_is_the_exit_code(system: RunningSystem) -> None:
    start = system.cli("execution", "start", "shop", "-i", '{"n": -1}')
    assert start.stderr == ""  # what to type next is said to a terminal alone
    failing = start.stdout.strip()
    failed = system.cli("execution", "watch", failing, code=Exit.EXECUTION_FAILED)
    assert "double  failed  " in failed.stdout
    assert "step double: NonRetryable: n is negative" in failed.stderr
    lingering = system.cli("execution", "start", "lingering").stdout.strip()
    system.cli("execution", "cancel", lingering, "--reason", "seen enough")
    cancelled = system.cli("execution", "watch", lingering, code=Exit.CANCELLED)
    assert "seen enough" in cancelled.stderr
    nobody = "6f1c0b1e-0d0f-5d0e-8a53-2f7f4c1f0b11"
    unknown = system.cli("execution", "watch", nobody, "--timeout", "0.5", code=Exit.NOT_FOUND)
    assert (unknown.stdout, unknown.stderr.count("\n")) == ("", 1)
    assert "flowpilot execution list" in unknown.stderr
    system.cli("execution", "watch", "nonsense\x1b", code=Exit.USAGE)


class Terminal:
    """A command on a terminal of 80 columns, and all that it wrote there."""

    def __init__(self, system: RunningSystem, *arguments: str) -> None:
        self._ours, its = pty.openpty()
        os.set_blocking(self._ours, False)
        environment = {**os.environ, **system.environment, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flowpilot.cli.main", *arguments],
            cwd=system.cwd,
            env=environment,
            stdin=its,
            stdout=its,
            stderr=its,
        )
        os.close(its)
        self.screen = ""

    def until(self, text: str) -> None:
        """Read on until `text` was written."""
        eventually(lambda: text in self._read(), PATIENCE, what=text)

    def end(self) -> int:
        """The exit code, once the command has ended."""
        eventually(lambda: self._read() and self.process.poll() is not None, PATIENCE)
        self._read()
        os.close(self._ours)
        return self.process.returncode

    def _read(self) -> str:
        try:
            while data := os.read(self._ours, 65_536):
                self.screen += data.decode(errors="replace")
        except OSError:  # nothing at present, or its end is closed
            pass
        return self.screen
