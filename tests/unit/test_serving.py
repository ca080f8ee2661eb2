"""Which steps a worker runs, as a table."""

from __future__ import annotations

import pytest

from flowpilot.core.serving import Registered, Verdict, judge


def step(definition: str, position: int | None = None, contract: str | None = "c") -> Registered:
    return Registered(definition, position, contract)


@pytest.mark.parametrize(
    ("served", "wanted", "verdict"),
    [
        # the very definition: neither order nor contract matter
        (step("W", 1), step("W", 1), Verdict.SAME),
        (step("W", None, None), step("W", None, None), Verdict.SAME),
        (step("W", 1, "c"), step("W", 9, "other"), Verdict.SAME),
        # an older definition: the contract decides
        (step("W", 2), step("D", 1), Verdict.EQUAL),
        (step("W", 2, "c"), step("D", 1, "other"), Verdict.CONTRACT),
        (step("W", 2, "c"), step("D", 1, None), Verdict.CONTRACT),
        (step("W", 2, None), step("D", 1, "c"), Verdict.CONTRACT),
        (step("W", 2, None), step("D", 1, None), Verdict.CONTRACT),
        # a newer one: never
        (step("W", 1), step("D", 2), Verdict.NEWER),
        (step("W", 1), step("D", 1), Verdict.NEWER),
        (step("W", 1, "c"), step("D", 2, "other"), Verdict.NEWER),
        # an order that is not known: never
        (step("W", None), step("D", 1), Verdict.UNKNOWN),
        (step("W", 1), step("D", None), Verdict.UNKNOWN),
    ],
)
def test_a_worker_runs_its_own_and_older_equal_steps(
    served: Registered, wanted: Registered, verdict: Verdict
) -> None:
    assert judge(served, wanted) is verdict
    assert verdict.runs == (verdict in (Verdict.SAME, Verdict.EQUAL))
