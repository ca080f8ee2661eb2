"""The seeds that every run of the tests does: two files of a hundred, so that two processes share them."""

from __future__ import annotations

import pytest

from tests.simulation.__main__ import describe
from tests.simulation.simulate import run

_AT_ONCE = 10


def hundred(first: int) -> pytest.MarkDecorator:
    """A hundred seeds, ten a test."""
    return pytest.mark.parametrize("first", range(first, first + 100, _AT_ONCE))


def check(first: int) -> None:
    """Ten seeds without a violation."""
    verdicts = [run(seed) for seed in range(first, first + _AT_ONCE)]
    assert not [describe(verdict) for verdict in verdicts if verdict.violations]
