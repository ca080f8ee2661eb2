"""One defect against one layer: `python -m tests.mutants.one NAME LAYER SECONDS`; the verdict is the last line."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import structlog

from tests.mutants.all import MUTANTS, NOTHING
from tests.mutants.layers import LAYERS, NotRun
from tests.mutants.planting import plant

_MEMORY = 4 << 30


def verdict(name: str, layer: str, seconds: float) -> dict[str, Any]:
    """How the layer found the defect (`how` None: it did not), and after how long; or why it did not run."""
    room = {**MUTANTS, NOTHING.name: NOTHING}[name].room
    try:
        plant(name)
        began = time.process_time()
        how = LAYERS[layer](room, seconds)
    except NotRun as error:
        return {"how": None, "seconds": 0.0, "error": str(error)}
    except Exception as error:  # noqa: BLE001 - a layer that falls over has found it too
        how = f"{type(error).__name__}: {error}"
    return {"how": how, "seconds": round(time.process_time() - began, 1), "error": None}


def _drop(*_: object) -> structlog.typing.EventDict:
    raise structlog.DropEvent


def main() -> None:
    """Run, and print the verdict as JSON."""
    name, layer, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
        # A defect may keep a layer going for ever: then the kernel ends this process.
        most = int(5 * seconds) + 120
        resource.setrlimit(resource.RLIMIT_CPU, (most, most + 5))
    except (ImportError, ValueError, OSError):
        pass
    if layer not in ("unit", "laws", "integration"):
        structlog.configure(processors=[_drop])
    print(f"\n{json.dumps(verdict(name, layer, seconds))}", flush=True)


if __name__ == "__main__":
    main()
