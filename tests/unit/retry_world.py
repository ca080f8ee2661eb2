"""Executions that failed, and what is asked and told about retries of them."""

from __future__ import annotations

from typing import Any

from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import encode
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.topics import DAY
from tests.unit.engine_world import CHAIN, Owner, T, World, answer_all, completed, drain

REPLY = m.ReplyTo(topic=T.replies, partition=0, key="me")


def changed(definition: WorkflowDefinition, **fields: Any) -> WorkflowDefinition:
    """Another definition: a copy of the model would keep the hash that is cached in it."""
    return WorkflowDefinition.model_validate({**definition.model_dump(), **fields})


OTHER = changed(CHAIN, version="2")


def fatal(task: str) -> m.StepFailed:
    return m.StepFailed(task_id=task, error=m.StepError(kind="Fatal", message="broken", retryable=False))


def failed_at_b(world: World, owner: Owner, key: str = "1", definition: WorkflowDefinition = CHAIN) -> str:
    """A chain whose first step completed and whose second failed."""
    execution = world.start(definition, key)
    drain(owner)
    world.event(completed(task(world, execution, "a")), execution)
    world.event(fatal(task(world, execution, "b")), execution)
    drain(owner)
    return execution


def ask(world: World, execution: str, request: str = "r1", **fields: Any) -> int:
    given = {"actor": "user:ann", "reason": "fixed", "reply": REPLY} | fields
    return world.event(m.RetryExecution(execution=execution, request=request, **given), execution)


def anew(definition: WorkflowDefinition = CHAIN, **fields: Any) -> dict[str, Any]:
    return {
        "from_start": True,
        "workflow": definition.name,
        "version": definition.version,
        "definition": definition.hash,
        "input": m.GivenInput(value={"key": "again"}),
    } | fields


def answers(world: World) -> list[dict[str, Any]]:
    return [value for value in world.values(T.replies) if value["type"] == "retry.answered"]


def step(world: World, execution: str) -> dict[str, Any]:
    """The step message of an execution that has one."""
    [found] = [v for v in world.values(T.steps("q")) if v["task_id"].startswith(f"{execution}/")]
    return found


def started(world: World, execution: str) -> dict[str, Any]:
    return [v for v in world.values(T.history) if v["execution"] == execution and v["seq"] == 1][-1]


def task(world: World, execution: str, name: str) -> str:
    """The task id of the last run's first attempt at a step."""
    return f"{execution}/{started(world, execution)['run']}/{name}/1"


def finish(world: World, owner: Owner, execution: str) -> None:
    """Every step of the execution that is sent completes."""
    drain(owner)
    answered = {sent for sent in world.tasks() if not sent.startswith(f"{execution}/")}
    while answer_all(world, answered):
        drain(owner)
        answered |= {sent for sent in world.tasks() if not sent.startswith(f"{execution}/")}


def retried(world: World, owner: Owner, execution: str, request: str = "r1", **fields: Any) -> str:
    ask(world, execution, request, **fields)
    drain(owner)
    return str(answers(world)[-1]["retry"])


def over_all_windows(world: World, owner: Owner) -> None:
    """Long after everything ended: forget, remove, and again for what that set free."""
    for _ in range(4):
        world.now += 8 * DAY
        owner.tick().to_end()
        drain(owner)


def starts_of(world: World, retry: str) -> list[m.StartExecution]:
    """The starts of a retry on the events topic, copies too."""
    values = [value for value in world.values(T.events) if value["type"] == "execution.start"]
    return [m.StartExecution.model_validate_json(encode(value)) for value in values if value["execution"] == retry]
