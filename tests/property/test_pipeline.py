"""The pipeline under whatever Hypothesis comes upon, and that it would notice what upgrades could break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

from flowpilot.core.rule_sets import RuleSets
from flowpilot.engine import fold
from flowpilot.engine.fold import Fold
from flowpilot.engine.rule_sets import fold_raise
from flowpilot_schemas import messages as m
from flowpilot_schemas.definition import WorkflowDefinition
from tests.property.pipeline import CHAIN_2, Pipeline

Patch = pytest.MonkeyPatch

Pipeline.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPipeline = Pipeline.TestCase


def _as_intended(patch: Patch) -> None:
    pass


def raises_not_checked(patch: Patch) -> None:
    """What the release does not have is taken for permitted."""
    patch.setattr(fold, "fold_raise", lambda *given: fold_raise(*given[:-1], 10**9))


def raises_skipped(patch: Patch) -> None:
    """What the release does not have is passed over instead of stopping the partition."""

    def pass_over(record: Any, message: m.RulesPermitted, *given: Any) -> None:
        if message.rules <= given[-1]:
            fold_raise(record, message, *given)

    patch.setattr(fold, "fold_raise", pass_over)


def judged_by_the_release(patch: Patch) -> None:
    """An engine begins whatever it has the rule set of."""
    patch.setattr(RuleSets, "permitted_at", lambda self, offset: m.RULES)


def runs_by_the_newest_definition(patch: Patch) -> None:
    whole = Fold._definition_of

    def definition_of(self: Any, state: Any) -> WorkflowDefinition | None:
        own = whole(self, state)
        newer = self._frame.known(CHAIN_2.hash) if own is not None and own.name == "chain" else None
        return newer or own

    patch.setattr(Fold, "_definition_of", definition_of)


def _upgrades(defect: Callable[[Patch], None], patch: Patch) -> None:
    """A definition's upgrade in the middle of a run, then a raise that old engines meet, then their upgrade."""
    defect(patch)
    run = Pipeline()
    run.begin(seed=1)
    rules: list[Callable[[], None]] = [
        lambda: run.start(keys=[0, 1], which=0, n=1),
        lambda: run.all_goes_well_for_a_while(most=30, rounds=2),
        lambda: run.a_new_version_is_deployed(),
        lambda: run.start(keys=[2], which=0, n=1),
        lambda: run.all_goes_well_for_a_while(most=30, rounds=5),
        lambda: run.somebody_asks_for_a_newer_rule_set(key=0, rules=2),
        lambda: run.all_goes_well_for_a_while(most=30, rounds=2),
        lambda: run.setup_raises_the_permitted_set(),
        lambda: run.somebody_asks_for_a_newer_rule_set(key=1, rules=2),
        lambda: run.all_goes_well_for_a_while(most=30, rounds=2),
        lambda: run.another_release_is_rolled_out(newer=True, at_once=True),
        lambda: run.somebody_asks_for_a_newer_rule_set(key=2, rules=2),
        lambda: run.all_goes_well_for_a_while(most=30, rounds=2),
    ]
    try:
        for rule in rules:
            rule()
            run.the_history_is_one_chain_and_the_end_is_the_end()
            run.steps_are_those_of_the_pinned_definition()
            run.no_engine_owns_a_partition_that_permits_what_it_lacks()
    except AssertionError:
        run.patch.undo()
        raise
    run.teardown()


def test_upgrades_as_intended(monkeypatch: Patch) -> None:
    _upgrades(_as_intended, monkeypatch)


@pytest.mark.parametrize(
    "defect",
    [raises_not_checked, raises_skipped, judged_by_the_release, runs_by_the_newest_definition],
    ids=lambda defect: defect.__name__,
)
def test_a_planted_defect_is_found(defect: Callable[[Patch], None], monkeypatch: Patch) -> None:
    with pytest.raises(AssertionError):
        _upgrades(defect, monkeypatch)
