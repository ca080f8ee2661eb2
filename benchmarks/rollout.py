"""`make bench-rollout`: how long a step waits when one worker among ten serves it, on embedded Kafka.

    make bench-rollout                               200 executions, 5 a second
    make bench-rollout ARGS="--executions 500"       more of them

Ten worker processes share a queue of 12 partitions. Nine have version 1, one has version 2, and executions of
version 2 are started. Prints p50, p99 and the longest time from `StepReady` (the broker's time) to the handler's
start (the worker's clock, on the same machine), and how many step messages each took. Ends with 1 if p99 is above
5 s.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import psycopg2
from confluent_kafka import Consumer, Producer, TopicPartition

from flowpilot.local.services import LocalServices, remove_data
from flowpilot.local.system import LocalSystem

WORKERS, PARTITIONS = 10, 12
LIMIT_MS = 5_000
QUEUE = "flowpilot.steps.bench-rollout"
FLOW = """
from flowpilot import Workflow

flow = Workflow("bench-rollout", version="{version}")

@flow.step
async def work() -> str:
    return "{version}"
"""


def main() -> int:
    options = arguments()
    data = Path(tempfile.mkdtemp(prefix="flowpilot-bench-"))
    data.chmod(0o755)
    flows = Path(tempfile.mkdtemp(prefix="flowpilot-bench-flows-"))
    for version in ("1", "2"):
        (flows / f"v{version}.py").write_text(FLOW.format(version=version))
    try:
        with LocalServices(data) as services:
            environment = {"FLOWPILOT_EVENT_PARTITIONS": "4", "FLOWPILOT_STEP_PARTITIONS": str(PARTITIONS)}
            system = LocalSystem(services, environment=environment, cwd=flows)
            start(system)
            publish(services, options.executions, options.rate)
            waits = finished(services, options.executions)
            sent = dispatches(services)
    finally:
        remove_data(data)
    return show(waits, sent)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rollout",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--executions", type=int, default=200)
    parser.add_argument("--rate", type=float, default=5.0, help="executions started a second")
    return parser.parse_args()


def start(system: LocalSystem) -> None:
    """All roles, and the workers in an order that leaves chance to Kafka: which partitions the one gets."""
    system.run("setup")
    for version in ("1", "2"):
        system.run("workflow", "apply", f"v{version}.py:flow")
    with ThreadPoolExecutor(3) as pool:
        starting = [pool.submit(system.start, role, role) for role in ("engine", "router", "audit")]
        for number in range(1, WORKERS + 1):
            code = "v2.py:flow" if number == WORKERS // 2 else "v1.py:flow"
            starting.append(pool.submit(system.start, f"worker-{number}", "worker", code, static=False))
        for started in starting:
            started.result()
    print(f"{WORKERS} workers on {PARTITIONS} partitions, one of which serves the current version", flush=True)


def publish(services: LocalServices, count: int, rate: float) -> None:
    producer = Producer({"bootstrap.servers": services.bootstrap_servers})
    value = json.dumps({"v": 1, "workflow": "bench-rollout", "input": None}).encode()
    for _ in range(count):
        producer.produce("flowpilot.triggers", value)
        producer.flush()
        time.sleep(1 / rate)


def finished(services: LocalServices, count: int) -> list[float]:
    """From the audit record: ms from each step's `StepReady` to its handler's start, once all are done."""
    with psycopg2.connect(services.database_url) as database, database.cursor() as cursor:
        give_up = time.monotonic() + 120
        while True:
            cursor.execute("select count(*) from workflow_execution where status = 'completed'")
            [done] = cursor.fetchone() or (0,)
            if done >= count:
                break
            if time.monotonic() > give_up:
                raise SystemExit(f"bench: {count - done} executions did not end")
            database.rollback()
            time.sleep(0.2)
        cursor.execute("select body from audit_event where type in ('StepReady', 'StepCompleted')")
        moments: dict[str, dict[str, datetime]] = {}
        for (body,) in cursor.fetchall():
            event = json.loads(bytes(body))
            at = event["at"] if event["type"] == "StepReady" else event["started_at"]
            moments.setdefault(event["execution"], {})[event["type"]] = datetime.fromisoformat(at)
    return [(each["StepCompleted"] - each["StepReady"]).total_seconds() * 1_000 for each in moments.values()]


def dispatches(services: LocalServices) -> list[int]:
    """How many step messages each execution took."""
    consumer = Consumer({"bootstrap.servers": services.bootstrap_servers, "group.id": "bench"})
    try:
        places = [TopicPartition(QUEUE, partition, 0) for partition in range(PARTITIONS)]
        left = sum(consumer.get_watermark_offsets(place)[1] for place in places)
        consumer.assign(places)
        found: Counter[str] = Counter()
        while left > 0:
            for message in consumer.consume(500, 1.0):
                if message.error() is None:
                    found[(message.key() or b"").decode()] += 1
                    left -= 1
        return list(found.values())
    finally:
        consumer.close()


def show(waits: Sequence[float], sent: Sequence[int]) -> int:
    p50, p99 = statistics.median(waits), statistics.quantiles(waits, n=100)[98]
    print(f"{len(waits)} steps: p50 {p50:,.0f} ms, p99 {p99:,.0f} ms, longest {max(waits):,.0f} ms")
    print(f"step messages each: mean {statistics.mean(sent):.1f}, most {max(sent)}")
    if p99 > LIMIT_MS:
        print(f"p99 is above {LIMIT_MS:,} ms")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
