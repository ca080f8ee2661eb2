"""The model checker's own test: a second of it, so that a change of the model shows at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.__main__ import build, explore, main, toolchain
from tests.model.configurations import SOUND, WITHOUT_A_RULE, Configuration

pytestmark = pytest.mark.skipif(toolchain() is None, reason="no Rust compiler (rustc) is installed")

_QUICK = [c for c in WITHOUT_A_RULE if c.name[:2] in ("a1", "a2", "d1", "r1", "r2", "r3", "r4", "r5", "r6", "r7")]


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(str(toolchain()), tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("configuration", _QUICK, ids=lambda c: c.name)
def test_a_missing_rule_has_a_counterexample(binary: Path, configuration: Configuration) -> None:
    verdict = explore(binary, configuration)
    assert verdict.expected, verdict.line
    assert "owner folds batch" in verdict.trace


def test_rule_sets_with_expiry_have_none(binary: Path) -> None:
    [configuration] = [c for c in SOUND if c.name == "rule sets: expiry"]
    assert explore(binary, configuration).line.startswith("run: OK, ")


def test_what_is_not_as_expected_is_told(binary: Path) -> None:
    of_a_rule = next(c for c in WITHOUT_A_RULE if c.name.startswith("a1"))
    assert not explore(binary, of_a_rule._replace(fails=False)).expected
    assert not explore(binary, of_a_rule._replace(switches="no-such-switch=1")).expected
    assert not explore(binary, of_a_rule._replace(switches="crash=0 pause=0 maxlog=1")).expected


def test_without_a_toolchain_the_model_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main([]) == 0
    assert "no Rust compiler" in capsys.readouterr().err
