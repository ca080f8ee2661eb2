"""The thread that starts a supervisor's children, notices their deaths and starts them again.

One thread for all of it, living as long as any child: the kernel ties a child's death signal to
the thread that made the child, not to the whole process.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from flowpilot.local import child as child_script
from flowpilot.local.identity import MARK, identity
from flowpilot.local.ledger import Entry, Ledger

# Seconds: a child that lived at least so long starts again without delay, another after a growing one.
LIVED_LONG = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.2, 5.0


@dataclass(frozen=True)
class Spec:
    """How a child is started and stopped."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    user: tuple[int, int] | None = None  # (uid, gid) to become; None: stay
    restart: bool = True
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL  # what the kernel sends if the supervisor dies
    grace: float = 10.0  # seconds from the stop signal to SIGKILL


@dataclass
class Child:
    """A child and what has become of it."""

    spec: Spec
    log: Path
    log_from: int  # bytes: where this child's own part of the log begins
    process: subprocess.Popen[bytes] | None = None
    entry: Entry | None = None
    watch: int | None = None  # pidfd
    started: float = 0.0
    restarts: int = 0
    quick_deaths: int = 0
    restart_at: float | None = None
    last_exit: int | None = None
    guarded: bool = True  # False until it was ready for the first time
    stopping: bool = False


class Monitor:
    """The children by name, in the order of their start; guarded by `changed`, which is notified
    of every start and every death. `closing`: nothing is started again, and the thread ends with
    the last child."""

    def __init__(self, ledger: Ledger) -> None:
        self.children: dict[str, Child] = {}
        self.changed = threading.Condition(threading.RLock())
        self.closing = False
        self._ledger = ledger
        self._jobs: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and let go of the ledger, once `closing` is set and no child is left."""
        self.wake()
        self._thread.join(timeout=10)
        self._ledger.close()
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    def call(self, job: Callable[[], None]) -> None:
        """Run `job` in the thread and wait for it; its exception comes out here."""
        done: Future[None] = Future()
        self._jobs.append((job, done))
        self.wake()
        done.result()

    def wake(self) -> None:
        try:
            self._wake_in.send(b"!")
        except OSError:  # full: it is awake anyway; closed: it has ended
            pass

    def signal_group(self, child: Child) -> None:
        """SIGKILL to the child and everything in its process group. Under `changed`."""
        if child.process is not None:
            try:
                os.killpg(child.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # PermissionError: macOS, only a zombie is left
                pass

    def record(self) -> None:
        """Write down who lives. Under `changed`."""
        alive = [child.entry for child in self.children.values() if child.process and child.entry]
        self._ledger.write(alive)

    def _run(self) -> None:
        while True:
            with self.changed:
                if self.closing and not self.children:
                    return
                pause = self._pause()
            self._selector.select(pause)
            try:
                while self._wake_out.recv(4096):
                    pass
            except BlockingIOError:
                pass
            while self._jobs:
                job, done = self._jobs.popleft()
                try:
                    job()
                    done.set_result(None)
                except BaseException as error:  # noqa: BLE001 - handed to the thread that asked
                    done.set_exception(error)
            with self.changed:
                for child in list(self.children.values()):
                    self._reap(child)
                    if child.restart_at is not None and time.monotonic() >= child.restart_at:
                        self._restart(child)

    def _pause(self) -> float | None:
        """Seconds until the next planned restart; a poll where a death wakes nobody."""
        due = [child.restart_at for child in self.children.values() if child.restart_at is not None]
        pause = max(0.0, min(due) - time.monotonic()) if due else None
        if any(child.process and child.watch is None for child in self.children.values()):
            pause = min(0.05, pause) if pause is not None else 0.05
        return pause

    def spawn(self, child: Child) -> None:
        """Start the child's process. In the thread only: pass it to `call`."""
        spec, token = child.spec, uuid.uuid4().hex
        uid, gid = spec.user or (-1, -1)
        wrapper = [sys.executable, "-I", "-S", child_script.__file__]
        numbers = [str(number) for number in (os.getpid(), int(spec.death_signal), uid, gid)]
        with child.log.open("ab") as log, self.changed:
            process = subprocess.Popen(
                [*wrapper, *numbers, *spec.argv],
                env={**os.environ, **spec.env, MARK: token},
                cwd=spec.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # own group: Ctrl-C in the terminal is ours alone to answer
            )
            child.process = process
            child.started = time.monotonic()
            child.entry = Entry(
                spec.name, process.pid, identity(process.pid) or "", token, int(spec.stop_signal), spec.grace
            )
            if hasattr(os, "pidfd_open"):
                try:
                    child.watch = os.pidfd_open(process.pid)
                    self._selector.register(child.watch, selectors.EVENT_READ)
                except OSError:  # an old kernel: polled instead
                    child.watch = None
            self.record()
            self.changed.notify_all()

    def _reap(self, child: Child) -> None:
        process = child.process
        if process is None:
            return
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        # Not yet reaped, so nobody else has its pid: now is the time to end its group.
        self.signal_group(child)
        child.last_exit = process.wait()
        if child.watch is not None:
            self._selector.unregister(child.watch)
            os.close(child.watch)
            child.watch = None
        child.process = None
        if child.guarded and child.spec.restart and not child.stopping and not self.closing:
            self.plan_restart(child)
        self.record()
        self.changed.notify_all()

    def plan_restart(self, child: Child) -> None:
        """Set when the dead child starts again: at once, later if it keeps dying young. Under `changed`."""
        lived = time.monotonic() - child.started
        child.quick_deaths = child.quick_deaths + 1 if lived < LIVED_LONG else 0
        doublings = child.quick_deaths - 2
        delay = 0.0 if doublings < 0 else min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(doublings, 16))
        child.restart_at = time.monotonic() + delay

    def _restart(self, child: Child) -> None:
        child.restart_at = None
        child.restarts += 1
        try:
            self.spawn(child)
        except OSError as error:  # no memory or no more processes now: try again later
            with child.log.open("a") as log:
                log.write(f"supervisor: cannot start {child.spec.name}: {error}\n")
            child.quick_deaths += 1
            child.restart_at = time.monotonic() + LONGEST_DELAY
