"""`make scale`: 1, then 4, then 2 workers, and 1, then 2 engines, under load, and the figures as a table.

    make scale
    make scale ARGS="--seconds 10"       longer phases
    make scale ARGS="--static"           static members: what leaves is missed only at its session's end

A worker runs 4 handlers at once, and each waits for 0.2 s: 20 steps a second and worker, if nothing else is short.
At the end everything that was started must have ended, and ledger, history and PostgreSQL agree.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flowpilot.local.services import LocalServices, remove_data
from flowpilot.local.system import LocalSystem
from flowpilot_schemas.topics import Topics
from tests.scaling import story
from tests.scaling.scaling import PARTITIONS, Scaling


def main() -> int:
    options = arguments()
    data = Path(tempfile.mkdtemp(prefix="flowpilot-scale-"))
    data.chmod(0o755)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)
    calls = data / "calls"
    calls.touch()
    environment = {
        "FLOWPILOT_EVENT_PARTITIONS": str(PARTITIONS),
        "FLOWPILOT_STEP_PARTITIONS": str(PARTITIONS),
        "SCALING_CALLS": str(calls),
    }
    try:
        with LocalServices(data) as services:
            system = LocalSystem(services, environment=environment)
            scaling = Scaling(system, Topics(), calls, static=options.static)
            with scaling.running():
                story.workers(scaling, data, options.seconds)
                story.engines(scaling, options.seconds)
                differences = scaling.differences()
            show(scaling, console)
            long = scaling.starts(scaling.held)
    finally:
        remove_data(data)
    again = sum(long.values()) - len(long)
    console.print(f"{len(long)} long handlers, {again} started again")
    for difference in differences[:50]:
        console.print(f"[red]{difference}[/]")
    console.print(f"{len(scaling.load.keys):,} executions, {len(differences)} differences")
    return 1 if differences or again else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5, help="of each phase (default 5)")
    parser.add_argument("--static", action="store_true", help="all processes are static members")
    return parser.parse_args()


def show(scaling: Scaling, console: Console) -> None:
    """Print the figures."""
    phases = Table("", "steps/s", "longest pause, s", "share of each")
    for phase in scaling.phases:
        total = sum(phase.shares.values())
        shares = "  ".join(f"{name} {count / total:.0%}" for name, count in phase.shares.items())
        phases.add_row(phase.name, f"{phase.rate:.1f}", f"{phase.pause:.2f}", shares)
    changes = Table(
        "", "took, s", "longest pause, s", "of one partition, s", "newcomers: ready after + first step after, s"
    )
    for change in scaling.changes:
        joined = "  ".join(f"{name} {ready:.1f} + {first:.1f}" for name, (ready, first) in change.joined.items())
        changes.add_row(change.name, f"{change.seconds:.1f}", f"{change.pause:.2f}", f"{change.worst:.2f}", joined)
    console.print(phases)
    console.print(changes)
    starts = scaling.starts()
    console.print(f"{sum(starts.values()):,} handlers started, {sum(starts.values()) - len(starts)} of them again")


if __name__ == "__main__":
    sys.exit(main())
