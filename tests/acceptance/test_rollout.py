"""Versions are rolled out under load, workers replaced one by one: every step runs with code that fits it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from flowpilot.cli.loading import load_workflow
from flowpilot.local.services import LocalServices
from flowpilot_schemas.definition import WorkflowDefinition
from tests.acceptance.running import PATIENCE, RunningSystem, prepared_system
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

# In each folder the same two file names: what runs in one process must not mix them either.
SHAPES = {
    "1": "class Made(BaseModel):\n    n: int\n",
    "2": "class Made(BaseModel):\n    n: int\n    currency: str\n",
    "3": "class Made(BaseModel):\n    cents: int\n    currency: str\n",
}
STEPS = {
    "1": """
@flow.step
def first(input: Any, ctx: StepContext) -> int:
    return note(ctx, input["n"])

@flow.step
def second(first: int, ctx: StepContext) -> Made:
    return Made(n=note(ctx, first))

@flow.step
def third(first: int, ctx: StepContext) -> str:
    return note(ctx, f"third of {first}")

@flow.step
def dropped(third: str, ctx: StepContext) -> str:
    return note(ctx, "of 1 and 2 alone")

@flow.step
def last(second: Made, third: str, ctx: StepContext) -> str:
    return note(ctx, f"{second.n} {third}")
""",
    # `added` is new, `second` takes and returns more.
    "2": """
@flow.step
def first(input: Any, ctx: StepContext) -> int:
    return note(ctx, input["n"])

@flow.step
def added(first: int, ctx: StepContext) -> str:
    return note(ctx, "eur")

@flow.step
def second(first: int, added: str, ctx: StepContext) -> Made:
    return Made(n=note(ctx, first), currency=added)

@flow.step
def third(first: int, ctx: StepContext) -> str:
    return note(ctx, f"third of {first}")

@flow.step
def dropped(third: str, ctx: StepContext) -> str:
    return note(ctx, "of 1 and 2 alone")

@flow.step
def last(second: Made, third: str, ctx: StepContext) -> str:
    return note(ctx, f"{second.n} {second.currency} {third}")
""",
    # `dropped` is gone, and the type between `second` and `last` is another.
    "3": """
@flow.step
def first(input: Any, ctx: StepContext) -> int:
    return note(ctx, input["n"])

@flow.step
def added(first: int, ctx: StepContext) -> str:
    return note(ctx, "eur")

@flow.step
def second(first: int, added: str, ctx: StepContext) -> Made:
    return Made(cents=note(ctx, first) * 100, currency=added)

@flow.step
def third(first: int, ctx: StepContext) -> str:
    return note(ctx, f"third of {first}")

@flow.step
def last(second: Made, third: str, ctx: StepContext) -> str:
    return note(ctx, f"{second.cents} {second.currency} {third}")
""",
}
HEAD = """
import os, time
from typing import Any
from flowpilot import StepContext, Workflow
from shapes import Made

flow = Workflow("rolled", version="{version}")

def note(ctx, value):
    time.sleep(0.02)
    with open(os.environ["ACCEPTANCE_CALLS"], "a") as calls:
        calls.write(f"{{ctx.execution}} {{ctx.step}} {version}\\n")
    return value
"""
RESULTS = {"1": "{n} third of {n}", "2": "{n} eur third of {n}", "3": "{cents} eur third of {n}"}
EXECUTIONS_A_SECOND = 12


@pytest.fixture
def rolled(services: LocalServices, tmp_path: Path) -> Iterator[RunningSystem]:
    for version, steps in STEPS.items():
        folder = tmp_path / f"v{version}"
        folder.mkdir()
        (folder / "shapes.py").write_text("from pydantic import BaseModel\n\n" + SHAPES[version])
        (folder / "flow.py").write_text(HEAD.format(version=version) + steps)
    with prepared_system(services, tmp_path, {}) as system:
        system.run("setup")
        with ThreadPoolExecutor() as pool:
            for started in [pool.submit(system.start, role, role) for role in ("engine", "router", "audit")]:
                started.result()
        yield system


def serve(system: RunningSystem, slot: int, *versions: str) -> None:
    """Replace the worker in this slot: one leaves, and another with that code comes."""
    name = f"worker-{slot}"
    if name in system.supervisor.names():
        system.supervisor.stop(name)
    references = [f"v{version}/flow.py:flow" for version in versions]
    system.start(name, "worker", *references, "--concurrency", "4", ready_timeout=PATIENCE, static=False)


@contextmanager
def load(system: RunningSystem, started: dict[str, int]) -> Iterator[None]:
    """Executions are started all the time, of whatever version is current."""
    stop = threading.Event()

    def publish() -> None:
        while not stop.wait(1 / EXECUTIONS_A_SECOND):
            started[system.trigger("rolled", {"n": len(started)})] = len(started)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def running(system: RunningSystem, version: str) -> int:
    [[count]] = system.ask(
        "select count(*) from workflow_execution where status = 'running' and workflow_version = %s", version
    )
    return int(count)


def begun(system: RunningSystem, version: str) -> int:
    [[count]] = system.ask("select count(*) from workflow_execution where workflow_version = %s", version)
    return int(count)


def roll(system: RunningSystem, old: str, new: str) -> None:
    """As docs/operating.md has it: new workers, `apply`, and one worker with both until the old ones end."""
    serve(system, 2, new)
    system.run("workflow", "apply", f"v{new}/flow.py:flow")
    serve(system, 3, old, new)
    serve(system, 1, new)
    eventually(lambda: begun(system, new) >= 5 and running(system, old) == 0, PATIENCE)
    serve(system, 3, new)


def test_each_step_runs_with_code_of_an_equal_contract(rolled: RunningSystem, tmp_path: Path) -> None:
    started: dict[str, int] = {}
    rolled.run("workflow", "apply", "v1/flow.py:flow")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda slot: serve(rolled, slot, "1"), (1, 2, 3)))
    with load(rolled, started):
        eventually(lambda: begun(rolled, "1") >= 5, PATIENCE)
        roll(rolled, "1", "2")
        roll(rolled, "2", "3")
    ended = {execution: rolled.ended(execution) for execution in started}
    assert {end.status for end in ended.values()} == {"completed"}, ended

    rows = rolled.ask("select execution_id, workflow_version from workflow_execution")
    versions = {str(execution): version for execution, version in rows}
    assert versions.keys() == started.keys()
    assert min(Counter(versions.values()).values()) >= 5, Counter(versions.values())
    definitions = {version: load_workflow(f"{tmp_path}/v{version}/flow.py:flow").definition for version in STEPS}
    ran = Counter[tuple[str, str, str]]()
    for call in rolled.calls():
        execution, step, code = call.split()
        version = versions[execution]
        ran[step, version, code] += 1
        assert code >= version, f"{step} of version {version} ran with the older code of version {code}"
        assert contract(definitions[code], step) == contract(definitions[version], step), call
    # That is no emptiness: later code did run earlier executions where the contract is the same.
    assert any(code > version for _, version, code in ran), ran
    for execution, n in started.items():
        result = RESULTS[versions[execution]].format(n=n, cents=n * 100)
        assert result in str(ended[execution].output), (versions[execution], ended[execution])
    # Nothing failed on the way, and what waited was recorded once.
    told = Counter(dict(rolled.ask("select type, count(*) from audit_event group by type")))
    assert told["StepFailed"] == told["StepRetryScheduled"] == told["ExecutionFailed"] == 0, told
    assert told["StepNotServed"] > 0, told
    rolled.cli("execution", "verify")


def contract(definition: WorkflowDefinition, step: str) -> str | None:
    return definition.steps[definition.index[step]].contract
