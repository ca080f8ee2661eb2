"""What is found in the user's files, by a process that imports them and ends."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FoundWorkflow:
    """A workflow as its file declares it."""

    reference: str
    name: str
    version: str
    triggers: list[str]
    input_schema: dict[str, Any] | None


@dataclass(frozen=True)
class Found:
    """All workflows, or the sentence that says why not all; `files` are the user's that were imported.

    `misnamed`: nothing is wrong with a file, there is no such file, module or workflow.
    """

    workflows: list[FoundWorkflow]
    files: list[Path]
    error: str | None = None
    misnamed: bool = False


def find(references: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Found:
    """Import what `references` name, in `folder` and in a process of its own."""
    if not references:
        return Found([], [])
    with tempfile.TemporaryDirectory(prefix="flowpilot-inspect-") as scratch:
        out = Path(scratch) / "found.json"
        done = subprocess.run(
            [sys.executable, "-m", "flowpilot.cli.inspect", str(out), *references],
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if not out.exists():
            said = done.stderr.strip().splitlines()
            why = said[-1] if said else "it did not end within 30 s, or ended the process"
            return Found([], [], f"importing {', '.join(references)} failed: {why}")
        content = json.loads(out.read_text())
    workflows = [FoundWorkflow(**workflow) for workflow in content["workflows"]]
    return Found(workflows, [Path(file) for file in content["files"]], content["error"], content["misnamed"])


def discover(folder: Path) -> list[str]:
    """`file.py:name` for every `name = Workflow(…)` at the top level of a Python file directly in `folder`.

    By a look at the text: nothing is imported. A file that cannot be parsed is named alone, so that whoever
    imports it is told why.
    """
    references = []
    for path in sorted(folder.glob("*.py")):
        try:
            text = path.read_text()
            if "Workflow" not in text:
                continue
            tree = ast.parse(text)
        except (OSError, UnicodeDecodeError):
            continue
        except SyntaxError:
            references.append(path.name)
            continue
        references += [f"{path.name}:{name}" for statement in tree.body for name in _workflows_of(statement)]
    return references


def _workflows_of(statement: ast.stmt) -> list[str]:
    targets: list[ast.expr]
    if isinstance(statement, ast.Assign):
        targets, value = statement.targets, statement.value
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets, value = [statement.target], statement.value
    else:
        return []
    if not isinstance(value, ast.Call):
        return []
    called = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
    return [target.id for target in targets if isinstance(target, ast.Name)] if called == "Workflow" else []
