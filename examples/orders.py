"""Fulfilling an order: price it, then reserve the goods and write the invoice in parallel, then hand over.

    flowpilot worker examples/orders.py:orders

It needs nothing but FlowPilot, so it is what the workers of docker-compose.yml serve.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from flowpilot import NonRetryable, StepContext, Workflow, on_topic

PRICES = {"pen": 120, "notebook": 450, "lamp": 3_900}


class Order(BaseModel):
    order_id: str
    items: dict[str, int] = Field(min_length=1)


class Priced(BaseModel):
    order_id: str
    cents: int


class HandedOver(BaseModel):
    order_id: str
    reservation: str
    invoice: str


orders = Workflow("orders", version="1", input=Order, triggers=[on_topic("orders.placed", unique_by="order_id")])


@orders.step
def price(input: Order) -> Priced:
    if unknown := sorted(input.items.keys() - PRICES.keys()):
        raise NonRetryable(f"there is no price for {', '.join(unknown)}")
    return Priced(order_id=input.order_id, cents=sum(PRICES[item] * count for item, count in input.items.items()))


@orders.step(depends_on=[price])
async def reserve(input: Order, ctx: StepContext) -> str:
    ctx.log.info("reserved", items=input.items)
    return f"R-{ctx.idempotency_key[:8]}"


@orders.step
def invoice(price: Priced) -> str:
    return f"{price.order_id}: {price.cents / 100:.2f}"


@orders.step(output=True)
def hand_over(input: Order, reserve: str, invoice: str) -> HandedOver:
    return HandedOver(order_id=input.order_id, reservation=reserve, invoice=invoice)
