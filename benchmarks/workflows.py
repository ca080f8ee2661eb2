"""The shapes that are measured. Handlers do nothing: what is left is the engine."""

from __future__ import annotations

from typing import Any

from flowpilot import Workflow

w1 = Workflow("bench-w1", version="1")


@w1.step
async def first(input: Any) -> dict[str, int]:
    return {"n": 1}


@w1.step
async def second(first: dict[str, int]) -> dict[str, int]:
    return {"n": first["n"] + 1}


@w1.step
async def third(second: dict[str, int]) -> dict[str, int]:
    return {"n": second["n"] + 1}
