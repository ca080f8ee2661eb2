"""A supervisor of child processes: restarts what dies, and leaves nothing behind.

- A child that dies is started again: at once the first time, then with a growing delay while it
  keeps dying soon after its start.
- `stop_all`, the end of the `with` block, Ctrl-C and the interpreter's exit stop every child, the
  last started first: its stop signal, then SIGKILL for it and everything in its process group.
- A `kill -9` of the supervisor itself: on Linux the kernel sends each child its death signal;
  everywhere the next supervisor on the same state directory finds what is left by a record of
  pid and start time, and stops it before it starts anything.

All children are started by one thread that lives as long as the supervisor, because the kernel's
death signal is tied to the thread that made the process, not to the whole parent.
"""

from __future__ import annotations

import atexit
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Self

from flowpilot.local import child as child_script
from flowpilot.local.errors import ChildFailed, LocalError
from flowpilot.local.identity import MARK, identity
from flowpilot.local.ledger import Entry, Ledger

#: A child that lived at least this long (seconds) starts again without delay.
LIVED_LONG = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.2, 5.0
READY_POLL = 0.03
TAIL_LINES = 15


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
class _Child:
    spec: Spec
    log: Path
    process: subprocess.Popen[bytes] | None = None
    entry: Entry | None = None
    watch: int | None = None  # pidfd
    started: float = 0.0
    restarts: int = 0
    quick_deaths: int = 0
    restart_at: float | None = None
    last_exit: int | None = None
    guarded: bool = True  # False while it first becomes ready, and once it is to stop


class Supervisor:
    """Starts named children and keeps them alive. Safe to use from several threads.

    `state_dir` is created; it holds the record of processes and `logs/<name>.log`. Raises
    StateInUse if another living supervisor has it. `leftovers`: names of children of a killed
    predecessor that had to be stopped.
    """

    def __init__(self, state_dir: Path | str) -> None:
        self.state_dir = Path(state_dir).absolute()
        self.log_dir = self.state_dir / "logs"
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self._ledger = Ledger(self.state_dir)
        self.leftovers = self._ledger.clear_leftovers()
        self._children: dict[str, _Child] = {}
        self._changed = threading.Condition(threading.RLock())
        self._jobs: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._closing = False
        self._closed = False
        self._monitor = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._monitor.start()
        self._owner = os.getpid()
        atexit.register(self._at_exit)

    # What users call

    def start(
        self,
        name: str,
        argv: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None = None,
        ready: Callable[[], bool] | None = None,
        restart: bool = True,
        *,
        ready_timeout: float = 60.0,
        cwd: Path | None = None,
        user: tuple[int, int] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        death_signal: signal.Signals = signal.SIGKILL,
        grace: float = 10.0,
    ) -> int:
        """Start a child and return its pid, once `ready()` is true if that is given.

        `env` is laid over this process's environment. Output goes to `log_path(name)`. Raises
        ChildFailed if the child ends before it is ready, or is not ready after `ready_timeout`
        seconds; it is stopped then. Before the first readiness nothing is restarted.
        """
        spec = Spec(
            name, tuple(os.fspath(part) for part in argv), dict(env or {}), cwd, user, restart,
            stop_signal, death_signal, grace,
        )  # fmt: skip
        if shutil.which(spec.argv[0]) is None:
            raise LocalError(f"cannot start {name}: there is no program {spec.argv[0]}")
        child = _Child(spec, self.log_path(name), guarded=ready is None)
        with self._changed:
            if self._closing:
                raise LocalError(f"cannot start {name}: this supervisor was stopped")
            if name in self._children:
                raise LocalError(f"a child named {name} is already there: stop it first, or choose another name")
            self._children[name] = child
        try:
            self._on_monitor(lambda: self._spawn(child))
            if ready is not None:
                self._await_ready(child, ready, ready_timeout)
        except BaseException:
            self.stop(name)
            raise
        with self._changed:
            child.guarded = True
            if child.process is None:  # died between its readiness and this line
                self._plan_restart(child)
                self._wake()
        return child.entry.pid if child.entry else 0

    def kill(self, name: str, signum: int = signal.SIGKILL) -> int:
        """Send a signal to the child's process, for faults on purpose; returns the pid that got it.

        A child that dies of it is started again. Raises LocalError if it is not running now.
        """
        with self._changed:  # the monitor reaps under this lock: the pid is still the child's
            child = self._get(name)
            if child.process is None:
                raise LocalError(f"{name} is not running now")
            os.kill(child.process.pid, signum)
            return child.process.pid

    def pid(self, name: str) -> int | None:
        """The child's pid; None while it is not running."""
        with self._changed:
            process = self._get(name).process
            return process.pid if process else None

    def restarts(self, name: str) -> int:
        """How often the child was started again after a death."""
        with self._changed:
            return self._get(name).restarts

    def exit_status(self, name: str) -> int | None:
        """The last exit status (negative: killed by that signal); None if it never ended."""
        with self._changed:
            return self._get(name).last_exit

    def names(self) -> list[str]:
        """The children in the order of their start."""
        with self._changed:
            return list(self._children)

    def log_path(self, name: str) -> Path:
        return self.log_dir / f"{name}.log"

    def wait(self, name: str, timeout: float | None = None) -> int | None:
        """Wait for the end of a child that is not to be restarted; its exit status, None if it still runs."""
        with self._changed:
            child = self._get(name)
            self._changed.wait_for(lambda: child.process is None, timeout)
            return child.last_exit if child.process is None else None

    def wait_restarted(self, name: str, beyond: int, timeout: float = 30.0) -> int:
        """Wait until the child was restarted more than `beyond` times and runs; returns its pid.

        Raises ChildFailed if that takes longer than `timeout` seconds.
        """
        with self._changed:
            child = self._get(name)
            if not self._changed.wait_for(lambda: child.restarts > beyond and child.process is not None, timeout):
                raise self._failure(child, f"was not running again within {timeout:g} s")
            assert child.process is not None
            return child.process.pid

    def stop(self, name: str) -> None:
        """Stop a child and forget it: its stop signal, SIGKILL to its whole group after its grace."""
        with self._changed:
            child = self._get(name)
            child.guarded, child.restart_at = False, None
            self._signal(child, child.spec.stop_signal)
        interrupted: BaseException | None = None
        deadline = time.monotonic() + child.spec.grace
        while True:
            try:
                with self._changed:
                    if self._changed.wait_for(
                        lambda: child.process is None, max(0.0, min(0.2, deadline - time.monotonic()))
                    ):
                        break
                    if time.monotonic() >= deadline:
                        self._signal_group(child)
                        deadline = time.monotonic() + 0.2
            except (KeyboardInterrupt, SystemExit) as error:  # in a hurry, but still nothing stays behind
                interrupted, deadline = error, time.monotonic()
        with self._changed:
            self._children.pop(name, None)
            self._record()
        if interrupted is not None:
            raise interrupted

    def stop_all(self) -> None:
        """Stop every child, the last started first, and end the supervisor. May be called twice."""
        with self._changed:
            if self._closed:
                return
            self._closing = True
        interrupted: BaseException | None = None
        while names := self.names():
            try:
                self.stop(names[-1])
            except (KeyboardInterrupt, SystemExit) as error:
                interrupted = error
                with self._changed:
                    for child in self._children.values():
                        self._signal_group(child)
            except LocalError:
                pass  # another thread stopped it meanwhile
        self._wake()
        self._monitor.join(timeout=10)
        with self._changed:
            if not self._closed:
                self._closed = True
                self._ledger.close()
                self._selector.close()
                self._wake_in.close()
                self._wake_out.close()
        atexit.unregister(self._at_exit)
        if interrupted is not None:
            raise interrupted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop_all()

    # The monitor thread

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closing and not self._children:
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
            with self._changed:
                for child in list(self._children.values()):
                    self._reap(child)
                    if child.restart_at is not None and time.monotonic() >= child.restart_at:
                        self._restart(child)

    def _pause(self) -> float | None:
        """Seconds until the next planned restart; a poll where a death wakes nobody."""
        due = [child.restart_at for child in self._children.values() if child.restart_at is not None]
        pause = max(0.0, min(due) - time.monotonic()) if due else None
        if any(child.process and child.watch is None for child in self._children.values()):
            pause = min(0.05, pause) if pause is not None else 0.05
        return pause

    def _spawn(self, child: _Child) -> None:
        spec, token = child.spec, uuid.uuid4().hex
        uid, gid = spec.user or (-1, -1)
        wrapper = [sys.executable, "-I", "-S", child_script.__file__]
        numbers = [str(number) for number in (os.getpid(), int(spec.death_signal), uid, gid)]
        with child.log.open("ab") as log, self._changed:
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
            self._record()
            self._changed.notify_all()

    def _reap(self, child: _Child) -> None:
        process = child.process
        if process is None:
            return
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        # Not yet reaped, so nobody else has its pid: now is the time to end its group.
        self._signal_group(child)
        child.last_exit = process.wait()
        if child.watch is not None:
            self._selector.unregister(child.watch)
            os.close(child.watch)
            child.watch = None
        child.process = None
        if child.guarded and child.spec.restart and not self._closing:
            self._plan_restart(child)
        self._record()
        self._changed.notify_all()

    def _plan_restart(self, child: _Child) -> None:
        lived = time.monotonic() - child.started
        child.quick_deaths = child.quick_deaths + 1 if lived < LIVED_LONG else 0
        doublings = child.quick_deaths - 2
        delay = 0.0 if doublings < 0 else min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(doublings, 16))
        child.restart_at = time.monotonic() + delay

    def _restart(self, child: _Child) -> None:
        child.restart_at = None
        child.restarts += 1
        try:
            self._spawn(child)
        except OSError as error:  # no memory or no more processes now: try again later
            with child.log.open("a") as log:
                log.write(f"supervisor: cannot start {child.spec.name}: {error}\n")
            child.quick_deaths += 1
            child.restart_at = time.monotonic() + LONGEST_DELAY

    # Shared

    def _at_exit(self) -> None:
        if os.getpid() == self._owner:  # a forked copy of the owner has no children to stop
            self.stop_all()

    def _on_monitor(self, job: Callable[[], None]) -> None:
        done: Future[None] = Future()
        self._jobs.append((job, done))
        self._wake()
        done.result()

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"!")
        except OSError:  # full: it is awake anyway; closed: it has ended
            pass

    def _get(self, name: str) -> _Child:
        try:
            return self._children[name]
        except KeyError:
            raise LocalError(f"there is no child named {name}") from None

    def _signal(self, child: _Child, signum: signal.Signals) -> None:
        if child.process is not None:
            os.kill(child.process.pid, signum)

    def _signal_group(self, child: _Child) -> None:
        if child.process is not None:
            try:
                os.killpg(child.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # PermissionError: macOS, only a zombie is left
                pass

    def _record(self) -> None:
        alive = [child.entry for child in self._children.values() if child.process and child.entry]
        self._ledger.write(alive)

    def _await_ready(self, child: _Child, ready: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            with self._changed:
                if child.process is None:
                    raise self._failure(child, f"ended before it was ready (exit status {child.last_exit})")
            if ready():
                return
            if time.monotonic() >= deadline:
                raise self._failure(child, f"was not ready within {timeout:g} s")
            time.sleep(READY_POLL)

    def _failure(self, child: _Child, what: str) -> ChildFailed:
        lines = child.log.read_text(errors="replace").splitlines() if child.log.exists() else []
        return ChildFailed(child.spec.name, what, "\n".join(lines[-TAIL_LINES:]), str(child.log))


@contextmanager
def terminate_cleanly() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise SystemExit in the main thread, so that `with` blocks end as
    they do on Ctrl-C. For the main thread only."""

    def leave(signum: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before = {signum: signal.signal(signum, leave) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
