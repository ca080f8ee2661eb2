"""The history topic, read beside the audit writer by a plain consumer: what is live, and what is true."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition

ENDS = {"ExecutionCompleted", "ExecutionFailed", "ExecutionCancelled"}


@dataclass
class Chain:
    """The events of one run so far, by seq: (hash before, hash after, type)."""

    events: dict[int, tuple[bytes, bytes, str]] = field(default_factory=dict)


class StepDone(NamedTuple):
    """A `StepCompleted`: when it was written (ms since the epoch), its partition, who ran the step since when."""

    at: int
    partition: int
    worker_id: str
    started_at: str


class HistoryWatcher:
    """Reads a history topic from its beginning in a thread, and checks every record as it comes."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self.runs: dict[tuple[str, int], Chain] = {}
        self.keys: dict[str, str] = {}
        self.faults: list[str] = []
        self.ended: dict[tuple[str, int], str] = {}
        self.steps: list[StepDone] = []
        self.repeated = 0
        self._arrivals: deque[float] = deque(maxlen=20_000)
        self._stop = threading.Event()
        self._topic = topic
        self._consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": f"{topic}-watcher"})
        partitions = self._consumer.list_topics(topic, 10).topics[topic].partitions
        self._consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def live(self) -> int:
        """Runs that have begun and not ended."""
        return len(self.runs) - len(self.ended)

    def longest_silence(self, since: float) -> float:
        """The longest time in seconds between two new events after `since` (monotonic)."""
        times = [since, *(at for at in list(self._arrivals) if at > since)]
        return max((after - before for before, after in pairwise(times)), default=0.0)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            for message in self._consumer.consume(500, 0.1):
                if message.error() is None:
                    self._take(message)

    def _take(self, message: Message) -> None:
        value, headers = message.value() or b"", dict(message.headers() or [])
        event = json.loads(value)
        run, seq, kind = (event["execution"], event["run"]), event["seq"], event["type"]
        before, after = headers["fp-prev"], headers["fp-hash"]
        chain = self.runs.setdefault(run, Chain())
        if hashlib.sha256(before + value).digest() != after:
            self.faults.append(f"{run} seq {seq}: the hash is not that of the record")
        known = chain.events.get(seq)
        if known is not None:
            self.repeated += 1
            if known[1] != after:
                self.faults.append(f"{run} seq {seq}: two different events")
            return
        previous = chain.events.get(seq - 1)
        if seq > 1 and previous is None:
            self.faults.append(f"{run} seq {seq}: the event before it is missing")
        elif previous is not None and previous[1] != before:
            self.faults.append(f"{run} seq {seq}: does not follow seq {seq - 1}")
        chain.events[seq] = (before, after, kind)
        self._arrivals.append(time.monotonic())
        if kind == "ExecutionStarted":
            self.keys[event["key"]] = event["execution"]
        if kind == "StepCompleted":
            who, since = event.get("worker_id", ""), event.get("started_at", "")
            self.steps.append(StepDone(message.timestamp()[1], message.partition(), who, since))
        if kind in ENDS:
            if run in self.ended:
                self.faults.append(f"{run} seq {seq}: ended twice")
            self.ended[run] = kind
