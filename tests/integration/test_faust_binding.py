"""The Faust binding on real Kafka, with an engine that records what is done with it (faust_recorder.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from flowpilot.engine.table import headers_of
from flowpilot.settings import Settings
from tests.lines import whole_lines
from tests.waiting import eventually

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
RECORDER = Path(__file__).with_name("faust_recorder.py")
Call = dict[str, Any]


class EngineProcess:
    """One process of the engine, and its journal."""

    def __init__(self, settings: Settings, journal: Path, *, member: str | None = None, **environment: str) -> None:
        self.settings = settings
        self.journal = journal
        self.errors = journal.with_suffix(f".{time.monotonic_ns()}.err")
        # What is on the path already stays: `make mutants` plants its defects in a child from there.
        given = [path for path in (os.environ.get("PYTHONPATH"),) if path]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "agents"), str(ROOT / "schemas"), *given])
        known = {
            "PYTHONPATH": paths,
            "FLOWPILOT_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "FLOWPILOT_NAMESPACE": settings.namespace,
            "RECORDER_JOURNAL": str(journal),
            **({"FLOWPILOT_MEMBER_ID": member} if member else {}),
            **environment,
        }
        with self.errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(RECORDER)], env={**os.environ, **known}, stderr=stderr, cwd=journal.parent
            )

    def calls(self, name: str) -> list[Call]:
        """The calls of that name by this process, in order."""
        return [call for call in self._calls() if call["call"] == name]

    def processed(self) -> dict[int, list[int]]:
        """Offsets by partition, in the order of processing."""
        offsets: dict[int, list[int]] = {}
        for call in self.calls("process"):
            offsets.setdefault(call["partition"], []).extend(call["offsets"])
        return offsets

    def owns(self) -> set[int]:
        """The partitions that it has claimed and not given back, by its last calls."""
        owned: set[int] = set()
        for call in self._calls():
            if call["call"] in ("assign", "revoke"):
                (owned.add if call["call"] == "assign" else owned.discard)(call["partition"])
        return owned

    def _calls(self) -> list[Call]:
        calls = [json.loads(line) for line in whole_lines(self.journal)]
        return [call for call in calls if call["pid"] == self.process.pid]

    def said(self) -> list[str]:
        """What it printed on stderr besides that it is ready."""
        lines = self.errors.read_text().splitlines()
        return [line for line in lines if not line.startswith("engine ready: ")]

    def alive(self) -> bool:
        assert self.process.poll() is None, self.errors.read_text()
        return True

    def wait_for(self, condition: Callable[[], object], timeout: float = 30.0) -> None:
        eventually(lambda: self.alive() and condition(), timeout)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


class Bench:
    """Starts engine processes, produces events and looks at the group's positions."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.settings = settings
        self.journal = directory / "journal.jsonl"
        self.started: list[EngineProcess] = []
        self._producer = Producer({"bootstrap.servers": settings.bootstrap_servers, "linger.ms": 2})
        self._group = Consumer(
            {"bootstrap.servers": settings.bootstrap_servers, "group.id": settings.topics.app_id}
        )

    def start(self, *, member: str | None = None, **environment: str) -> EngineProcess:
        self.started.append(EngineProcess(self.settings, self.journal, member=member, **environment))
        return self.started[-1]

    def send(self, partition: int, *events: Mapping[str, object]) -> None:
        for event in events:
            key = str(event.get("key", "k")).encode()
            self._producer.produce(self.settings.topics.events, json.dumps(event).encode(), key, partition)
        assert self._producer.flush(10) == 0

    def changelog(self, partition: int, key: str, value: str | None, src: int, epoch: int) -> None:
        self._producer.produce(
            self.settings.topics.changelog,
            None if value is None else value.encode(),
            key.encode(),
            partition,
            headers=list(headers_of(src, epoch)),
        )
        assert self._producer.flush(10) == 0

    def committed(self) -> dict[int, int]:
        """The group's positions, where there are any."""
        topic, count = self.settings.topics.events, self.settings.event_partitions
        asked = [TopicPartition(topic, number) for number in range(count)]
        found = eventually(lambda: self._answered(asked), what="the group's coordinator")
        return {item.partition: item.offset for item in found if item.offset >= 0}

    def _answered(self, asked: list[TopicPartition]) -> list[TopicPartition] | None:
        try:
            return self._group.committed(asked, 10)
        except KafkaException as error:  # a broker that has just begun makes the groups' topic first
            if error.args[0].code() not in (KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS):
                raise
            return None

    def members(self) -> int:
        """How many members the group has now."""
        group = self.settings.topics.app_id
        admin = AdminClient({"bootstrap.servers": self.settings.bootstrap_servers})
        return len(admin.describe_consumer_groups([group])[group].result(10).members)

    def close(self) -> None:
        for engine in self.started:
            if engine.process.poll() is None:
                engine.kill()
        self._group.close()


@pytest.fixture
def bench(kafka_settings: Settings, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(kafka_settings, tmp_path)
    yield made
    made.close()


def test_batches_arrive_in_order_and_are_committed_and_sigterm_leaves_cleanly(bench: Bench) -> None:
    engine = bench.start()
    for partition in range(4):
        bench.send(partition, *({"n": n} for n in range(50)))
    engine.wait_for(lambda: bench.committed() == {0: 50, 1: 50, 2: 50, 3: 50})
    assert bench.members() == 1
    assert engine.processed() == {partition: list(range(50)) for partition in range(4)}
    assert [call["committed"] for call in engine.calls("assign")] == [None] * 4

    bench.send(2, {"n": 50})
    engine.wait_for(lambda: len(engine.processed()[2]) == 51)
    assert engine.stop() == 0, engine.errors.read_text()
    assert bench.committed()[2] == 51, "what was finished is committed on the way out"
    assert engine.said() == []
    assert {item.name for item in bench.journal.parent.iterdir()} == {bench.journal.name, engine.errors.name}

    assert bench.members() == 0, "it left: nobody waits for the end of its session"


def test_timers_run_between_batches(bench: Bench) -> None:
    engine = bench.start()
    engine.wait_for(lambda: engine.calls("tick"))


def test_what_is_under_way_is_not_committed(bench: Bench) -> None:
    engine = bench.start(FLOWPILOT_BATCH_SIZE="1")
    bench.send(0, {"n": 0}, {"n": 1}, {"do": "hang"}, {"n": 3})
    engine.wait_for(lambda: engine.calls("hang") and bench.committed() == {0: 2})
    bench.send(0, {"n": 4})
    bench.send(1, {"n": 0})
    engine.kill()
    assert bench.committed() == {0: 2}


def test_a_failure_ends_the_process_at_once_and_commits_nothing_of_its_batch(bench: Bench) -> None:
    engine = bench.start(FLOWPILOT_BATCH_SIZE="10")
    bench.send(0, *({"n": n} for n in range(10)))
    engine.wait_for(lambda: bench.committed() == {0: 10})
    bench.send(0, {"n": 10}, {"do": "fail"}, {"n": 12})
    assert engine.process.wait(10) == 70
    [line] = engine.said()
    assert "RuntimeError: told to fail" in line

    successor = bench.start(FLOWPILOT_BATCH_SIZE="1")
    assert successor.process.wait(30) == 70
    assert bench.committed()[0] in (10, 11)  # the good record before it, if there was time; never beyond


def test_a_killed_process_is_followed_by_one_that_reads_everything_again(bench: Bench) -> None:
    began = time.time()
    engine = bench.start(member="m0")
    bench.send(1, *({"n": n} for n in range(5)))
    engine.wait_for(lambda: bench.committed() == {1: 5})
    cold = engine.calls("process")[0]["at"] - began
    bench.send(1, *({"n": n} for n in range(5, 8)), {"do": "hang"})
    engine.wait_for(lambda: engine.calls("hang"))
    at = bench.committed()[1]
    engine.kill()
    killed = time.time()

    successor = bench.start(member="m0")
    successor.wait_for(lambda: successor.calls("hang"))
    [assign] = [call for call in successor.calls("assign") if call["partition"] == 1]
    assert assign["committed"] == assign["start"] == at
    took = successor.calls("hang")[0]["at"] - killed
    assert took < max(6.0, 2 * cold), f"{took:.1f} s after the kill, {cold:.1f} s for a first start on this machine"


def test_recovery_keeps_the_highest_src_and_epoch_not_the_last_record(bench: Bench) -> None:
    bench.changelog(0, "overtaken", "right", src=9, epoch=2)
    bench.changelog(0, "overtaken", "late, of an earlier owner", src=7, epoch=1)
    bench.changelog(0, "same-src", "late", src=5, epoch=1)
    bench.changelog(0, "same-src", "right", src=5, epoch=2)
    bench.changelog(0, "gone", "was there", src=3, epoch=2)
    bench.changelog(0, "gone", None, src=4, epoch=2)
    bench.changelog(0, "gone", "late", src=3, epoch=1)
    bench.changelog(3, "elsewhere", "right", src=1, epoch=6)
    engine = bench.start()
    engine.wait_for(lambda: len(engine.owns()) == 4)
    assigned = {call["partition"]: call for call in engine.calls("assign")}
    assert assigned[0]["entries"] == {"overtaken": "right", "same-src": "right", "gone": ""}
    assert assigned[0]["epoch"] == 3
    assert assigned[0]["read_to"] == 7
    assert assigned[3]["entries"] == {"elsewhere": "right"}
    assert assigned[1]["entries"] == {}


def test_assign_may_move_the_start_back(bench: Bench) -> None:
    engine = bench.start(member="m0")
    bench.send(0, *({"n": n} for n in range(20)))
    engine.wait_for(lambda: bench.committed() == {0: 20})
    assert engine.stop() == 0

    rewound = bench.start(member="m0", RECORDER_REWIND="15")
    rewound.wait_for(lambda: rewound.processed().get(0) == list(range(5, 20)))
    bench.send(0, {"n": 20})
    rewound.wait_for(lambda: rewound.processed()[0] == list(range(5, 21)))
    rewound.wait_for(lambda: bench.committed() == {0: 21})


def test_a_stopped_partition_is_left_and_the_others_go_on(bench: Bench) -> None:
    engine = bench.start()
    bench.send(0, {"n": 0}, {"n": 1})
    bench.send(1, {"n": 0})
    engine.wait_for(lambda: bench.committed() == {0: 2, 1: 1})
    bench.send(0, {"n": 2}, {"do": "stop"}, {"n": 4})
    bench.send(1, {"n": 1})
    engine.wait_for(lambda: bench.committed() == {0: 3, 1: 2})
    bench.send(0, {"n": 5})
    bench.send(1, {"n": 2})
    engine.wait_for(lambda: bench.committed() == {0: 3, 1: 3})
    assert engine.processed()[0] == [0, 1, 2]
    assert "Partition 0 is stopped: told to stop" in engine.errors.read_text()


def test_a_second_process_takes_half_and_gives_it_back_and_nothing_is_lost(bench: Bench) -> None:
    first = bench.start()
    sent = 0

    def produce(count: int) -> None:
        nonlocal sent
        for _ in range(count):
            for partition in range(4):
                bench.send(partition, {"n": sent, "key": f"k{sent % 5}"})
            sent += 1

    produce(20)
    first.wait_for(lambda: len(bench.committed()) == 4)
    second = bench.start()
    deadline = time.monotonic() + 30
    while len(second.owns()) < 2 or len(first.owns()) > 2:
        assert time.monotonic() < deadline
        produce(2)
    produce(20)
    second.wait_for(lambda: bench.committed() == dict.fromkeys(range(4), sent))
    assert first.owns() | second.owns() == set(range(4))
    assert not first.owns() & second.owns()

    # What the first kept it claimed anew, and read nothing of its changelog again.
    kept = [call for call in first.calls("assign") if call["partition"] in first.owns() and call["epoch"] > 1]
    assert kept
    assert all(call["loaded"] == 0 for call in kept)

    # A key's state came over with its partition.
    taken = [call for call in second.calls("assign") if call["partition"] in second.owns()]
    assert all(call["entries"].keys() >= {"k0", "k1", "k2", "k3", "k4"} for call in taken)

    assert second.stop() == 0, second.errors.read_text()
    produce(5)
    first.wait_for(lambda: bench.committed() == dict.fromkeys(range(4), sent))
    for partition in range(4):
        done = first.processed().get(partition, []) + second.processed().get(partition, [])
        assert sorted(done) == list(range(sent)), "finished and committed before it is given back"


def test_a_process_that_stood_still_writes_nothing_more(bench: Bench) -> None:
    engine = bench.start()
    bench.send(0, {"n": 0})
    engine.wait_for(lambda: bench.committed() == {0: 1})
    engine.process.send_signal(signal.SIGSTOP)
    successor = bench.start()
    successor.alive()
    eventually(lambda: len(successor.owns()) == 4, 30)
    bench.send(0, {"n": 1})
    eventually(lambda: successor.processed().get(0) == [1])
    engine.process.send_signal(signal.SIGCONT)
    assert engine.process.wait(10) == 70
    assert "stood still" in engine.errors.read_text()
    assert engine.processed() == {0: [0]}


def test_two_engines_of_one_name_are_told_so(bench: Bench) -> None:
    first = bench.start(member="twin")
    first.wait_for(lambda: len(first.owns()) == 4)
    second = bench.start(member="twin")
    first.wait_for(lambda: second.alive() and "another process has joined as 'twin'" in first.errors.read_text())
    assert "a FLOWPILOT_MEMBER_ID of its own" in first.said()[0]

    # A restart within the session is no namesake.
    first.kill()
    second.kill()
    third = bench.start(member="twin")
    third.wait_for(lambda: len(third.owns()) == 4)
    bench.send(0, {"n": 0})
    third.wait_for(lambda: bench.committed() == {0: 1})
    assert third.said() == []
    assert third.stop() == 0


def test_missing_topics_and_an_absent_broker_are_one_sentence(settings: Settings, tmp_path: Path) -> None:
    missing = EngineProcess(settings, tmp_path / "journal")
    assert missing.process.wait(20) == 1
    [line] = missing.said()
    assert "run `flowpilot setup`" in line

    away = EngineProcess(settings.model_copy(update={"bootstrap_servers": "127.0.0.1:1"}), tmp_path / "journal")
    assert away.process.wait(30) == 7
    [line] = away.said()
    assert "127.0.0.1:1" in line
