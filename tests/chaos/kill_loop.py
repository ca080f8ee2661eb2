"""`make kill-loop`: ten kill -9 of every role under paced load, then everything must have ended and agree.

    make kill-loop
    make kill-loop ARGS="--kills 3 --rate 200"

A kill counts only with at least 100 executions live; the number is printed beside it. At the end the keys that the
publisher's ledger has, the history topic and PostgreSQL are compared, and the hash chains are computed again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg2
from confluent_kafka.admin import AdminClient, NewTopic
from rich.console import Console

from flowpilot.local.services import LocalServices, remove_data
from flowpilot.local.system import LocalSystem
from tests.chaos.history import HistoryWatcher
from tests.chaos.workflows import TOPIC

ROLES = ("engine", "worker-1", "router", "audit", "worker-2")
MIN_LIVE = 100
PATIENCE = 120


def main() -> int:
    options = arguments()
    console = Console(highlight=False)
    data = Path(tempfile.mkdtemp(prefix="flowpilot-kill-"))
    data.chmod(0o755)
    try:
        with LocalServices(data) as services:
            differences = run(services, data, options, console)
    finally:
        remove_data(data)
    for difference in differences[:50]:
        console.print(f"[red]{difference}[/]")
    console.print(f"{len(differences)} differences")
    return 1 if differences else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.kill_loop",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=10, help="kills of each role (default 10)")
    parser.add_argument("--rate", type=float, default=120, help="executions started a second (default 120)")
    return parser.parse_args()


def run(services: LocalServices, data: Path, options: argparse.Namespace, console: Console) -> list[str]:
    environment = {"FLOWPILOT_EVENT_PARTITIONS": "4", "FLOWPILOT_STEP_PARTITIONS": "4"}
    system = LocalSystem(services, environment=environment)
    admin = AdminClient({"bootstrap.servers": services.bootstrap_servers})
    for created in admin.create_topics([NewTopic(TOPIC, 4, 1)]).values():
        created.result()
    system.start_all(["tests.chaos.workflows:chain"], workers=2, concurrency=128)
    watcher = HistoryWatcher(services.bootstrap_servers, "flowpilot.history")
    ledger = data / "ledger"
    script = Path(__file__).with_name("publisher.py")
    publisher = subprocess.Popen(
        [sys.executable, str(script), services.bootstrap_servers, TOPIC, str(ledger), str(options.rate)]
    )
    try:
        for turn in range(options.kills):
            for role in ROLES:
                kill(system, watcher, role, f"{turn + 1}/{options.kills}", console)
    finally:
        publisher.terminate()
        publisher.wait()
    keys = set(ledger.read_text().split())
    console.print(f"published {len(keys)} keys; waiting for their executions to end")
    ended = wait_for(lambda: len(watcher.ended) >= len(keys) and watcher.live() == 0)
    differences = [] if ended else [f"{len(keys) - len(watcher.ended)} executions did not end within {PATIENCE} s"]
    wait_for(lambda: not compare(watcher, keys, services.database_url), 30)
    differences += compare(watcher, keys, services.database_url)
    told = told_events(watcher)
    console.print(f"{len(watcher.ended)} executions, {told} history events, {watcher.repeated} sent more than once")
    watcher.close()
    return differences


def kill(
    system: LocalSystem,
    watcher: HistoryWatcher,
    role: str,
    turn: str,
    console: Console,
    *,
    at_least: int = MIN_LIVE,
) -> None:
    if not wait_for(lambda: watcher.live() >= at_least and system.supervisor.pid(role) is not None):
        raise SystemExit(f"kill-loop: fewer than {at_least} executions live for {PATIENCE} s")
    ready = system.times_ready(role)
    live, events = watcher.live(), told_events(watcher)
    system.supervisor.kill(role)
    killed = time.monotonic()
    if not wait_for(lambda: system.times_ready(role) > ready):
        raise SystemExit(f"kill-loop: {role} was not ready again within {PATIENCE} s")
    back = time.monotonic() - killed
    # Under way again: new facts since the kill, whoever was killed.
    if not wait_for(lambda: told_events(watcher) > events + at_least):
        raise SystemExit(f"kill-loop: nothing happened for {PATIENCE} s after {role} was killed")
    silence = watcher.longest_silence(since=killed)
    console.print(
        f"{turn} kill -9 {role:<9} with {live:4} live; ready again after {back:4.1f} s, "
        f"no new event for {silence:4.1f} s"
    )


def compare(watcher: HistoryWatcher, keys: set[str], database_url: str, *, steps_each: int = 3) -> list[str]:
    """What the ledger, the history topic and PostgreSQL do not agree on; an execution has `steps_each` steps."""
    differences = list(watcher.faults)
    differences += [f"key {key} has no execution" for key in sorted(keys - watcher.keys.keys())]
    differences += [f"key {key} was never published" for key in sorted(watcher.keys.keys() - keys)]
    differences += [f"{run} ended as {end}" for run, end in watcher.ended.items() if end != "ExecutionCompleted"]
    told = {(*run, seq): event[1] for run, chain in watcher.runs.items() for seq, event in chain.events.items()}
    with psycopg2.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("select execution_id, run, seq, hash from audit_event")
        kept = {(execution, run, seq): bytes(hash) for execution, run, seq, hash in cursor}
        cursor.execute("select count(*) from audit_divergence")
        divergences = one(cursor)
        cursor.execute("select count(*) from workflow_execution where status = 'completed'")
        completed = one(cursor)
        cursor.execute("select count(*) from task_execution where status = 'completed'")
        steps = one(cursor)
    connection.close()
    differences += [f"{name} is in the history and not in PostgreSQL" for name in told.keys() - kept.keys()]
    differences += [f"{name} is in PostgreSQL and not in the history" for name in kept.keys() - told.keys()]
    differences += [f"{name} differs" for name in told.keys() & kept.keys() if told[name] != kept[name]]
    if divergences:
        differences.append(f"{divergences} rows in audit_divergence")
    if (completed, steps) != (len(keys), steps_each * len(keys)):
        differences.append(f"PostgreSQL has {completed} completed executions and {steps} steps of {len(keys)} keys")
    return differences


def told_events(watcher: HistoryWatcher) -> int:
    return sum(len(chain.events) for chain in list(watcher.runs.values()))


def one(cursor: psycopg2.extensions.cursor) -> int:
    [count] = cursor.fetchone() or (0,)
    return int(count)


def wait_for(condition: Callable[[], bool], patience: float = PATIENCE) -> bool:
    give_up = time.monotonic() + patience
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.1)
    return True


if __name__ == "__main__":
    sys.exit(main())
