"""Steps run by programs that know of FlowPilot nothing but its messages: `examples/workers`, on the system."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.acceptance.running import PATIENCE, ROOT, RunningSystem
from tests.lines import whole_lines
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

EXAMPLES = ROOT / "examples" / "workers"
LEAST_NODE = (20, 19, 4)  # what the client that package.json names asks for


class ForeignWorker:
    """A process that serves one step. It can be killed and started again; `runs` is what it said it runs."""

    def __init__(self, system: RunningSystem, step: str, queue: str, command: Sequence[str], folder: Path) -> None:
        self.system, self.step = system, step
        self._command = [*command, system.services.bootstrap_servers, system.settings.topics.steps(queue)]
        self._log = folder / f"{step}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)

    def kill(self) -> None:
        """kill -9"""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def still_runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def runs(self, execution: str) -> list[str]:
        """The task ids of this execution's step that it took, in order."""
        lines = whole_lines(self._log)
        taken = [line.removeprefix("runs ") for line in lines if line.startswith("runs ")]
        return [task for task in taken if task.startswith(f"{execution}/")]

    def told(self, execution: str, kind: str) -> list[dict[str, Any]]:
        """The history events of one type about the step."""
        return [
            event
            for event in self.system.history(execution)
            if event["type"] == kind and event["step"] == self.step
        ]

    def completed(self, execution: str) -> dict[str, Any]:
        """The step's completion, once it is there."""

        def there() -> list[dict[str, Any]]:
            assert self.still_runs(), self._log.read_text()
            assert not self.told(execution, "StepFailed")
            return self.told(execution, "StepCompleted")

        return eventually(there, PATIENCE, what=f"{self.step} of {execution}: {self._log}")[0]


@contextmanager
def serving(worker: ForeignWorker) -> Iterator[ForeignWorker]:
    worker.start()
    try:
        yield worker
    finally:
        worker.kill()


@pytest.fixture(scope="module")
def orders(system: RunningSystem) -> None:
    system.cli("workflow", "apply", f"{EXAMPLES / 'orders.py'}:orders")


@pytest.fixture(scope="module")
def python(
    system: RunningSystem, orders: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ForeignWorker]:
    command = [sys.executable, str(EXAMPLES / "worker.py")]
    with serving(ForeignWorker(system, "quote", "pricing", command, tmp_path_factory.mktemp("python"))) as worker:
        yield worker


@pytest.fixture(scope="module")
def node(
    system: RunningSystem, python: ForeignWorker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ForeignWorker]:
    """Its steps come after those of the worker in Python."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("there is no node and npm on the path")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if tuple(int(part) for part in version.removeprefix("v").split(".")) < LEAST_NODE:
        pytest.skip(f"node is {version}; the example needs v{'.'.join(map(str, LEAST_NODE))}")
    folder = tmp_path_factory.mktemp("node")
    for name in ("worker.mjs", "package.json", "package-lock.json"):
        shutil.copy(EXAMPLES / "node" / name, folder)
    # What is optional is native code that the client does without.
    install = [npm, "ci", "--omit=optional", "--prefer-offline", "--no-audit", "--no-fund"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    with serving(ForeignWorker(system, "label", "shipping", [node, str(folder / "worker.mjs")], folder)) as worker:
        yield worker


class Said(NamedTuple):
    """What a worker's step is expected to give, and the error it gives while its service is busy."""

    output: dict[str, Any]
    error: dict[str, Any]


SAID = {
    "quote": Said({"cents": 500}, {"kind": "ConnectionError", "message": "the price service is busy"}),
    "label": Said({"text": "2 × tea, 500 cents"}, {"kind": "Error", "message": "the label printer is busy"}),
}


@pytest.fixture(params=["python", "node"])
def worker(request: pytest.FixtureRequest) -> ForeignWorker:
    found: ForeignWorker = request.getfixturevalue(request.param)
    return found


def order(system: RunningSystem, **more: Any) -> str:
    return system.trigger("orders", {"sku": "tea", "quantity": 2, **more})


def test_a_foreign_worker_completes_fails_and_tells_that_it_is_alive(
    system: RunningSystem, worker: ForeignWorker
) -> None:
    plain, busy, long = order(system), order(system, busy=1), order(system, seconds=4)
    said = SAID[worker.step]

    assert worker.completed(plain)["output"] == said.output
    completed = worker.completed(busy)
    assert (completed["attempt"], completed["output"]) == (2, said.output)
    [retried] = worker.told(busy, "StepRetryScheduled")
    assert retried["error"] == said.error

    # Longer than the step's heartbeat of 3 s: without a sign of life it would have been tried again.
    assert worker.completed(long)["attempt"] == 1
    assert worker.told(long, "StepStarted")
    assert len(worker.runs(long)) == 1
    if worker.step == "label":
        for execution in (plain, busy, long):
            assert system.ended(execution)[:2] == ("completed", said.output)


def test_what_a_killed_foreign_worker_had_not_answered_is_run_again(
    system: RunningSystem, worker: ForeignWorker
) -> None:
    for _ in range(5):
        execution = order(system, seconds=0.9)
        eventually(lambda execution=execution: worker.runs(execution), PATIENCE, what="the step is taken")
        worker.kill()
        worker.start()
        completed = worker.completed(execution)
        assert completed["output"] == SAID[worker.step].output
        said_nothing = not worker.told(execution, "StepStarted")
        if said_nothing and len(worker.runs(execution)) == 2:
            assert completed["attempt"] == 1  # nothing was committed: the same attempt was delivered again
            return
    pytest.fail("no kill fell between a record and its answer: the machine is too slow for this test")


def test_a_foreign_worker_that_dies_while_the_engine_watches_costs_an_attempt(
    system: RunningSystem, python: ForeignWorker
) -> None:
    execution = order(system, seconds=60)
    eventually(lambda: python.told(execution, "StepStarted"), PATIENCE, what="the step is said to run")
    python.kill()
    python.start()
    assert python.completed(execution)["attempt"] == 2
    [timed_out] = python.told(execution, "StepTimedOut")
    assert (timed_out["attempt"], timed_out["timeout"]) == (1, "heartbeat")


def test_the_example_in_python_is_short() -> None:
    lines = [line for line in (EXAMPLES / "worker.py").read_text().splitlines() if line]
    assert len(lines) <= 52
