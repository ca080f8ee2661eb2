"""A supervisor of child processes: restarts what dies, and leaves nothing behind.

- A child that dies is started again: at once the first time, then with a growing delay while it
  keeps dying soon after its start.
- `stop_all`, the end of the `with` block, Ctrl-C and the interpreter's exit stop every child, the
  last started first: its stop signal, then SIGKILL for it and everything in its process group.
- A `kill -9` of the supervisor itself: on Linux the kernel sends each child its death signal;
  everywhere the next supervisor on the same state directory finds what is left by a record of
  pid and start time, and stops it before it starts anything.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from flowpilot.local.errors import ChildFailed, LocalError
from flowpilot.local.ledger import Ledger
from flowpilot.local.monitor import Child, Monitor, Spec

READY_POLL = 0.03  # seconds
TAIL_LINES = 15


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
        ledger = Ledger(self.state_dir)
        self.leftovers = ledger.clear_leftovers()
        self._monitor = Monitor(ledger)
        self._children = self._monitor.children
        self._changed = self._monitor.changed
        self._closed = False
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
        log = self.log_path(name)
        child = Child(spec, log, log.stat().st_size if log.exists() else 0, guarded=ready is None)
        with self._changed:
            if self._monitor.closing:
                raise LocalError(f"cannot start {name}: this supervisor was stopped")
            if name in self._children:
                raise LocalError(f"a child named {name} is already there: stop it first, or choose another name")
            self._children[name] = child
        try:
            self._monitor.call(lambda: self._monitor.spawn(child))
            if ready is not None:
                self._await_ready(child, ready, ready_timeout)
        except BaseException:
            with suppress(LocalError):  # another thread may have stopped it meanwhile
                self.stop(name)
            raise
        self._guard(child)
        return child.entry.pid if child.entry else 0

    def run(
        self,
        name: str,
        argv: Sequence[str | os.PathLike[str]],
        *,
        timeout: float = 120.0,
        cwd: Path | None = None,
        user: tuple[int, int] | None = None,
    ) -> None:
        """Run a program to its end, as a child like the others while it lasts.

        Raises ChildFailed if its exit status is not 0 or it takes longer than `timeout` seconds.
        """
        self.start(name, argv, restart=False, cwd=cwd, user=user)
        with self._changed:
            child = self._get(name)
        try:
            status = self.wait(name, timeout)
            if status != 0:
                what = f"did not end within {timeout:g} s" if status is None else f"failed (exit status {status})"
                raise self._failure(child, what)
        finally:
            with suppress(LocalError):
                self.stop(name)

    def kill(self, name: str, signum: int = signal.SIGKILL) -> int:
        """Send a signal to the child's process, for faults on purpose; returns the pid that got it.

        A child that dies of it is started again, at once: its death says nothing of the child. Raises LocalError
        if it is not running now.
        """
        with self._changed:  # the monitor reaps under this lock: the pid is still the child's
            child = self._get(name)
            if child.process is None:
                raise LocalError(f"{name} is not running now")
            child.quick_deaths = 0
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

    def stop(self, name: str) -> int | None:
        """Stop a child and forget it: its stop signal, SIGKILL to its whole group after its grace.

        Returns its exit status (negative: killed by that signal); None if it never ran.
        """
        with self._changed:
            child = self._get(name)
            child.stopping, child.restart_at = True, None
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
                        self._monitor.signal_group(child)
                        deadline = time.monotonic() + 0.2
            except (KeyboardInterrupt, SystemExit) as error:  # in a hurry, but still nothing stays behind
                interrupted, deadline = error, time.monotonic()
        with self._changed:
            self._children.pop(name, None)
            self._monitor.record()
        if interrupted is not None:
            raise interrupted
        return child.last_exit

    def stop_all(self) -> None:
        """Stop every child, the last started first, and end the supervisor. May be called twice."""
        with self._changed:
            if self._closed:
                return
            self._monitor.closing = True
        interrupted: BaseException | None = None
        while names := self.names():
            try:
                self.stop(names[-1])
            except (KeyboardInterrupt, SystemExit) as error:
                interrupted = error
                with self._changed:
                    for child in self._children.values():
                        self._monitor.signal_group(child)
            except LocalError:
                pass  # another thread stopped it meanwhile
        with self._changed:
            last, self._closed = not self._closed, True
        if last:
            self._monitor.close()
        atexit.unregister(self._at_exit)
        if interrupted is not None:
            raise interrupted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop_all()

    # Shared

    def _at_exit(self) -> None:
        if os.getpid() == self._owner:  # a forked copy of the owner has no children to stop
            self.stop_all()

    def _get(self, name: str) -> Child:
        try:
            return self._children[name]
        except KeyError:
            raise LocalError(f"there is no child named {name}") from None

    def _guard(self, child: Child) -> None:
        """From the first readiness on, deaths are answered with restarts."""
        with self._changed:
            if child.guarded:
                return
            child.guarded = True
            if child.process is None and child.spec.restart and not child.stopping:
                self._monitor.plan_restart(child)  # it died between its readiness and this line
                self._monitor.wake()

    def _signal(self, child: Child, signum: signal.Signals) -> None:
        if child.process is not None:
            os.kill(child.process.pid, signum)

    def _await_ready(self, child: Child, ready: Callable[[], bool], timeout: float) -> None:
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

    def _failure(self, child: Child, what: str) -> ChildFailed:
        written = child.log.read_bytes()[child.log_from :] if child.log.exists() else b""
        lines = written.decode(errors="replace").splitlines()
        return ChildFailed(child.spec.name, what, "\n".join(lines[-TAIL_LINES:]), str(child.log))
