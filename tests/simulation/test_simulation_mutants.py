"""The simulation finds deliberate defects of every role, each within a few seeds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation.mutants import MUTANTS, Patch
from tests.simulation.simulate import run

_SEEDS = 50


def seeds_needed(most: int = _SEEDS) -> int | None:
    """How many seeds it takes until an invariant is violated; None if none of them does it."""
    return next((seed + 1 for seed in range(most) if run(seed).violations), None)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_simulation_finds_it(mutant: Callable[[Patch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    assert seeds_needed() is not None
