"""Who a process is: a pid alone may belong to somebody else by now."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

PROC = Path("/proc")
#: Environment variable by which a supervised process, and what it started, is recognised.
MARK = "FLOWPILOT_SUPERVISED"


def identity(pid: int) -> str | None:
    """A text that no other process has had or will have under this pid; None if there is no such
    process or it is dead and only waits for its parent to take notice (a zombie)."""
    if sys.platform == "linux":
        try:
            stat = (PROC / str(pid) / "stat").read_text(errors="replace")
        except OSError:
            return None
        fields = stat[stat.rindex(")") + 2 :].split()  # the name before it may hold spaces
        state, started = fields[0], fields[19]
        return None if state in "ZX" else f"{_boot_id()}/{started}"
    shown = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return None if not shown or shown.startswith("Z") else shown.split(maxsplit=1)[1]


@lru_cache(maxsize=1)
def _boot_id() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def marked(token: str) -> list[int]:
    """The living processes whose environment at their start held the mark `token`.

    Empty where the system offers no /proc. Processes of other users are not seen, except by root.
    """
    wanted = f"{MARK}={token}".encode()
    found = []
    for entry in PROC.glob("[0-9]*") if PROC.is_dir() else []:
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0") and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def stop_process(pid: int, who: str, first: signal.Signals, grace: float) -> bool:
    """Stop the process `pid` if it still is `who`: `first`, then SIGKILL after `grace` seconds.

    Not for own children (they would stay as zombies). False if it was gone already.
    Raises PermissionError if it belongs to another user.
    """
    if identity(pid) != who:
        return False
    for signum, patience in ((first, grace), (signal.SIGKILL, 10.0)):
        if identity(pid) != who:
            return True
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            return True
        deadline = time.monotonic() + patience
        while identity(pid) == who and time.monotonic() < deadline:
            time.sleep(0.02)
    return True
