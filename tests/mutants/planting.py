"""A defect in this process and in those that it starts.

Children inherit `PLANTED_DEFECT`, and find in `site` on their path a `sitecustomize` that plants it there too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

VARIABLE = "PLANTED_DEFECT"
_HERE = Path(__file__).parent


def plant(name: str) -> None:
    """Plant the defect for the rest of this process's life."""
    from tests.mutants.all import MUTANTS, NOTHING

    {**MUTANTS, NOTHING.name: NOTHING}[name].plant(pytest.MonkeyPatch())
    os.environ[VARIABLE] = name
    root = _HERE.parents[1]
    places = [str(_HERE / "site"), str(root), str(root / "agents"), str(root / "schemas")]
    os.environ["PYTHONPATH"] = os.pathsep.join(places)


def plant_if_asked() -> None:
    """In a child."""
    name = os.environ.get(VARIABLE)
    if name and Path(sys.argv[0] if sys.argv else "").name != "pip":
        plant(name)
