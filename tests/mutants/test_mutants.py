"""The catalogue is sound, and the check of it can fail: a defect that is none survives."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from typing import Any

import pytest

from tests.mutants import __main__ as mutants
from tests.mutants.__main__ import Result, main, report, try_one
from tests.mutants.all import MUTANTS, NOTHING
from tests.mutants.catalogue import LAYERS, Mutant
from tests.mutants.layers import LAYERS as RUNNABLE
from tests.mutants.layers import applies


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_each_defect_changes_something_and_says_what_it_breaks(mutant: Mutant) -> None:
    patch = pytest.MonkeyPatch()
    try:
        mutant.plant(patch)
        assert patch._setattr
        replaced = [(name, whole, getattr(target, name)) for target, name, whole in patch._setattr]
    finally:
        patch.undo()
    for name, whole, planted in replaced:
        assert takes_the_same(whole, planted), f"{name} would be found by its TypeError"
    assert mutant.sentence.endswith(".")
    assert mutant.breaks in {*(f"S{n}" for n in range(1, 14)), "R1", "R2", "L1"}


def takes_the_same(whole: Any, planted: Any) -> bool:
    """Whether `planted` can be called in every way in which `whole` can, as far as their parameters tell."""
    if not (inspect.isfunction(whole) and inspect.isfunction(planted)):
        return True
    parameters = inspect.signature(whole).parameters.values()
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    try:
        for only_needed in (False, True):
            inspect.signature(planted).bind(
                *(p for p in by_place if not only_needed or p.default is p.empty),
                **{p.name: p for p in by_name if not only_needed or p.default is p.empty},
            )
    except TypeError:
        return False
    return True


def test_a_planted_function_that_cannot_be_called_is_told() -> None:
    def whole(self: Any, records: Any, fate: Any = None) -> None: ...

    assert takes_the_same(whole, lambda self, records, fate=0: None)
    assert takes_the_same(whole, lambda self, *given: None)
    assert not takes_the_same(whole, lambda self, records: None)
    assert not takes_the_same(whole, lambda self, records, *, skip=False: None)


def test_every_defect_has_a_layer_that_must_find_it_and_is_run() -> None:
    assert len(MUTANTS) >= 35
    assert set(RUNNABLE) == set(LAYERS)
    for mutant in MUTANTS.values():
        assert set(mutant.layers) <= set(LAYERS), mutant.name
        assert any(applies(layer, mutant.room) for layer in mutant.layers), f"nobody looks for {mutant.name}"


def test_a_defect_that_is_none_survives(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "nothing", "--layers", "storm", "--seconds", "0.5", "--no-baseline"]) == 1
    said = capsys.readouterr().out
    assert "0 of 1 found" in said
    assert "SURVIVES: nothing" in said
    assert "WRONG: nothing / storm: not found by the layer that has to" in said


def test_tests_that_fail_without_a_defect_are_no_proof(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        mutants, "try_one", lambda mutant, layer, seconds: Result(mutant, layer, "seed 0: S1: x", 0.1)
    )
    assert main(["--only", "no_gap_check", "--layers", "storm"]) == 1
    said = capsys.readouterr().out
    assert "WRONG: storm of engine without any defect: seed 0: S1: x" in said
    assert "found;" not in said


def test_a_defect_is_found_in_a_process_of_its_own() -> None:
    found = try_one(MUTANTS["replay_sends_nothing"], "storm", 20.0)
    assert found.how is not None
    assert found.how.startswith("seed ")
    assert not found.is_wrong


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ([("storm", "seed 3: S8: x", None)], 0),
        ([("storm", None, None)], 1),
        ([("storm", None, None), ("unit", "t.py::test: assert 0", None)], 1),  # found, but not by who has to
        ([("storm", "seed 3: x", None), ("unit", None, None)], 0),
        ([("storm", "seed 3: x", None), ("unit", None, "pytest ended with 4")], 1),
    ],
)
def test_what_the_exit_code_says(results: list[tuple[str, Any, Any]], code: int) -> None:
    mutant = replace(NOTHING, layers=("storm",))
    assert report([Result(mutant, layer, how, 1.0, error) for layer, how, error in results]) == code


def test_a_process_that_says_nothing_is_an_error_and_one_that_ends_itself_has_found_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = mutants._children.run
    out_of_cpu = "import os, signal; os.kill(os.getpid(), signal.SIGXCPU)"
    says = "import sys; print('why', file=sys.stderr); sys.exit({})"
    for command, expected in (
        (says.format(3), (None, True)),
        (says.format(70), ("ends its process: why", False)),
        (out_of_cpu, ("does not end", False)),
    ):
        python = [sys.executable, "-c", command]
        monkeypatch.setattr(mutants._children, "run", lambda _, timeout, python=python: run(python, timeout))
        result = try_one(NOTHING, "storm", 1.0)
        assert (result.how, result.error is not None) == expected
