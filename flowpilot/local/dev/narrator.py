"""What a developer is told of the processes: their output where it is wanted, and every death."""

from __future__ import annotations

import signal
from collections.abc import Callable, Container
from pathlib import Path

from flowpilot.local.errors import LocalError
from flowpilot.local.supervisor import Supervisor

Say = Callable[[str], None]

TAIL_LINES = 12
# One look takes at most so much of a log; the rest follows with the next.
_MOST_BYTES = 1 << 16


class Narrator:
    """Follows the logs of `followed` children line by line; of the others it shows the last lines when they end."""

    def __init__(self, supervisor: Supervisor, followed: Container[str], say: Say) -> None:
        self._supervisor = supervisor
        self._followed = followed
        self._say = say
        self._read: dict[str, int] = {}
        self._restarts: dict[str, int] = {}
        self._tails: dict[str, list[str]] = {}

    def tell(self) -> None:
        """Say what happened since the last call."""
        for name in self._supervisor.names():
            try:
                restarts, status = self._supervisor.restarts(name), self._supervisor.exit_status(name)
            except LocalError:  # it was stopped meanwhile, by us
                continue
            if name in self._followed:
                self._follow(name)
            if restarts > self._restarts.get(name, 0) and status is not None:
                self._tell_death(name, status)
            self._restarts[name] = restarts

    def begin(self, name: str) -> None:
        """A child starts anew: what its log holds already was told, and its restarts count from 0."""
        log = self._supervisor.log_path(name)
        self._read[name] = log.stat().st_size if log.exists() else 0
        self._restarts[name] = 0

    def _follow(self, name: str) -> None:
        log = self._supervisor.log_path(name)
        if not log.exists():
            return
        with log.open("rb") as stream:
            stream.seek(self._read.get(name, 0))
            whole, newline, _ = stream.read(_MOST_BYTES).rpartition(b"\n")
        self._read[name] = self._read.get(name, 0) + len(whole) + len(newline)
        for line in whole.decode(errors="replace").splitlines():
            if not _is_ready(name, line):
                self._say(f"{name} | {line}")

    def _tell_death(self, name: str, status: int) -> None:
        self._say(f"{name} ended ({_status(status)}) and was started again")
        # What somebody killed has said nothing about it.
        if name in self._followed or status == -signal.SIGKILL:
            return
        tail = [line for line in last_lines(self._supervisor.log_path(name)) if not _is_ready(name, line)]
        if tail != self._tails.get(name):
            for line in tail:
                self._say(f"{name} | {line}")
        self._tails[name] = tail


def _is_ready(name: str, line: str) -> bool:
    return line.startswith(f"{name} ready")


def last_lines(log: Path) -> list[str]:
    """The end of a log."""
    if not log.exists():
        return []
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _MOST_BYTES))
        return stream.read().decode(errors="replace").splitlines()[-TAIL_LINES:]


def _status(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
