"""The pages under docs/ and those that lead there: code imports, links lead somewhere, settings are real."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from docs.regenerate import DEPLOY_PAGE, METRICS_PAGE, PAGE, deploy_page, metrics_page, page
from flowpilot import Workflow
from flowpilot.cli.main import app
from flowpilot.ports.metrics import METRICS
from flowpilot.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# One comes to them from here.
FRONT = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "agents/README.md", "schemas/README.md", "examples/README.md",
                 "examples/workers/README.md")
]  # fmt: skip
READ = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in (*FRONT, *PAGES)]
FENCED = re.compile(r"^( *)```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
# Read by other programs than the roles: the embedded services and the tests.
OTHERS = {
    "FLOWPILOT_MAVEN_REPOSITORY",
    "FLOWPILOT_CACHE_DIR",
    "FLOWPILOT_TEST_BOOTSTRAP_SERVERS",
    "FLOWPILOT_TEST_DATABASE_URL",
}


def python_blocks() -> list[Any]:
    return [
        pytest.param(textwrap.dedent(indent + text), id=f"{path.stem}-{number}")
        for path in PAGES
        for number, (indent, text) in enumerate(FENCED.findall(path.read_text()), 1)
    ]


def imported(code: str) -> set[str]:
    """The packages that a block imports when it is loaded."""
    names: set[str] = set()
    for node in ast.parse(code).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("code", python_blocks())
def test_python_compiles_and_what_is_ours_imports(code: str) -> None:
    compiled = compile(code, "<docs>", "exec")
    if not imported(code) <= {"flowpilot", "pydantic", "hashlib", "datetime", "asyncio"}:
        ours = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
        for node in ours:
            if node.module == "flowpilot":
                exec(compile(ast.Module([node], []), "<docs>", "exec"), {})
        return
    module: dict[str, Any] = {"__name__": "docs_example"}
    exec(compiled, module)
    for value in list(module.values()):
        if isinstance(value, Workflow):
            assert value.definition.steps


def test_there_is_a_workflow_among_them() -> None:
    assert any("@onboarding.step" in param.values[0] for param in python_blocks())


@pytest.mark.parametrize("path", READ)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text()):
        assert "://" in target or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", READ)
def test_settings_are_real(path: Path) -> None:
    known = {f"FLOWPILOT_{name.upper()}" for name in Settings.model_fields} | OTHERS
    assert set(re.findall(r"\bFLOWPILOT_[A-Z_]+[A-Z]", path.read_text())) <= known


@pytest.mark.parametrize("path", READ)
def test_commands_are_there(path: Path) -> None:
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    groups = {
        group.typer_instance.info.name: {
            command.name or (command.callback.__name__ if command.callback else "")
            for command in group.typer_instance.registered_commands
        }
        for group in app.registered_groups
        if group.typer_instance
    }
    for first, second in re.findall(
        r"\bflowpilot (?:-{1,2}[\w-]+ )*([a-z][a-z-]+)(?: ([a-z-]+))?", path.read_text()
    ):
        if first in groups:
            assert second in groups[first], (first, second)
        elif f"`flowpilot {first}" in path.read_text():
            assert first in commands, first


def test_the_table_of_settings_is_fresh() -> None:
    assert PAGE.read_text() == page(), "the settings changed: python -m docs.regenerate"


def test_the_table_of_metrics_is_fresh() -> None:
    assert METRICS_PAGE.read_text() == metrics_page(), "the metrics changed: python -m docs.regenerate"


def test_the_table_of_permissions_is_fresh() -> None:
    assert DEPLOY_PAGE.read_text() == deploy_page(), "the permissions changed: python -m docs.regenerate"


def test_every_metric_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"\bflowpilot_(?:engine|worker|router|audit|api)_\w+", METRICS_PAGE.read_text()))
    declared = {metric.name for metric in METRICS}
    histograms = {metric.name for metric in METRICS if metric.kind == "histogram"}
    assert {
        re.sub(r"_(bucket|sum|count)$", "", name) if name not in declared else name for name in named
    } == declared
    assert named - declared <= {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
