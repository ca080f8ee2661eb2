"""The examples of docs/testing.md, run by pytest as a user has them: in one folder, the plugin installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What pytest-asyncio or anyio does for those who have one of them.
CONFTEST = """
import asyncio, inspect
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        asyncio.run(pyfuncitem.obj())
        return True
"""


def test_the_examples_of_the_docs_pass(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "testing.md").read_text()
    files = dict(PYTHON.findall(text))
    assert len(files) == text.count("```python"), "a Python block does not begin with its file's name"
    for name, code in {**files, "conftest.py": CONFTEST}.items():
        (tmp_path / name).write_text(code)
    wanted = sum(code.count("def test_") for code in files.values())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert f"{wanted} passed" in done.stdout, done.stdout + done.stderr
