"""Workflows for worker processes in tests. Each call of a handler leaves a line in FLOWS_CALLS."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from flowpilot import StepContext, Workflow

flows = Workflow("flows", version="1")


def note(what: str) -> None:
    with Path(os.environ["FLOWS_CALLS"]).open("a") as calls:
        calls.write(f"{what}\n")


@flows.step
def kill_process(ctx: StepContext) -> None:
    note(f"kill {ctx.idempotency_key}")
    os.kill(os.getpid(), signal.SIGKILL)


@flows.step
def exit_process(ctx: StepContext) -> None:
    note(f"exit {ctx.idempotency_key}")
    os._exit(0)


@flows.step
def quick(ctx: StepContext) -> str:
    note(f"quick {ctx.idempotency_key}")
    return "done"


@flows.step
async def long(ctx: StepContext) -> str:
    note(f"long {ctx.idempotency_key}")
    while not Path(os.environ["FLOWS_CALLS"]).with_suffix(".open").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return "done"


@flows.step
def long_sync(ctx: StepContext) -> str:
    note(f"long_sync {ctx.idempotency_key}")
    while not Path(os.environ["FLOWS_CALLS"]).with_suffix(".open").exists():
        time.sleep(0.01)
    return "done"
