"""`make bench`: chains of three steps, everything counted, on embedded Kafka and PostgreSQL.

    make bench                                 3 runs of 5,000 chains after 60 s of warming
    make bench ARGS="--warm 180 --runs 5"      a warmer broker: its latency needs about three minutes of load

Prints steps per second, CPU seconds per 1,000 steps by process, the time of one chain after another (p50, p99),
and the engine's memory per live execution. A run during which the machine's CPU was taken away is marked.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psycopg2
from confluent_kafka import Producer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.cpu import resident_kib, steal, tree_seconds
from flowpilot import Client
from flowpilot.local.services import LocalServices, remove_data
from flowpilot.local.system import LocalSystem
from flowpilot.settings import Settings

WORKFLOW = "benchmarks.workflows:w1"
STEPS = 3
STOLEN_SHARE = 0.01


class Bench:
    """A running system, a publisher of triggers, and the audit record as the finish line."""

    def __init__(self, services: LocalServices, system: LocalSystem, console: Console) -> None:
        self.services, self.system, self.console = services, system, console
        self.database = psycopg2.connect(services.database_url)
        self.database.autocommit = True
        self.producer = Producer({"bootstrap.servers": services.bootstrap_servers, "linger.ms": 5})
        self.started = 0

    def roots(self) -> dict[str, int]:
        pids = {name: self.system.supervisor.pid(name) for name in self.system.supervisor.names()}
        return {"publisher": os.getpid(), **{name: pid for name, pid in pids.items() if pid}}

    def completed(self) -> int:
        with self.database.cursor() as cursor:
            cursor.execute("select count(*) from workflow_execution where status = 'completed'")
            [count] = cursor.fetchone() or (0,)
            return int(count)

    def publish(self, count: int, input: object = None) -> None:
        trigger = {"v": 1, "workflow": "bench-w1", "input": input or {"patient": "p-1", "kind": "bench"}}
        value = json.dumps(trigger).encode()
        for _ in range(count):
            self.producer.produce("flowpilot.triggers", value)
            self.producer.poll(0)
        self.producer.flush()
        self.started += count

    def finish(self, patience: float = 300) -> None:
        give_up = time.monotonic() + patience
        while self.completed() < self.started:
            if time.monotonic() > give_up:
                raise SystemExit(f"bench: {self.started - self.completed()} executions did not end")
            time.sleep(0.05)

    def run(self, count: int) -> tuple[float, dict[str, float], bool]:
        """(steps per second, CPU seconds per 1,000 steps by process, whether CPU was stolen)."""
        roots = self.roots()
        cpu, (stolen, total), began = tree_seconds(roots), steal(), time.monotonic()
        self.publish(count)
        self.finish()
        wall = time.monotonic() - began
        used, (stolen_after, total_after) = tree_seconds(roots), steal()
        # The publisher's share of the processes above it: children are counted under their own names.
        per_process = {name: (used[name] - cpu[name]) / (count * STEPS) * 1000 for name in roots}
        taken = (stolen_after - stolen) / max(total_after - total, 1e-9)
        return count * STEPS / wall, per_process, taken > STOLEN_SHARE


def main() -> int:
    options = arguments()
    console = Console()
    data = Path(tempfile.mkdtemp(prefix="flowpilot-bench-"))
    data.chmod(0o755)
    try:
        with LocalServices(data) as services:
            environment = {"FLOWPILOT_EVENT_PARTITIONS": "4", "FLOWPILOT_STEP_PARTITIONS": "4"}
            system = LocalSystem(services, environment=environment)
            system.start_all([WORKFLOW], workers=1, concurrency=64)
            bench = Bench(services, system, console)
            warm(bench, options.warm)
            runs = [bench.run(options.executions) for _ in track(range(options.runs), "runs", console=console)]
            console.print(throughput(runs))
            times = sequential(services, options.sequential)
            p50, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
            console.print(f"one chain after another ({len(times)}): p50 {p50:.1f} ms, p99 {p99:.1f} ms")
            console.print(memory(bench, options.live))
    finally:
        remove_data(data)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.w1", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--warm", type=float, default=60, help="seconds of load before measuring (default 60)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--executions", type=int, default=5_000, help="chains a run")
    parser.add_argument("--sequential", type=int, default=300, help="chains one after another")
    parser.add_argument(
        "--live",
        type=int,
        default=20_000,
        help="live executions for the engine's memory: many, or what earlier runs freed hides them",
    )
    return parser.parse_args()


def warm(bench: Bench, seconds: float) -> None:
    for _ in track(range(max(1, round(seconds / 5))), "warming", console=bench.console):
        until = time.monotonic() + min(5.0, seconds)
        while time.monotonic() < until:
            bench.publish(500)
            bench.finish()


def throughput(runs: list[tuple[float, dict[str, float], bool]]) -> Table:
    table = Table(title="w1: chains of 3, everything counted", title_justify="left")
    table.add_column("")
    for number, (_, _, stolen) in enumerate(runs, 1):
        table.add_column(f"run {number}{' (steal)' if stolen else ''}", justify="right")
    table.add_column("median", justify="right")
    rates = [rate for rate, _, _ in runs]
    table.add_row(
        "steps/s", *(f"{rate:,.0f}" for rate in rates), f"{statistics.median(rates):,.0f}", end_section=True
    )
    for name in runs[0][1]:
        used = [per_process[name] for _, per_process, _ in runs]
        table.add_row(name, *(f"{value:.3f}" for value in used), f"{statistics.median(used):.3f}")
    sums = [sum(per_process.values()) for _, per_process, _ in runs]
    table.add_section()
    table.add_row(
        "CPU s per 1,000 steps", *(f"{value:.3f}" for value in sums), f"[bold]{statistics.median(sums):.3f}[/]"
    )
    return table


def sequential(services: LocalServices, count: int) -> list[float]:
    """Milliseconds from start to result, one execution after another."""
    settings = Settings(bootstrap_servers=services.bootstrap_servers, database_url=services.database_url)  # type: ignore[arg-type]
    times = []
    with Client.blocking(settings) as client:
        for number in range(count + 20):
            began = time.perf_counter()
            client.start("bench-w1", {"number": number}).result(timeout=30)
            times.append((time.perf_counter() - began) * 1000)
    return times[20:]


def memory(bench: Bench, live: int) -> str:
    """The engine's growth while executions stand still because no worker takes their first step."""
    supervisor = bench.system.supervisor
    supervisor.stop("worker-1")
    engine = supervisor.pid("engine") or 0
    before = resident_kib(engine)
    bench.publish(live)
    give_up = time.monotonic() + 120
    while running(bench) < live and time.monotonic() < give_up:
        time.sleep(0.1)
    grown = resident_kib(engine) - before
    return f"engine memory: {grown / live:.2f} KiB a live execution ({live:,} that wait for their first step)"


def running(bench: Bench) -> int:
    with bench.database.cursor() as cursor:
        cursor.execute("select count(*) from workflow_execution where status = 'running'")
        [count] = cursor.fetchone() or (0,)
        return int(count)


if __name__ == "__main__":
    sys.exit(main())
