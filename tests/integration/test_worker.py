"""Worker processes on real Kafka: killed, stopped, joined by others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from flowpilot.adapters.kafka.admin import KafkaAdmin
from flowpilot.settings import Settings
from flowpilot_schemas.codec import decode, encode
from flowpilot_schemas.history import iso
from tests.integration.worker_flows import flows
from tests.lines import whole_lines
from tests.waiting import eventually

pytestmark = pytest.mark.integration

_PROGRAM = """
import sys
from flowpilot import Worker
from tests.integration.worker_flows import flows
sys.exit(Worker(flows, concurrency=4).run())
"""
_ROOT = Path(__file__).parents[2]


class Bench:
    """Worker processes, the step messages sent to them and what they answer."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.settings, self.calls_file = settings, directory / "calls"
        self.calls_file.touch()
        self.topic = settings.topics.steps("flows")
        self.group = settings.topics.worker_group("flows")
        self._servers = {"bootstrap.servers": settings.bootstrap_servers}
        self.producer = Producer(self._servers)
        self._admin = AdminClient(self._servers)
        KafkaAdmin(settings).ensure_step_topics(["flows"])
        self._reader = Consumer({**self._servers, "group.id": f"{settings.namespace}.look"})
        events = settings.topics.events
        self._reader.assign([TopicPartition(events, n, 0) for n in range(settings.event_partitions)])
        self._answers: list[dict[str, Any]] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "FLOWS_CALLS": str(self.calls_file),
            "FLOWPILOT_BOOTSTRAP_SERVERS": self.settings.bootstrap_servers,
            "FLOWPILOT_NAMESPACE": self.settings.namespace,
            "PYTHONPATH": os.pathsep.join(str(_ROOT / part) for part in (".", "agents", "schemas")),
        }
        process = subprocess.Popen([sys.executable, "-c", _PROGRAM], env=environment, cwd=self.calls_file.parent)
        self.processes.append(process)
        return process

    def members(self) -> int:
        """Members of the group that have partitions, once nothing moves."""
        found = self._described()
        if found is None or found.state.name != "STABLE":
            return 0
        assigned = [len(member.assignment.topic_partitions) for member in found.members]
        return len(assigned) if sum(assigned) == self.settings.step_partitions and all(assigned) else 0

    def is_left(self) -> bool:
        """Whether the group has no member."""
        found = self._described()
        return found is not None and not found.members

    def _described(self) -> Any:
        """The group; None while a young broker still makes its coordinator."""
        try:
            return self._admin.describe_consumer_groups([self.group])[self.group].result(10)
        except KafkaException as error:
            if error.args[0].code() in (KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.NOT_COORDINATOR):
                return None
            raise

    def send(self, step: str, *, partition: int = 0) -> str:
        execution = str(uuid.uuid4())
        key = f"{execution}/7/{step}"
        message = {
            "v": 1, "type": "step.ready", "task_id": f"{key}/1", "workflow": "flows", "version": "1",
            "definition": flows.definition.hash, "step": step, "attempt": 1, "idempotency_key": key,
            "start_to_close_ms": 60_000, "heartbeat_ms": 30_000, "result_limit": 65_536,
            "not_after": iso(int(time.time() * 1_000) + 600_000),
            "reply": {"topic": self.settings.topics.events, "partition": 1, "key": execution},
        }  # fmt: skip
        self.producer.produce(self.topic, encode(message), key.encode(), partition=partition)
        assert self.producer.flush(10) == 0
        return key

    def answered(self, key: str, kind: str) -> int:
        """How often the step was answered so."""
        self._read()
        return sum(a["type"] == f"step.{kind}" and a["task_id"] == f"{key}/1" for a in self._answers)

    def all_completed(self, keys: list[str]) -> bool:
        """Whether each of the steps is answered."""
        self._read()
        done = {a["task_id"] for a in self._answers if a["type"] == "step.completed"}
        return {f"{key}/1" for key in keys} <= done

    def workers(self) -> set[str]:
        """Who answered."""
        return {a["worker_id"] for a in self._answers}

    def _read(self) -> None:
        while (message := self._reader.poll(0.05)) is not None:
            if message.error() is None:
                self._answers.append(decode(message.value()))

    def calls(self) -> Counter[str]:
        return Counter(whole_lines(self.calls_file))

    def committed(self, partition: int = 0) -> int:
        wanted = ConsumerGroupTopicPartitions(self.group, [TopicPartition(self.topic, partition)])
        found = self._admin.list_consumer_group_offsets([wanted])[self.group].result(10).topic_partitions
        return max(0, found[0].offset)

    def let_go(self) -> None:
        """Long handlers end now."""
        self.calls_file.with_suffix(".open").touch()

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)
        self._reader.close()


@pytest.fixture
def bench(kafka_settings: Settings, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(kafka_settings, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("step", ["kill_process", "exit_process"])
def test_a_handler_that_ends_its_process_runs_at_most_twice_and_blocks_nothing(bench: Bench, step: str) -> None:
    bench.start()
    eventually(lambda: bench.members() == 1)
    killer = bench.send(step)
    others = [bench.send("quick") for _ in range(5)]
    last = bench.send("quick")

    def restarted_and_answered(key: str) -> bool:
        if bench.processes[-1].poll() is not None:  # as a supervisor does
            bench.start()
        return len(bench.processes) > 1 and bench.all_completed([key])

    # A suspect runs after the commit: the killer's end may come when all others are answered and committed.
    eventually(lambda: restarted_and_answered(last), 90)
    eventually(lambda: bench.committed() == 7)
    afterwards = bench.send("quick")
    eventually(lambda: restarted_and_answered(afterwards), 60)
    assert len(bench.processes) <= 3
    assert 1 <= bench.calls()[f"{step.partition('_')[0]} {killer}"] <= 2
    # Whatever the process took with it is watched by the engine's heartbeat timer, the killer too.
    assert bench.answered(killer, "started") >= 1
    assert all(bench.answered(key, "completed") or bench.answered(key, "started") for key in others)
    assert bench.processes[-1].poll() is None


def test_a_killed_worker_loses_no_step_and_runs_none_more_than_twice(bench: Bench) -> None:
    process = bench.start()
    eventually(lambda: bench.members() == 1)
    keys = [bench.send("quick", partition=n % 4) for n in range(400)]
    eventually(lambda: sum(bench.calls().values()) > 20)
    process.kill()
    process.wait(10)
    bench.start()
    eventually(lambda: bench.all_completed(keys), 60)
    assert max(bench.calls().values()) <= 2


@pytest.mark.parametrize("step", ["long", "long_sync"])
def test_a_long_handler_holds_no_position_back_and_is_not_run_again(bench: Bench, step: str) -> None:
    bench.start()
    eventually(lambda: bench.members() == 1)
    long = bench.send(step)
    quick = [bench.send("quick") for _ in range(20)]
    eventually(lambda: bench.committed() == 21)
    assert bench.answered(long, "started") == 1
    assert bench.answered(long, "completed") == 0
    bench.start()  # it joins, and gets half of the partitions
    eventually(lambda: bench.members() == 2, 60)
    bench.let_go()
    eventually(lambda: bench.answered(long, "completed"))
    assert bench.all_completed(quick)
    assert bench.calls()[f"{step} {long}"] == 1


def test_two_workers_share_the_queue(bench: Bench) -> None:
    bench.start()
    bench.start()
    eventually(lambda: bench.members() == 2, 60)
    keys = [bench.send("quick", partition=n % 4) for n in range(40)]
    eventually(lambda: bench.all_completed(keys))
    assert len(bench.workers()) == 2
    assert set(bench.calls().values()) == {1}


def test_sigterm_finishes_what_runs_and_hands_back_the_rest(bench: Bench) -> None:
    process = bench.start()
    eventually(lambda: bench.members() == 1)
    keys = [bench.send("long") for _ in range(12)]  # four run at once
    eventually(lambda: len(bench.calls()) == 4)
    process.send_signal(signal.SIGTERM)
    bench.let_go()
    assert process.wait(20) == 0
    begun = len(bench.calls())
    assert begun < 12  # four, or more if they ended before the signal was there
    eventually(lambda: sum(bench.answered(key, "completed") for key in keys) == begun)
    eventually(lambda: bench.is_left(), 3)  # it left: nobody waits for its session to end
    bench.start()
    eventually(lambda: bench.all_completed(keys), 60)
    assert set(bench.calls().values()) == {1}
