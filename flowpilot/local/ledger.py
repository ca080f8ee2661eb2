"""Which child processes a supervisor has, on disk: what the next one needs after a kill -9 of this one."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from flowpilot.local.errors import StateInUse
from flowpilot.local.identity import identity, marked, stop_process


@dataclass(frozen=True)
class Entry:
    """One started process. `who` is its `identity()`, `token` the value of its mark."""

    name: str
    pid: int
    who: str
    token: str
    stop_signal: int
    grace: float  # seconds between the stop signal and SIGKILL


class Ledger:
    """`processes.json` and an exclusive lock in a state directory.

    The lock is the kernel's and ends with its holder, so it never has to be removed by hand.
    """

    def __init__(self, state_dir: Path) -> None:
        """Take the lock. Raises StateInUse if another living process holds it."""
        state_dir.mkdir(parents=True, exist_ok=True)
        self._file = state_dir / "processes.json"
        self._lock: TextIO = (state_dir / "supervisor.lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise StateInUse(
                f"{state_dir} is in use by the running process {holder}: stop that, or choose another directory"
            ) from error
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()

    def write(self, entries: list[Entry]) -> None:
        """Replace what is recorded, whole or not at all."""
        draft = self._file.with_suffix(".new")
        draft.write_text(json.dumps([asdict(entry) for entry in entries], indent=1))
        os.replace(draft, self._file)

    def read(self) -> list[Entry]:
        try:
            return [Entry(**entry) for entry in json.loads(self._file.read_text())]
        except FileNotFoundError:
            return []

    def clear_leftovers(self) -> list[str]:
        """Stop what a predecessor started and could not stop, recognised by identity or by mark;
        the last started goes first. Returns the names of the stopped."""
        stopped = []
        for entry in reversed(self.read()):
            was_there = stop_process(entry.pid, entry.who, signal.Signals(entry.stop_signal), entry.grace)
            for pid in marked(entry.token):  # what it started in its turn
                if who := identity(pid):
                    was_there |= stop_process(pid, who, signal.SIGKILL, 0.0)
            if was_there:
                stopped.append(entry.name)
        self.write([])
        return stopped

    def close(self) -> None:
        self._lock.close()
