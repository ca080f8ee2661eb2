"""The simulation finds deliberate defects of every role, each within some seeds; `make mutants` has more."""

from __future__ import annotations

import pytest

from tests.mutants.all import MUTANTS
from tests.simulation.simulate import run

_SEEDS = 200
_OF_EVERY_ROLE = (
    "offset_before_state",
    "outputs_before_state",
    "last_record_wins",
    "records_of_an_earlier_assignment_are_kept",
    "audit_offset_outside_the_transaction",
    "an_outrun_writer_goes_on",
    "commit_past_an_unfinished_record",
    "position_before_the_starts",
    "the_pointer_counts",
)


def seeds_needed(most: int = _SEEDS) -> int | None:
    """How many seeds it takes until an invariant is violated; None if none of them does it."""
    return next((seed + 1 for seed in range(most) if run(seed).violations), None)


@pytest.mark.parametrize("name", _OF_EVERY_ROLE)
def test_the_simulation_finds_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "simulation" in MUTANTS[name].layers
    MUTANTS[name].plant(monkeypatch)
    assert seeds_needed() is not None
