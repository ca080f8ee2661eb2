"""Load that keeps the queue full: as executions end, others are started, so that there is always work to share."""

from __future__ import annotations

import json
import threading

from confluent_kafka import Producer

from flowpilot_schemas.ids import keyed_execution_id
from tests.chaos.history import HistoryWatcher


class Load:
    """A thread that keeps `depth` executions of `workflow` live until `stop`; `keys` is what the broker has."""

    def __init__(self, servers: str, topic: str, watcher: HistoryWatcher, workflow: str, depth: int) -> None:
        self.keys: set[str] = set()
        self._topic, self._watcher, self._workflow, self._depth = topic, watcher, workflow, depth
        self._number = 0
        self._producer = Producer({"bootstrap.servers": servers, "log_level": 2, "enable.idempotence": True})
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def start(self, workflow: str, input: object, key: str) -> str:
        """Start one execution of another workflow; its id."""
        self._publish(workflow, key, input)
        self._producer.flush(30)
        return keyed_execution_id(workflow, key)

    def stop(self) -> None:
        """Start nothing more."""
        self._over.set()
        self._thread.join()
        self._producer.flush(30)

    def _run(self) -> None:
        while not self._over.wait(0.02):
            missing = self._depth - (self._number - len(self._watcher.ended))
            for _ in range(missing):
                self._publish(self._workflow, f"load-{self._number}", None)
                self._number += 1
            self._producer.poll(0)

    def _publish(self, workflow: str, key: str, input: object) -> None:
        value = json.dumps({"v": 1, "workflow": workflow, "key": key, "input": input})

        def delivered(error: object, _: object) -> None:
            if error is None:
                self.keys.add(key)

        self._producer.produce(self._topic, value, key=key, on_delivery=delivered)
