"""What the acceptance tests' workers run. Handlers leave lines in the file ACCEPTANCE_CALLS."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, Field, field_validator

from flowpilot import NonRetryable, Retry, RetryAfter, StepContext, Workflow, on_topic

CALLS = Path(os.environ.get("ACCEPTANCE_CALLS", "calls"))
BOOKINGS = f"{os.environ.get('FLOWPILOT_NAMESPACE', 'acceptance')}-bookings"
ORDERS = f"{os.environ.get('FLOWPILOT_NAMESPACE', 'acceptance')}-orders"
# For steps that lose attempts because a neighbour ends the process.
PATIENT = Retry(max_attempts=20, initial="100ms", max_interval="1s")
TWICE = Retry(max_attempts=2, initial="100ms")


def note(what: str) -> None:
    """A line that the test reads: whole, whoever else writes."""
    with CALLS.open("a") as calls:
        calls.write(f"{what}\n")


class Order(BaseModel):
    n: int
    text: str = ""


shop = Workflow("shop", version="1", input=Order, retry=PATIENT, triggers=[on_topic(ORDERS, unique_by="n")])


@shop.step(heartbeat="3s")
def double(input: Order) -> int:
    if input.n < 0:
        raise NonRetryable("n is negative")
    return 2 * input.n


@shop.step(heartbeat="3s")
def square(double: int) -> int:
    return double * double


lingering = Workflow("lingering", version="1")


@lingering.step(timeout="2m")
def linger(ctx: StepContext) -> str:
    note(f"lingers {ctx.execution}")
    while not ctx.cancelled:
        time.sleep(0.02)
    note(f"noticed {ctx.execution}")
    return "cancelled meanwhile"


# On the shop's queue: the same partitions, the same process.
crashing = Workflow("crashing", version="1", queue="shop", retry=TWICE)


@crashing.step(heartbeat="2s")
def crash(input: dict[str, int], ctx: StepContext) -> int:
    """Ends the process in the first `input["attempts"]` attempts."""
    note(f"crash {ctx.execution} {ctx.attempt}")
    if ctx.attempt <= input["attempts"]:
        os._exit(1)
    return ctx.attempt


hanging = Workflow("hanging", version="1", retry=TWICE)


@hanging.step(timeout="1s")
def hang(ctx: StepContext) -> int:
    if ctx.attempt == 1:
        time.sleep(3_600)
    return ctx.attempt


@hanging.step(timeout="1s")
async def hang_async(ctx: StepContext) -> int:
    if ctx.attempt == 1:
        await asyncio.sleep(3_600)
    return ctx.attempt


troubles = Workflow("troubles", version="1", retry=TWICE)


@troubles.step
def act(input: dict[str, Any], ctx: StepContext) -> Any:
    match input["trouble"]:
        case "raises":
            raise ValueError(f"attempt {ctx.attempt} \ud800 went wrong")
        case "exits":
            raise SystemExit(3)
        case "nan":
            return {"value": float("nan")}
        case "object":
            return object()
        case "size":
            return "x" * (input["size"] - 2)  # and two quotes
        case "trace":
            return ctx.traceparent
        case "later" if ctx.attempt == 1:
            raise RetryAfter("2s", "come back later")
    return ctx.attempt


pair = Workflow("pair", version="1", retry=TWICE)


@pair.step
def left(input: list[int]) -> str:
    return "x" * (input[0] - 2)


@pair.step
def right(input: list[int]) -> str:
    return "x" * (input[1] - 2)


@pair.step
def join(left: str, right: str) -> int:
    return len(left) + len(right) + 4


steady = Workflow("steady", version="1")


@steady.step(timeout="2m")
async def hold(input: str, ctx: StepContext) -> str:
    """Runs until the file `input` is there."""
    note(f"holds {ctx.execution} {ctx.attempt}")
    while not Path(input).exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.02)
    return "released"


@steady.step(depends_on=[hold])
async def brief(ctx: StepContext) -> None:
    note(f"brief {ctx.execution} {ctx.attempt}")
    await asyncio.sleep(1)


mending = Workflow("mending", version="1", retry=Retry(max_attempts=1))


@mending.step
def fetch(input: str, ctx: StepContext) -> list[str]:
    note(f"fetch {ctx.execution}")
    return [input]


@mending.step
def parse(fetch: list[str], ctx: StepContext) -> int:
    """Fails until the file that `fetch` names is there."""
    note(f"parse {ctx.execution}")
    if not Path(fetch[0]).exists():
        raise FileNotFoundError(fetch[0])
    return len(fetch)


@mending.step
def store(input: str, parse: int, ctx: StepContext) -> dict[str, Any]:
    note(f"store {ctx.execution}")
    return {"from": input, "parsed": parse}


class Booking(BaseModel):
    """Its alias and its validator are the type's alone: no JSON Schema has them."""

    id: str = Field(validation_alias=AliasChoices("id", "booking_id"))
    seats: int

    @field_validator("seats")
    @classmethod
    def _there_are(cls, seats: int) -> int:
        if seats > 4:
            raise ValueError("there are 4 seats")
        return seats


booking = Workflow("booking", version="1", input=Booking, triggers=[on_topic(BOOKINGS, unique_by="key")])


@booking.step
def book(input: Booking, ctx: StepContext) -> int:
    note(f"book {ctx.execution} {input.seats}")
    return input.seats


# No worker of ours serves its queue: the test answers as a worker in any language would.
foreign = Workflow("foreign", version="1", queue="elsewhere", retry=Retry(max_attempts=3, initial="50ms"))


@foreign.step
def outside(input: Any = None) -> Any:
    return input


ALL = [f"tests.acceptance.flows:{name}" for name in (
    "shop", "lingering", "crashing", "hanging", "troubles", "pair", "steady", "mending", "booking",
)]  # fmt: skip
FOREIGN = "tests.acceptance.flows:foreign"
