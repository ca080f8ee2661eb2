"""A table with executions in every state there is, as an engine reached them: where folds and recoveries begin."""

from __future__ import annotations

import json
from functools import cache
from typing import NamedTuple

from flowpilot.core.state import decode_execution
from flowpilot.core.status import ExecutionStatus, StepStatus
from flowpilot.engine.keys import is_state
from flowpilot.engine.table import Entry, PartitionTable
from flowpilot.ports.log import Fetched
from flowpilot_schemas import messages as m
from flowpilot_schemas.definition import WorkflowDefinition
from tests.unit.engine_world import BRIEF, CHAIN, DIAMOND, NOWHERE, Owner, T, World, drain


class Reached(NamedTuple):
    """`entries` of the table; `end`: the next offset of the events topic; `ids` of executions and tasks."""

    entries: dict[bytes, Entry]
    end: int
    now: int
    definitions: dict[str, WorkflowDefinition]
    events: list[Fetched]
    changelog: list[Fetched]
    history: list[Fetched]
    steps: list[Fetched]
    told: list[Fetched]
    ids: tuple[str, ...]

    def table(self) -> PartitionTable:
        """A table of its own."""
        table = PartitionTable(0)
        for key, entry in self.entries.items():
            table.put(key, entry)
        return table


@cache
def reached() -> Reached:
    """Play a few workflows on one partition, so that each status of executions and steps occurs."""
    world = World()
    owner = world.owner()
    retried = _retried(world, owner)
    _forgotten(world, owner)
    _answered(world, owner)
    world.event(m.RetryExecution(execution=retried, request="r-1", actor="a", reason="again"), retried)
    drain(owner)
    entries = dict(owner.engine.table(0).items())
    _check(entries)
    topics = (T.events, T.changelog, T.history, T.steps("q"))
    events, changelog, history, steps = (world.log.records(topic) for topic in topics)
    told = [*world.log.records(T.control), *world.log.records(T.replies)]
    names = [json.loads(record.value or b"")["task_id"] for record in steps]
    executions = [decode_execution(e.value).id for k, e in entries.items() if is_state(k) and e.value is not None]
    runs = [name.rsplit("/", 2)[0] for name in names]
    return Reached(
        entries, len(events), world.now, world.definitions.by_hash, events, changelog, history, steps, told,
        tuple(dict.fromkeys((*executions, *names, *runs, *world.definitions.by_hash))),
    )  # fmt: skip


def _task(world: World, step: str, execution: str) -> str:
    found = [task for task in world.tasks() if task.startswith(execution) and task.split("/")[2] == step]
    return found[-1]


def _answer(world: World, owner: Owner, answer: m.Event, execution: str) -> None:
    world.event(answer, execution)
    drain(owner)


def _fail(world: World, owner: Owner, execution: str, step: str, kind: str = "Boom") -> None:
    error = m.StepError(kind=kind, message="m", retryable=kind != "Fatal")
    _answer(world, owner, m.StepFailed(task_id=_task(world, step, execution), error=error), execution)


def _retried(world: World, owner: Owner) -> str:
    """One that failed and may be retried; the reply goes to a client that waits."""
    reply = m.ReplyTo(topic=T.replies, partition=0, key="c")
    first = world.start(DIAMOND, "failed", reply=reply)
    drain(owner)
    _fail(world, owner, first, "top", "Fatal")
    return first


def _forgotten(world: World, owner: Owner) -> None:
    gone = world.start(BRIEF, "gone")
    drain(owner)
    _answer(world, owner, m.StepCompleted(task_id=_task(world, "only", gone), output=1), gone)
    world.now += 3_000
    owner.tick().to_end()
    drain(owner)


def _answered(world: World, owner: Owner) -> None:
    reply = m.ReplyTo(topic=T.replies, partition=0)
    keys = ("ready", "running", "half", "retrying", "cancelled", "completed")
    chains = {key: world.start(CHAIN, key, reply=reply) for key in keys}
    refused = m.StartExecution(
        execution=chains["ready"][:-1] + ("0" if chains["ready"][-1] != "0" else "1"),
        workflow="chain", version="1", definition="sha256:none",
    )  # fmt: skip
    world.event(refused, refused.execution)
    world.start(NOWHERE, "nowhere")
    drain(owner)
    for key in ("running", "half"):
        _answer(world, owner, m.StepStarted(task_id=_task(world, "a", chains[key]), worker_id="w"), chains[key])
    heartbeat = m.StepHeartbeat(task_id=_task(world, "a", chains["running"]), details={"n": 1})
    _answer(world, owner, heartbeat, chains["running"])
    _answer(
        world, owner, m.StepCompleted(task_id=_task(world, "a", chains["half"]), output={"x": 1}), chains["half"]
    )
    _fail(world, owner, chains["retrying"], "a")
    world.event(m.CancelExecution(execution=chains["cancelled"], actor="a", reason="r"), chains["cancelled"])
    for step in "abc":
        done = m.StepCompleted(task_id=_task(world, step, chains["completed"]), output={"of": step}, worker_id="w")
        _answer(world, owner, done, chains["completed"])


def _check(entries: dict[bytes, Entry]) -> None:
    states = [decode_execution(e.value) for key, e in entries.items() if is_state(key) and e.value is not None]
    statuses = {state.status for state in states}
    steps = {step.status for state in states for step in state.steps}
    missing = set(ExecutionStatus) - statuses - {ExecutionStatus.PENDING, ExecutionStatus.INCIDENT}
    missing_steps = set(StepStatus) - steps
    if missing or missing_steps or not any(state.retries for state in states):
        raise AssertionError(f"the world reaches no {missing} {missing_steps}")
