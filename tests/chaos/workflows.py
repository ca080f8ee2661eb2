"""What the kill loop runs: three steps that take long enough for many executions to be live at once."""

from __future__ import annotations

import asyncio
from typing import Any

from flowpilot import Retry, Workflow, on_topic

TOPIC = "chaos.requested"
# Kills cost attempts; a kill loop is not about giving up.
PATIENT = Retry(max_attempts=50, initial="200ms", max_interval="2s")

chain = Workflow("chaos-chain", version="1", retry=PATIENT, triggers=[on_topic(TOPIC, unique_by="key")])


@chain.step(timeout="30s", heartbeat="3s")
async def first(input: dict[str, Any]) -> str:
    await asyncio.sleep(0.4)
    return f"{input['key']}:1"


@chain.step(timeout="30s", heartbeat="3s")
async def second(first: str) -> str:
    await asyncio.sleep(0.4)
    return f"{first}:2"


@chain.step(timeout="30s", heartbeat="3s")
async def third(second: str) -> str:
    await asyncio.sleep(0.4)
    return f"{second}:3"
