"""Ctrl-C on a campaign: it ends with one line of how far it was, and leaves no process behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_PATIENCE = 60.0


def interrupted(how_far: str) -> int:
    """Say how far it was; the exit code."""
    print(f"interrupted: {how_far}", file=sys.stderr, flush=True)
    return 130


@contextmanager
def spared() -> Iterator[None]:
    """Processes started inside never hear Ctrl-C: whoever started them ends them. Here it is heard on leaving."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Children:
    """Processes that tidy up after themselves when they are told once that it is over. From any thread."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._running: set[subprocess.Popen[str]] = set()

    def run(self, command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` with captured output. Raises `subprocess.TimeoutExpired`."""
        # In a session of its own, Ctrl-C reaches it by `stop` alone: a second one would cut its tidying short.
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            self._running.add(process)
            try:
                if self.stopping.is_set():
                    process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            finally:
                self._running.discard(process)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def stop(self) -> None:
        """Tell all that it is over; return when they have ended, after a minute by force."""
        self.stopping.set()
        running = list(self._running)
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
