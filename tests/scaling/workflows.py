"""What the scaling runs execute: short steps that wait, and handlers that hold on while processes come and go.

Handlers leave lines in the file SCALING_CALLS: what, execution, attempt, process.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from flowpilot import StepContext, Workflow

CALLS = Path(os.environ.get("SCALING_CALLS", "calls"))
WAIT = 0.2  # seconds; waiting, not computing, so that a second worker adds something on any machine

short = Workflow("scaling-short", version="1")
# On a queue of its own, so that it does not stand behind the short steps.
long = Workflow("scaling-long", version="1")


def note(what: str, ctx: StepContext) -> None:
    with CALLS.open("a") as calls:
        calls.write(f"{what} {ctx.execution} {ctx.attempt} {os.getpid()}\n")


@short.step(timeout="30s")
async def first(input: Any, ctx: StepContext) -> None:
    note("first", ctx)
    await asyncio.sleep(WAIT)


@short.step(depends_on=[first], timeout="30s")
async def second(ctx: StepContext) -> None:
    note("second", ctx)
    await asyncio.sleep(WAIT)


@long.step(timeout="5m")
def hold(input: str, ctx: StepContext) -> None:
    """Runs until the file `input` is there."""
    note("hold", ctx)
    while not Path(input).exists():
        time.sleep(0.02)


@long.step(timeout="5m")
async def hold_async(input: str, ctx: StepContext) -> None:
    """The same on the worker's loop."""
    note("hold_async", ctx)
    while not Path(input).exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.02)


STEPS_EACH = 2
WORKFLOWS = ["tests.scaling.workflows:short", "tests.scaling.workflows:long"]
