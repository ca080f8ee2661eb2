"""Validating a step's values takes a worker bounded time, and its event loop none that is anybody else's."""

from __future__ import annotations

import asyncio
import threading
from typing import Annotated, Any

from pydantic import BeforeValidator

from flowpilot import Workflow
from tests.unit.filters import And, nested
from tests.unit.worker_rig import Rig
from tests.waiting import eventually_async

HANGING, RELEASED = threading.Event(), threading.Event()


def hanging(value: Any) -> Any:
    if value == "hang":
        HANGING.set()
        RELEASED.wait(10)
    return value


def test_a_worker_refuses_a_costly_value_and_serves_the_next() -> None:
    workflow = Workflow("filters", version="1")

    @workflow.step
    def plain(input: And) -> str:
        return "ran"

    @workflow.step
    async def asynchronous(input: And) -> str:
        return "ran"

    async def scenario() -> None:
        rig = Rig(workflow)
        async with rig.serving():
            for step in ("plain", "asynchronous"):
                costly = rig.ready(step, input=nested(15))
                answer = await eventually_async(lambda task=costly: rig.answer(task, "failed"))
                assert answer["error"]["kind"] == "input_invalid"
                assert "operations" in answer["error"]["message"]
                cheap = rig.ready(step, input=nested(3, "a"))
                answer = await eventually_async(lambda task=cheap: rig.answer(task, "completed"))
                assert answer["output"] == "ran"

    asyncio.run(scenario())


def test_a_validator_that_hangs_is_timed_out_like_a_handler() -> None:
    workflow = Workflow("hanging", version="1")

    @workflow.step
    async def check(input: Annotated[str, BeforeValidator(hanging)]) -> str:
        return input

    async def scenario() -> None:
        rig = Rig(workflow)
        async with rig.serving():
            hung = rig.ready("check", input="hang", start_to_close_ms=300)
            await eventually_async(HANGING.is_set)
            other = rig.ready("check", input="fine")
            answer = await eventually_async(lambda: rig.answer(other, "completed"))
            assert answer["output"] == "fine"
            answer = await eventually_async(lambda: rig.answer(hung, "failed"))
            assert answer["error"]["kind"] == "timed_out"
            RELEASED.set()

    asyncio.run(scenario())
