"""The demo: 2,000 registrations in 30 s, a kill -9 of every role on the way, and a table that must agree."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka.admin import AdminClient, NewTopic
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.demo.clinic import Clinic
from examples.demo.report import Audit, comparison, expected, read_lines
from flowpilot.local.errors import LocalError
from flowpilot.local.services import LocalServices, remove_data
from flowpilot.local.system import LocalSystem

HERE = Path(__file__).parent
TOPIC = "patients.registered"
WORKFLOW = "examples.patient_onboarding:onboarding"
# (seconds after the first record, who is killed); a worker dies twice. The audit writer is last, because the number
# of live executions is read from what it has written.
KILLS = [(5, "engine"), (13, "worker-1"), (20, "worker-1"), (26, "audit")]
MIN_LIVE = 50
PATIENCE = 60  # without one more completed execution


def main() -> int:
    options = arguments()
    console = Console()
    data = Path(options.data)
    if data.exists():
        remove_data(data)
    began = time.monotonic()
    console.print("Starting Kafka, PostgreSQL, a mail server and FlowPilot's roles …", highlight=False)
    with LocalServices(data) as services:
        clinic = Clinic(services)
        partitions = {"FLOWPILOT_EVENT_PARTITIONS": "4", "FLOWPILOT_STEP_PARTITIONS": "4"}
        system = LocalSystem(services, environment={**partitions, **clinic.environment})
        create_topic(services.bootstrap_servers)
        system.start_all([WORKFLOW], workers=2, concurrency=64)
        console.print(
            f"Ready after {time.monotonic() - began:.1f} s. Publishing from a process that knows only Kafka."
        )
        audit = Audit(services.database_url)
        ledger = data / "ledger.jsonl"
        command = [
            sys.executable, str(HERE / "publisher.py"), services.bootstrap_servers, TOPIC, str(ledger),
            str(options.records), str(options.seconds),
        ]  # fmt: skip
        with running(command) as publisher:
            watch(system, audit, publisher, ledger, options.records, console)
        lines = read_lines(ledger)
        promised, found = expected(lines), settled(audit, clinic, lines)
        console.print(comparison(len(lines), promised, found, {**audit.shown(), **clinic.shown()}))
    agrees = promised == found
    verdict = "[green]Everything agrees[/]" if agrees else "[bold red]The table does not agree[/]"
    console.print(f"{verdict} after {time.monotonic() - began:.0f} s.")
    console.print("\nWhat to type next:", highlight=False)
    for command, what in (
        (f".venv/bin/python -m flowpilot.local up --data {data} > .env", "the same Kafka and PostgreSQL again"),
        (".venv/bin/flowpilot execution list", "in another terminal"),
        (f"tail -n 2 {data / 'mails.jsonl'}", "the last mails"),
        ("less examples/patient_onboarding.py", "the workflow"),
    ):
        console.print(f"  {command:<72}  # {what}", highlight=False, markup=False, soft_wrap=True)
    return 0 if agrees else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--records", type=int, default=2_000, help="records to publish (default 2000)")
    parser.add_argument("--seconds", type=float, default=30, help="over how many seconds (default 30)")
    parser.add_argument("--data", default=".flowpilot/demo", help="where Kafka and PostgreSQL keep their data")
    return parser.parse_args()


def create_topic(bootstrap_servers: str) -> None:
    """The topic belongs to the publishing system, not to FlowPilot."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for created in admin.create_topics([NewTopic(TOPIC, 4, 1)]).values():
        created.result()


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def watch(
    system: LocalSystem,
    audit: Audit,
    publisher: subprocess.Popen[bytes],
    ledger: Path,
    records: int,
    console: Console,
) -> None:
    """Show what happens, kill what has to be killed, and return when every execution is over."""
    kills = list(KILLS)
    began = time.monotonic()
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        published = progress.add_task("published", total=records)
        completed = progress.add_task("completed", total=records)
        most, moved_at = 0, began
        while True:
            lines = read_lines(ledger)
            done = audit.completed()
            goal = expected(lines)["completed"]
            progress.update(published, completed=len(lines))
            over = publisher.poll() is not None
            progress.update(completed, completed=done, total=goal if over else records)
            if kills and time.monotonic() - began >= kills[0][0]:
                name = kills[0][1]
                live = audit.live()
                if live >= MIN_LIVE:
                    kills.pop(0)
                    pid = system.supervisor.kill(name)
                    console.print(f"kill -9 {name} (pid {pid}) with {live} executions live", highlight=False)
            if done > most or not over:
                most, moved_at = done, time.monotonic()
            if over and done >= goal and not kills:
                return
            if time.monotonic() > moved_at + PATIENCE:
                missing = f"; not killed, because fewer than {MIN_LIVE} were live: {kills}" if kills else ""
                console.print(f"[red]{goal - done} executions are not over after {PATIENCE} s{missing}[/]")
                return
            time.sleep(0.2)


def settled(audit: Audit, clinic: Clinic, lines: list[dict[str, Any]]) -> dict[str, int]:
    """What PostgreSQL and the mail server hold once the audit writer has caught up, or after a while."""
    promised = expected(lines)
    give_up = time.monotonic() + 15
    while (found := {**audit.found(lines), **clinic.found()}) != promised and time.monotonic() < give_up:
        time.sleep(0.3)
    return found


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LocalError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
