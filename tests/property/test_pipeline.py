"""The pipeline under whatever Hypothesis comes upon, and that it would notice what upgrades could break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

from flowpilot.engine.fold import Fold
from flowpilot_schemas import messages as m
from flowpilot_schemas.definition import WorkflowDefinition
from tests.property.pipeline import CHAIN_2, Pipeline

Patch = pytest.MonkeyPatch

Pipeline.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPipeline = Pipeline.TestCase


def _as_intended(patch: Patch) -> None:
    pass


def rules_not_checked(patch: Patch) -> None:
    patch.setattr(Fold, "_check_rules", lambda self, record, rules: None)


def rules_skipped(patch: Patch) -> None:
    """What the release does not know is passed over instead of stopping the partition."""
    whole = Fold._start

    def start(self: Any, record: Any, state: Any, message: m.StartExecution) -> None:
        if message.rules <= m.RULES:
            whole(self, record, state, message)

    patch.setattr(Fold, "_start", start)


def runs_by_the_newest_definition(patch: Patch) -> None:
    whole = Fold._definition_of

    def definition_of(self: Any, state: Any) -> WorkflowDefinition | None:
        own = whole(self, state)
        newer = self._frame.known(CHAIN_2.hash) if own is not None and own.name == "chain" else None
        return newer or own

    patch.setattr(Fold, "_definition_of", definition_of)


def _upgrades(defect: Callable[[Patch], None], patch: Patch) -> None:
    """A definition's upgrade in the middle of a run, then a start by newer rules, then the engines' upgrade."""
    defect(patch)
    run = Pipeline()
    run.begin(seed=1)
    rules: list[Callable[[], None]] = [
        lambda: run.start(keys=[0, 1], which=0, n=1),
        lambda: run.all_goes_well_for_a_while(most=30, rounds=2),
        lambda: run.a_new_version_is_deployed(),
        lambda: run.start(keys=[2], which=0, n=1),
        lambda: run.all_goes_well_for_a_while(most=30, rounds=5),
        lambda: run.somebody_writes_by_newer_rules(key=0),
        lambda: run.all_goes_well_for_a_while(most=30, rounds=2),
        lambda: run.engines_are_upgraded(),
        lambda: run.all_goes_well_for_a_while(most=30, rounds=2),
    ]
    try:
        for rule in rules:
            rule()
            run.the_history_is_one_chain_and_the_end_is_the_end()
            run.steps_are_those_of_the_pinned_definition()
    except AssertionError:
        run.patch.undo()
        raise
    run.teardown()


def test_upgrades_as_intended(monkeypatch: Patch) -> None:
    _upgrades(_as_intended, monkeypatch)


@pytest.mark.parametrize(
    "defect",
    [rules_not_checked, rules_skipped, runs_by_the_newest_definition],
    ids=lambda defect: defect.__name__,
)
def test_a_planted_defect_is_found(defect: Callable[[Patch], None], monkeypatch: Patch) -> None:
    with pytest.raises(AssertionError):
        _upgrades(defect, monkeypatch)
