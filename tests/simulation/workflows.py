"""The workflows that seeds choose from: made once, of a few shapes and many settings, the same in every process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, field_validator

from flowpilot.authoring import NonRetryable, Retry, RetryAfter, StepContext, Workflow, on_topic
from flowpilot_schemas.definition import WorkflowDefinition

if TYPE_CHECKING:
    from tests.simulation.plan import Plan

TOPICS = ("orders", "people")
SHAPES: dict[str, dict[str, list[str]]] = {
    "one": {"a": []},
    "chain": {"a": [], "b": ["a"], "c": ["b"]},
    "diamond": {"top": [], "left": ["top"], "right": ["top"], "last": ["left", "right"]},
    "fan": {"a": [], "p1": ["a"], "p2": ["a"], "p3": ["a"], "p4": ["a"]},
    "roots": {"a": [], "b": [], "c": ["a", "b"]},
}
POOL = 25
POOL_VERSIONS = 4


class Order(BaseModel):
    """What users publish."""

    id: str
    n: int = 0
    text: str = ""


class PickyOrder(Order):
    """An input that the router lets through, and the worker's type refuses at times."""

    @field_validator("n")
    @classmethod
    def _known(cls, n: int) -> int:
        if n == 2:
            raise ValueError("no such n")
        return n


OnRun = Callable[[StepContext, WorkflowDefinition], None]
"""Told of each attempt that is begun, with the definition whose code runs it."""


class Boom(Exception):
    """A handler's failure."""


class Behaviour:
    """How handlers behave in the present run."""

    def __init__(self, plan: Plan, chance: random.Random, on_run: OnRun) -> None:
        self.plan, self.chance = plan, chance
        self._on_run = on_run
        self.calls: list[tuple[str, int]] = []

    async def __call__(self, ctx: StepContext, code: Workflow) -> Any:
        plan, chance = self.plan, self.chance
        self._on_run(ctx, code.definition)
        self.calls.append((ctx.idempotency_key, ctx.attempt))
        if chance.random() < plan.hanging:
            await asyncio.Event().wait()
        if chance.random() < plan.slow:
            await asyncio.sleep(chance.choice((0.05, 0.4, 1.3, 2.5)))
        if chance.random() < plan.beating:
            ctx.heartbeat({"n": chance.randrange(3)})
            await asyncio.sleep(0.3)
        if chance.random() < plan.failing:
            raise chance.choice((Boom("no"), Boom("no"), NonRetryable("never"), RetryAfter("400ms")))
        if chance.random() < 0.1:
            return "x" * chance.choice((10, 400, 1_200))
        return {"n": chance.randrange(3)}


class _Now:
    """The behaviour of the run at hand."""

    behave: Behaviour


def behave_as(behaviour: Behaviour) -> None:
    """From now on."""
    _Now.behave = behaviour


def handlers(code: Workflow) -> tuple[Any, Any, Any, Any]:
    """The code of one version: of a step without parents, the same with a type that refuses some inputs, of one
    with parents, and of one that takes nothing of them."""

    async def first(input: Order, ctx: StepContext) -> Any:
        return await _Now.behave(ctx, code)

    async def picky_first(input: PickyOrder, ctx: StepContext) -> Any:
        return await _Now.behave(ctx, code)

    async def following(parents: Mapping[str, Any], ctx: StepContext) -> Any:
        return await _Now.behave(ctx, code)

    async def following_blindly(ctx: StepContext) -> Any:
        return await _Now.behave(ctx, code)

    return first, picky_first, following, following_blindly


@lru_cache
def pool() -> tuple[Workflow, ...]:
    """All of them."""
    return tuple(version_of(number, 1) for number in range(POOL))


@lru_cache
def version_of(number: int, version: int) -> Workflow:
    """A later version has nothing but its name from the one before: other edges, steps, triggers and settings."""
    chance = random.Random(f"workflow/{number}" if version == 1 else f"workflow/{number}@{version}")
    name = f"w{number}-{list(SHAPES)[number % len(SHAPES)]}"
    shape = list(SHAPES)[(number + 2 * version - 2) % len(SHAPES)]
    # Not drawn: what is drawn stays as it was. A workflow is as picky in every version.
    is_picky = number % 5 == number // 5
    triggers = []
    if chance.random() < 0.8:
        unique_by = chance.choice(("id", "id", None))
        where = chance.choice((None, None, "data.n > 0"))
        triggers.append(on_topic(chance.choice(TOPICS), unique_by=unique_by, where=where, start="earliest"))
    workflow = Workflow(
        name,
        version=str(version),
        input=PickyOrder if is_picky else Order,
        triggers=triggers,
        queue=chance.choice(("q1", "q1", "q2")),
        retry=Retry(
            max_attempts=chance.choice((1, 2, 3)), initial=chance.choice(("100ms", "500ms")), max_interval="2s"
        ),
        timeout=chance.choice((None, None, None, "20s", "60s")),
        dedupe_window=chance.choice(("2s", "1h", "1h")),
        retry_window=chance.choice(("3s", "1h", "1h")),
    )
    first, picky_first, following, following_blindly = handlers(workflow)
    begin = picky_first if is_picky else first
    for step, parents in SHAPES[shape].items():
        handler: Any = chance.choice((following, following_blindly)) if parents else begin
        options: dict[str, Any] = {}
        if chance.random() < 0.15:
            options["queue"] = "q2"
        if step == "p4" and chance.random() < 0.5:
            options["queue"] = "nowhere"
        workflow.add_step(
            handler,
            name=step,
            depends_on=parents,
            timeout=chance.choice(("1500ms", "3s", "6s")),
            heartbeat=chance.choice(("1s", "2s")),
            schedule_to_start=chance.choice(("6s", "20s", "1h")),
            on_schedule_to_start=chance.choice(("fail", "retry", "retry", "record")),
            **options,
        )
    return workflow
