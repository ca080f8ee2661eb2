"""`python -m flowpilot.local up|fetch|remove`: embedded services in the foreground, their downloads and data."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from flowpilot.local.errors import LocalError
from flowpilot.local.jars import ensure_jars
from flowpilot.local.services import LocalServices, remove_data
from flowpilot.local.signals import terminate_cleanly
from flowpilot.local.supervisor import Supervisor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flowpilot.local",
        description="Apache Kafka and PostgreSQL for this machine only, without containers.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="run both until Ctrl-C, and print their addresses")
    up.add_argument(
        "--fast-start", action="store_true", help="start faster, run slower: the JVM's first compiler only"
    )
    commands.add_parser("fetch", help="download what the broker needs, so that later starts need no network")
    remove = commands.add_parser("remove", help="delete the data of both, unless they are running")
    for command in (up, remove):
        command.add_argument(
            "--data", type=Path, default=Path(".flowpilot"), help="where the data are kept (default: %(default)s)"
        )
    chosen = parser.parse_args(arguments)
    try:
        with terminate_cleanly():
            if chosen.command == "fetch":
                ensure_jars()
                return 0
            if chosen.command == "remove":
                if chosen.data.exists():
                    with Supervisor(chosen.data):  # refuses while they run, and stops what a killed run left
                        pass
                    remove_data(chosen.data)
                return 0
            with LocalServices(chosen.data, tiered="c1" if chosen.fast_start else "full") as services:
                print(f"FLOWPILOT_BOOTSTRAP_SERVERS={services.bootstrap_servers}")
                print(f"FLOWPILOT_DATABASE_URL={services.database_url}", flush=True)
                print("Ctrl-C stops both; the data stay.", file=sys.stderr, flush=True)
                threading.Event().wait()
    except LocalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
