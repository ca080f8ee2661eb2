"""The simulation is what it says it is: repeatable, without faults quiet, its findings small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.protocol import outputs_before_state
from tests.simulation import checks
from tests.simulation.__main__ import main
from tests.simulation.outcomes import refused_runs
from tests.simulation.plan import Changes
from tests.simulation.shrink import shrink
from tests.simulation.simulate import run

_ROOT = Path(__file__).parents[2]


def test_a_seed_gives_the_same_trace_in_any_process() -> None:
    seeds = (5, 107, 109, 111)
    script = f"from tests.simulation.simulate import run; print([run(s).trace_hash for s in {seeds}])"
    found = set()
    for hash_seed in ("0", "1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": ".:agents:schemas"}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=_ROOT, env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout)
    found.add(f"{[run(seed).trace_hash for seed in seeds]}\n")
    assert len(found) == 1


def test_workers_refuse_some_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, int]] = []
    monkeypatch.setattr(checks, "wrong_letters", lambda e: found.extend(refused_runs(e)) or ())
    verdicts = [verdict for seed in range(10) if not found and (verdict := run(seed))]
    assert not any(verdict.violations for verdict in verdicts)
    assert found


def test_different_seeds_are_different_worlds() -> None:
    assert len({run(seed).trace_hash for seed in range(5)}) == 5


def test_without_faults_nothing_ends_and_all_is_quiet_soon() -> None:
    verdict = run(1, Changes(only=frozenset()))
    assert verdict.violations == []
    assert not set(verdict.faults) - {"rebalance"}


def test_a_failing_seed_is_shrunk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    outputs_before_state(monkeypatch)
    verdict = run(0)
    assert "S8" in verdict.invariants
    small = shrink(verdict, tries=30)
    assert small.changes.only == frozenset()  # it takes no fault to see that
    assert small.plan.engines == small.plan.partitions == 1
    assert "S8" in small.invariants
    assert main(["--seed", "0", "--as-it-is", *small.changes.arguments().split()]) == 1
    assert "S8 VIOLATED" in capsys.readouterr().out


def test_engines_of_two_releases_judge_starts_alike() -> None:
    kinds = frozenset({"rule_sets", "kill", "kill_at_write", "term", "rebalance", "ghost", "compaction"})
    wrong = {seed: found for seed in range(30) if (found := run(seed, Changes(only=kinds)).violations)}
    assert not wrong
