"""The engine's process is Faust's: this one becomes it."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import NoReturn

from flowpilot.core.errors import FlowPilotError

_MODULE = "flowpilot_agents"


class EngineNotInstalled(FlowPilotError):
    """The engine's requirements are not here."""


def run_engine() -> NoReturn:
    """Replace this process by `python -m flowpilot_agents`, which reads its own settings."""
    missing = [name for name in ("faust", _MODULE) if find_spec(name) is None]
    if missing:
        raise EngineNotInstalled(f"the engine needs {missing[0]}: install flowpilot[engine]")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", _MODULE])
