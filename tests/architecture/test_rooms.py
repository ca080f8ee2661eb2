"""The rooms: who may import whom, what the base may load, and that public names say what they do."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [ROOT / "flowpilot", ROOT / "agents" / "flowpilot_agents", ROOT / "schemas" / "flowpilot_schemas"]
MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py") if "migrations" not in path.parts)


def test_imports_go_downwards_only() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_say_what_they_are(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if tree.body:
        assert ast.get_docstring(tree), f"{path.name} has no docstring"


def test_public_classes_and_functions_have_docstrings() -> None:
    silent = []
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if (
                node.name.startswith("_")
                or ast.get_docstring(node)
                or _is_overload(node)
                or _says_itself(path, node)
            ):
                continue
            silent.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not silent, "\n".join(silent)


def _is_overload(node: ast.AST) -> bool:
    return any(getattr(mark, "id", "") == "overload" for mark in getattr(node, "decorator_list", []))


def _says_itself(path: Path, node: ast.AST) -> bool:
    """Records of events are described once, where their fields are listed; commands by their help."""
    return path.name == "events.py" or (path.parent.name == "cli" and path.name == "main.py")


def test_there_is_no_room_for_odds_and_ends() -> None:
    assert not [path for path in MODULES if path.stem in {"utils", "util", "helpers", "common", "misc"}]


def test_files_can_be_read_in_one_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in MODULES
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long, long


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from flowpilot.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'faust', 'sqlalchemy', 'confluent_kafka', 'fastapi', 'jsonschema_rs'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_topic_table_of_the_contract_is_the_declaration() -> None:
    from flowpilot_schemas.topics import DAY, HOUR, Topics

    table = (ROOT / "schemas" / "README.md").read_text()
    rows = {
        cells[0].strip("`"): cells
        for line in table.splitlines()
        if line.startswith("| `flowpilot") and (cells := [cell.strip() for cell in line.strip("|").split("|")])
    }
    retentions = {"–": None, "unlimited": -1}
    for topic in [*Topics().core(), Topics().step_topic("<queue>", 12)]:
        _, _, partitions, cleanup, retention, _ = rows.pop(topic.name)
        assert partitions == ("as events" if topic.partitions is None else str(topic.partitions))
        assert cleanup == topic.cleanup
        amount = re.match(r"(\d+) (d|h)$", retention)
        expected = int(amount[1]) * (DAY if amount[2] == "d" else HOUR) if amount else retentions[retention]
        assert topic.retention_ms == expected, topic.name
    assert not rows


def test_settings_of_the_example_file_are_settings() -> None:
    from flowpilot.settings import Settings

    named = set(re.findall(r"^#?\s*FLOWPILOT_([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert named == {name.upper() for name in Settings.model_fields}
