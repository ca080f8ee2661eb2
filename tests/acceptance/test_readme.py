"""The README's code and commands run as they stand there, and print what it shows."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.acceptance.running import PATIENCE, ROOT
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What differs from run to run, in the order in which it is looked for.
VARIES = [
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"\b\d{4}-\d\d-\d\dT[\d:.]+Z?"), "<time>"),
    (re.compile(r"\bin \d+\.\d+s\b"), "in <seconds>"),
    (re.compile(r"\s+"), " "),
]


class Block(NamedTuple):
    """A fenced block and its language."""

    language: str
    text: str


def blocks() -> list[Block]:
    """The fenced blocks of the README, in their order."""
    return [Block(*found) for found in FENCED.findall((ROOT / "README.md").read_text())]


def masked(text: str) -> str:
    """One line without what varies."""
    for pattern, mark in VARIES:
        text = pattern.sub(mark, text)
    return text.strip()


class Shell:
    """A user's terminals in a directory of his own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[tuple[str, subprocess.Popen[bytes], Path]] = []
        clean = {name: text for name, text in os.environ.items() if not name.startswith("FLOWPILOT_")}
        tools = Path(sys.executable).parent
        self._environment = {
            **clean,
            "PATH": f"{tools}{os.pathsep}{clean.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "agents", "schemas")),
        }

    def type(self, command: str) -> str:
        """What one command prints, on stdout and stderr; "" for `flowpilot dev`, which goes on."""
        words = shlex.split(command, comments=True)
        if words[0] == "make":  # the project's own targets: there, but not run inside a test
            self._run(f"make --dry-run --directory={shlex.quote(str(ROOT))} {shlex.join(words[1:])}")
        elif words == [".", ".venv/bin/activate"]:
            self._run("command -v flowpilot")  # it is what this shell's PATH does
        elif words == ["flowpilot", "dev"]:
            self._start(words)
        else:
            return self._run(command)
        return ""

    def await_ready(self) -> None:
        """What was started has said that it is ready."""
        for name, process, log in self._started:
            eventually(lambda log=log: " ready" in log.read_text(), PATIENCE, what=f"{name}: {log.read_text()}")
            assert process.poll() is None

    def close(self) -> None:
        """End what was started, as Ctrl-C does."""
        for _, process, _ in self._started:
            process.send_signal(signal.SIGTERM)
        for _, process, _ in self._started:
            try:
                process.wait(30)
            finally:
                process.kill()

    def _run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def _start(self, words: list[str]) -> None:
        log = self.folder / f"{len(self._started)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                words, cwd=self.folder, env=self._environment, stdout=output, stderr=subprocess.STDOUT
            )
        self._started.append((shlex.join(words), process, log))


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    try:
        yield shell
    finally:
        shell.close()


def test_the_readme_does_what_it_says(shell: Shell) -> None:
    found = blocks()
    assert "python" in [block.language for block in found]
    assert "console" in [block.language for block in found]
    for block in found:
        if block.language == "python":
            name = re.match(r"# (\w+\.py)\n", block.text)
            assert name, "the first line of a Python block is not its file's name"
            (shell.folder / name[1]).write_text(block.text)
        elif block.language == "bash":
            for command in block.text.splitlines():
                if command and not command.startswith("#"):
                    shell.type(command)
        elif block.language == "console":
            shell.await_ready()
            for command, shown in conversation(block.text):
                prints(shell, command, shown)


def conversation(text: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines shown below it."""
    said: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            said.append((line[2:], []))
        else:
            said[-1][1].append(line)
    return said


def prints(shell: Shell, command: str, shown: list[str]) -> None:
    """The command prints every line that is shown. The audit follows by a moment: one that reads it looks again."""
    wanted = [masked(line) for line in shown if line.strip()]
    assert wanted, f"nothing is shown below {command}"

    def missing() -> list[str]:
        printed = [masked(line) for line in shell.type(command).splitlines()]
        return [line for line in wanted if line not in printed]

    if "start" in shlex.split(command):
        assert missing() == []
    else:
        eventually(lambda: not missing(), PATIENCE, what=f"{command} prints {wanted}")
