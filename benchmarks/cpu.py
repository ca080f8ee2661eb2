"""CPU seconds of process trees, and what the hypervisor took away, from /proc (Linux)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def tree_seconds(roots: Mapping[str, int]) -> dict[str, float]:
    """User and system CPU seconds so far of each root process with its descendants, dead children included."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        parents[int(entry.name)] = int(fields[1])
        seconds[int(entry.name)] = sum(map(int, fields[11:15])) / _TICKS
    totals = dict.fromkeys(roots, 0.0)
    named = {pid: name for name, pid in roots.items()}
    for pid, used in seconds.items():
        above: int | None = pid
        while above is not None and above not in named:
            above = parents.get(above)
        if above is not None:
            totals[named[above]] += used
    return totals


def resident_kib(pid: int) -> int:
    """Resident memory of one process, in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def steal() -> tuple[float, float]:
    """(stolen, all) CPU seconds of the machine so far."""
    ticks = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
    return ticks[7] / _TICKS, sum(ticks) / _TICKS
