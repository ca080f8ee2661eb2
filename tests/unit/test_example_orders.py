"""The example that compose runs, as plain functions."""

from __future__ import annotations

import pytest

from examples.orders import HandedOver, Order, Priced, hand_over, invoice, orders, price
from flowpilot import NonRetryable


def test_an_order_is_priced_invoiced_and_handed_over() -> None:
    order = Order(order_id="o-1", items={"pen": 2, "lamp": 1})
    priced = price(order)
    assert priced == Priced(order_id="o-1", cents=4_140)
    assert invoice(priced) == "o-1: 41.40"
    assert hand_over(order, "R-1", invoice(priced)) == HandedOver(
        order_id="o-1", reservation="R-1", invoice="o-1: 41.40"
    )


def test_what_has_no_price_is_not_tried_again() -> None:
    with pytest.raises(NonRetryable, match="no price for cat"):
        price(Order(order_id="o-1", items={"cat": 1}))


def test_its_shape() -> None:
    steps = {step.name: list(step.depends_on) for step in orders.definition.steps}
    assert steps == {
        "price": [],
        "reserve": ["price"],
        "invoice": ["price"],
        "hand_over": ["reserve", "invoice"],
    }
