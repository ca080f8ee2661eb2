"""Seeds 0 to 99: see docs/simulation.md."""

from __future__ import annotations

from tests.simulation.seeds import check, hundred


@hundred(0)
def test_whatever_happens_the_invariants_hold(first: int) -> None:
    check(first)
