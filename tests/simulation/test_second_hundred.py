"""Seeds 100 to 199: see docs/simulation.md."""

from __future__ import annotations

from tests.simulation.seeds import check, hundred


@hundred(100)
def test_whatever_happens_the_invariants_hold(first: int) -> None:
    check(first)
