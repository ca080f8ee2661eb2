"""Files and modules of one name, loaded into one process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowpilot.cli import modules
from flowpilot.cli.loading import load_workflow
from flowpilot.worker.handlers import Handlers

FLOW = """
from flowpilot import Workflow
from beside import ANSWER, Made
from package.inner import DEEP

flow = Workflow("flow", version="{version}")

@flow.step
def work() -> Made:
    return Made(answer=ANSWER, deep=DEEP)
"""
BESIDE = """
from pydantic import BaseModel
ANSWER = "{version}"
class Made(BaseModel):
    answer: str
    deep: str
    more: "list[Later]" = []
class Later(BaseModel):
    only_in_{version}: int
"""


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for version in ("v1", "v2", "v3"):
        folder = tmp_path / version
        (folder / "package").mkdir(parents=True)
        (folder / "flow.py").write_text(FLOW.format(version=version))
        (folder / "beside.py").write_text(BESIDE.format(version=version))
        (folder / "package" / "__init__.py").write_text("")
        (folder / "package" / "inner.py").write_text(f'DEEP = "{version}"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    monkeypatch.setattr(modules, "files", modules.files)
    yield
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]
    modules.files.clear()
    modules._own.clear()


def made(reference: str) -> tuple[str, str, str]:
    """The workflow's version, and what its handler makes of the modules beside it."""
    workflow = load_workflow(reference)
    [(_, steps)] = Handlers([workflow]).all
    found = steps["work"].call()
    return workflow.version, found.answer, found.deep


def test_each_file_has_the_modules_beside_it() -> None:
    references = [f"{version}/flow.py:flow" for version in ("v1", "v2", "v3")]
    assert [made(reference) for reference in references] == [(v, v, v) for v in ("v1", "v2", "v3")]
    assert [made(reference) for reference in reversed(references)] == [(v, v, v) for v in ("v3", "v2", "v1")]


def test_types_that_name_later_types_find_their_own() -> None:
    contracts = {load_workflow(f"{v}/flow.py:flow").definition.steps[0].contract for v in ("v1", "v2", "v3")}
    assert len(contracts) == 3
    schema = load_workflow("v2/flow.py:flow").steps["work"].signature.returns.model_json_schema()
    assert "only_in_v2" in str(schema)


def test_a_file_is_loaded_once() -> None:
    first, other = load_workflow("v1/flow.py:flow"), load_workflow("v2/flow.py:flow")
    assert load_workflow("v1/flow.py:flow") is first
    assert load_workflow("v2/flow.py:flow") is other is not first


def test_the_first_folder_keeps_the_names_afterwards() -> None:
    made("v1/flow.py:flow")
    beside = sys.modules["beside"]
    made("v2/flow.py:flow")
    assert sys.modules["beside"] is beside
    assert sys.modules["package.inner"].DEEP == "v1"


def test_two_files_of_one_folder_share_their_modules(tmp_path: Path) -> None:
    (tmp_path / "v1" / "second.py").write_text(FLOW.format(version="second"))
    made("v1/flow.py:flow")
    beside = sys.modules["beside"]
    assert made("v1/second.py:flow") == ("second", "v1", "v1")
    assert sys.modules["beside"] is beside
