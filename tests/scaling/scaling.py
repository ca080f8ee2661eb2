"""A system at work whose workers and engines join and leave, and what is measured meanwhile.

Times are those of the history records, by the broker's clock, and of the processes, by the same machine's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from confluent_kafka.admin import AdminClient

from flowpilot.local.system import LocalSystem
from flowpilot_schemas.history import from_iso
from flowpilot_schemas.topics import Topics
from tests.chaos import kill_loop
from tests.chaos.history import HistoryWatcher, StepDone
from tests.lines import whole_lines
from tests.scaling.load import Load
from tests.scaling.workflows import STEPS_EACH, WORKFLOWS
from tests.waiting import eventually

CONCURRENCY = 4
PARTITIONS = 4
# Executions live at once: enough that no partition runs dry, and few enough to end soon when the load stops.
DEPTH = 96
PATIENCE = 60.0


class Phase(NamedTuple):
    """A stretch with the same processes. `shares`: steps by worker, or by the engine that has their partition."""

    name: str
    rate: float
    """Steps a second."""
    pause: float
    """The longest time in seconds in which no step was completed."""
    shares: dict[str, int]
    partitions: list[int]
    """Those of the events topic in which something was completed."""


class Change(NamedTuple):
    """Processes joined or left. `joined`: seconds from a start to readiness, and from there to the first step."""

    name: str
    seconds: float
    pause: float
    """The longest time in seconds in which no step was completed."""
    worst: float
    """The same of the partition of executions that had the longest."""
    joined: dict[str, tuple[float, float]]


class Scaling:
    """See the module. `calls` is the handlers' file; `static`: all are static members of their groups."""

    def __init__(self, system: LocalSystem, topics: Topics, calls: Path, *, static: bool = False) -> None:
        self.system, self.topics, self.calls_file, self.static = system, topics, calls, static
        self.phases: list[Phase] = []
        self.changes: list[Change] = []
        self.pids: dict[str, int] = {}
        """Of every process there ever was."""
        self.held: list[str] = []
        """The executions of long handlers."""
        self._ready: dict[str, tuple[float, float]] = {}
        """When each was ready (s since the epoch), and how long that took."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Set up, start one process of every role and the load; at the end the load stops."""
        self.system.run("setup")
        self.start({"engine-1": "engine", "router": "router", "audit": "audit", "worker-1": "worker"})
        servers = self.system.services.bootstrap_servers
        self._admin = AdminClient({"bootstrap.servers": servers, "log_level": 2})
        self.watcher = HistoryWatcher(servers, self.topics.history)
        self.load = Load(servers, self.topics.triggers, self.watcher, "scaling-short", DEPTH)
        try:
            yield
        finally:
            self.load.stop()
            self.watcher.close()

    # Processes

    def start(self, roles: Mapping[str, str]) -> None:
        """Start processes (name: role) side by side, and wait until they are ready."""

        def start(name: str, role: str) -> None:
            began = time.time()
            serving = (*WORKFLOWS, "--concurrency", str(CONCURRENCY)) if role == "worker" else ()
            self.pids[name] = self.system.start(name, role, *serving, ready_timeout=PATIENCE, static=self.static)
            self._ready[name] = (time.time(), time.time() - began)

        with ThreadPoolExecutor(len(roles)) as pool:
            for started in [pool.submit(start, *role) for role in roles.items()]:
                started.result()

    def leave(self, names: Sequence[str], meanwhile: Callable[[], None] = lambda: None) -> list[int | None]:
        """Ask processes to leave by SIGTERM, call `meanwhile`, and wait for their ends; the exit statuses."""
        with ThreadPoolExecutor(len(names)) as pool:
            leaving = [pool.submit(self.system.supervisor.stop, name) for name in names]
            meanwhile()
            return [left.result() for left in leaving]

    # Groups

    def wait_for_workers(self, count: int) -> None:
        """Wait until so many workers share the partitions of both queues, each with its equal part."""
        for queue in ("scaling-short", "scaling-long"):
            self._split(self.topics.worker_group(queue), self.topics.steps(queue), count)

    def wait_for_engines(self, count: int) -> dict[str, list[int]]:
        """The same of engines and the events topic; the partitions by member id."""
        return self._split(self.topics.app_id, self.topics.events, count)

    def _split(self, group: str, topic: str, count: int) -> dict[str, list[int]]:
        equal = [PARTITIONS // count] * count

        def split() -> dict[str, list[int]] | None:
            found = self._admin.describe_consumer_groups([group])[group].result(10)
            parts = {
                member.member_id: [tp.partition for tp in member.assignment.topic_partitions if tp.topic == topic]
                for member in found.members
            }
            return parts if found.state.name == "STABLE" and [*map(len, parts.values())] == equal else None

        return eventually(split, PATIENCE, what=f"{count} members of {group} with {equal[0]} partitions each")

    # Figures

    def steps(self, since: int = 0) -> list[StepDone]:
        """The steps completed from `since` on, ms since the epoch, in their order."""
        return sorted(step for step in list(self.watcher.steps) if step.at >= since)

    def measure(self, name: str, count: int, engines: Mapping[int, str] | None = None) -> Phase:
        """Wait for `count` further steps; who took them: the workers, or the `engines` by partition."""
        began = now()
        self.wait_for_steps(count)
        steps = self.steps(began)
        shares = Counter(engines[step.partition] if engines else self.worker(step) for step in steps)
        rate = (len(steps) - 1) / (steps[-1].at - steps[0].at) * 1000
        phase = Phase(
            name,
            rate,
            _longest([step.at for step in steps]),
            dict(sorted(shares.items())),
            sorted({step.partition for step in steps}),
        )
        self.phases.append(phase)
        return phase

    def wait_for_steps(self, count: int) -> None:
        """Wait for so many further steps."""
        began = now()
        eventually(lambda: len(self.steps(began)) >= count, PATIENCE, what=f"{count} further steps")

    @contextmanager
    def change(self, name: str, joining: Sequence[str] = ()) -> Iterator[None]:
        """Inside, processes join or leave; at its end those that join have each completed a step."""
        began = now()
        yield
        firsts = {name: eventually(lambda name=name: self._first(name), PATIENCE, what=f"a step by {name}")
                  for name in joining if name.startswith("worker")}  # fmt: skip
        joined = {}
        for newcomer in joining:
            at, took = self._ready[newcomer]
            joined[newcomer] = (took, max(0.0, firsts.get(newcomer, at) - at))
        steps, ended = self.steps(began), now()
        pauses = [
            _longest([began, *(step.at for step in steps if partition in (None, step.partition)), ended])
            for partition in (None, *range(PARTITIONS))
        ]
        self.changes.append(Change(name, (ended - began) / 1000, pauses[0], max(pauses), joined))

    def _first(self, worker: str) -> float | None:
        """When the worker began the first step that it completed, s since the epoch."""
        began = [from_iso(step.started_at) / 1000 for step in self.steps() if self.worker(step) == worker]
        return min(began, default=None)

    def worker(self, step: StepDone) -> str:
        """The name of the worker that ran the step; its id is host:pid:random."""
        pid = int(step.worker_id.split(":")[1])
        return next((name for name, known in self.pids.items() if known == pid), step.worker_id)

    # Handlers

    def hold(self, release: Path, count: int) -> list[str]:
        """Start long handlers that run until the file `release` is there; their executions, once all run."""
        executions = [
            self.load.start("scaling-long", str(release), f"{release}-{number}")
            for number in range(count // STEPS_EACH)
        ]
        self.held += executions
        eventually(lambda: len(self._calls(executions)) >= count, PATIENCE, what=f"{count} long handlers at once")
        return executions

    def holders(self, executions: Sequence[str]) -> list[str]:
        """The workers that started their handlers, the one with most first."""
        names = {str(pid): name for name, pid in self.pids.items()}
        return [name for name, _ in Counter(names[call[3]] for call in self._calls(executions)).most_common()]

    def starts(self, executions: Sequence[str] | None = None) -> Counter[str]:
        """How often the handler of each attempt (step, execution, attempt) of them was started; None: of all."""
        return Counter(" ".join(call[:3]) for call in self._calls(executions))

    def _calls(self, executions: Sequence[str] | None) -> list[list[str]]:
        calls = [line.split() for line in whole_lines(self.calls_file)]
        return [call for call in calls if executions is None or call[1] in executions]

    # The end

    def differences(self) -> list[str]:
        """Stop the load, wait for the last execution, and compare ledger, history and PostgreSQL."""
        self.load.stop()
        keys = self.load.keys
        kill_loop.wait_for(lambda: len(self.watcher.ended) >= len(keys) and not self.watcher.live(), PATIENCE)

        def compare() -> list[str]:
            url = self.system.services.database_url
            return kill_loop.compare(self.watcher, keys, url, steps_each=STEPS_EACH)

        kill_loop.wait_for(lambda: not compare(), PATIENCE / 2)
        return compare()


def now() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def _longest(times: Sequence[int]) -> float:
    """The longest time between two of them, in seconds."""
    return max(after - before for before, after in pairwise(times)) / 1000
