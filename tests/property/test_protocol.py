"""The commit protocol under random faults, and that the storm would notice each rule's absence.

`storm(seed)` is one run; a seed that fails fails again. The mutants stand in tests/mutants; those that chance
finds too seldom (no repair, (epoch, src) for (src, epoch)) are found by tests in tests/unit (`make mutants`).
"""

from __future__ import annotations

import pytest

from flowpilot.core import notices
from flowpilot.core.state import decode_execution
from flowpilot.engine import trial
from flowpilot.engine.keys import is_state
from flowpilot.engine.table import entry_of
from tests.mutants import rule_sets
from tests.mutants.catalogue import Mutant
from tests.mutants.protocol import planted
from tests.property.releases import Releases, releases
from tests.property.storm import Storm, storm
from tests.unit.engine_world import T, quiet  # noqa: F401

SEEDS = 300
_AT_ONCE = 20
_MUTANT_SEEDS = 400
STORMY = [mutant for mutant in rule_sets.planted.mutants if "releases" in mutant.layers]


@pytest.fixture(autouse=True)
def no_record_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The storm crashes more often than three times: here no record is the reason."""
    monkeypatch.setattr(trial, "CRASHES", 10**9)
    monkeypatch.setattr(notices, "SHORTEST_FAMILY_MS", 0)


@pytest.mark.parametrize("first", range(0, SEEDS, _AT_ONCE))
def test_whatever_happens_the_log_alone_decides(first: int) -> None:
    wrong = {seed: found[:5] for seed in range(first, first + _AT_ONCE) if (found := storm(seed))}
    assert not wrong


def test_the_storm_reaches_what_it_is_for() -> None:
    """Of some seeds: replays, repairs, forgetting, new runs, refusals and dead letters do occur."""
    kinds: set[str] = set()
    taken: set[str] = set()
    goes: set[bytes] = set()
    repeated = epochs = tombstones = 0
    for seed in range(40):
        if seed >= 8 and len(taken) > 2:  # results that a retry reuses are the rarest
            break
        run = Storm(seed)
        run.run()
        history = run.world.values(T.history)
        kinds |= {value["type"] for value in history}
        places = [(value["execution"], value["run"], value["seq"]) for value in history]
        repeated += len(places) - len(set(places))
        changelog = run.world.log.records(T.changelog)
        epochs = max(epochs, *(entry_of(record).epoch for record in changelog))
        tombstones += sum(record.value is None for record in changelog)
        taken |= {value["execution"] for value in history if value.get("taken")}
        goes |= {record.value or b"" for record in run.world.log.records(T.events)}
    assert repeated > 20
    assert epochs > 5
    assert tombstones > 20
    assert len(taken) > 2
    for kind in (b'"retry.ended"', b'"retry.forget"'):
        assert any(kind in value for value in goes)
    assert kinds >= {
        *("ExecutionStarted", "ExecutionCompleted", "ExecutionFailed", "ExecutionCancelled", "StartRefused"),
        *("StepReady", "StepStarted", "StepRetryScheduled", "StepTimedOut", "StepSkipped", "DispatchFailed"),
        "StepNotServed",
        *("StartDeduplicated", "KeyConflict", "CompletionIgnored", "RetryRefused"),
    }


def seeds_needed(most: int = _MUTANT_SEEDS) -> int | None:
    """How many seeds it takes until a storm goes wrong; None if none of them does."""
    return next((seed + 1 for seed in range(most) if storm(seed)), None)


@pytest.mark.parametrize("mutant", STORMY, ids=lambda mutant: mutant.name)
def test_the_storm_of_releases_finds_defects_of_rule_sets(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.plant(monkeypatch)
    assert any(releases(seed) for seed in range(100))


@pytest.mark.parametrize("mutant", planted.mutants, ids=lambda mutant: mutant.name)
def test_the_storm_finds_a_rule_that_is_left_out(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.plant(monkeypatch)
    assert seeds_needed() is not None


@pytest.mark.parametrize("first", range(0, SEEDS // 3, _AT_ONCE))
def test_engines_of_all_releases_judge_starts_alike(first: int) -> None:
    wrong = {seed: found[:5] for seed in range(first, first + _AT_ONCE) if (found := releases(seed))}
    assert not wrong


def test_the_storm_of_releases_reaches_what_it_is_for() -> None:
    """Of some seeds: starts begin by each set, or are refused; engines stop; raises are skipped."""
    begun: set[object] = set()
    reasons: set[str] = set()
    stops = 0
    for seed in range(8):
        run = Releases(seed)
        run.run()
        stops += run.stops
        for record in run.world.log.records(T.changelog):
            if is_state(record.key or b"") and record.value is not None:
                begun.add(decode_execution(record.value).rules)
        reasons |= {
            str(value.get("reason")) for value in run.world.values(T.history) + run.world.values(T.dead_letters)
        }
    assert begun >= {1, 2, 3}
    assert reasons >= {"rules_not_permitted", "rules_skipped"}
    assert stops > 5
