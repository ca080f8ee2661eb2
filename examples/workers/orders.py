"""A workflow whose steps run in two languages: a quote by `worker.py`, then a label by `node/worker.mjs`.

    flowpilot workflow apply examples/workers/orders.py:orders
    python examples/workers/worker.py 127.0.0.1:9092 flowpilot.steps.pricing
    node examples/workers/node/worker.mjs 127.0.0.1:9092 flowpilot.steps.shipping

A step that another program runs is declared like any other: its name, its queue, what it takes and gives. Only its
body is never run, for no worker of FlowPilot's serves these queues.
"""

from __future__ import annotations

from pydantic import BaseModel

from flowpilot import Retry, Workflow


class Order(BaseModel):
    sku: str
    quantity: int
    seconds: float = 0
    """How long the first attempt of each step takes."""
    busy: int = 0
    """So many attempts of each step meet a service that is busy."""


class Quote(BaseModel):
    cents: int


class Label(BaseModel):
    text: str


orders = Workflow("orders", version="1", input=Order, retry=Retry(max_attempts=5, initial="100ms"))


@orders.step(queue="pricing", heartbeat="3s")
def quote(input: Order) -> Quote:
    raise NotImplementedError("worker.py runs it")


@orders.step(queue="shipping", heartbeat="3s")
def label(input: Order, quote: Quote) -> Label:
    raise NotImplementedError("node/worker.mjs runs it")
