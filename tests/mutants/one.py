"""A defect against a layer: `python -m tests.mutants.one NAME LAYER ROOM SECONDS`; the last line is the verdict."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import structlog

from tests.mutants.layers import LAYERS, NotRun
from tests.mutants.planting import plant

_MEMORY = 4 << 30
_WITHOUT_CHILDREN = ("storm", "exhaustive", "simulation")


def verdict(name: str, layer: str, room: str, seconds: float) -> dict[str, Any]:
    """How the layer found the defect (`how` None: it did not), and after how long; or why it did not run."""
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
    name, layer, room, seconds = *sys.argv[1:4], float(sys.argv[4])
    if layer in _WITHOUT_CHILDREN:
        _bound(int(5 * seconds) + 120)
        structlog.configure(processors=[_drop])
    print(f"\n{json.dumps(verdict(name, layer, room, seconds))}", flush=True)


def _bound(seconds: int) -> None:
    """A defect may keep a layer going for ever: then the kernel ends this process."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))


if __name__ == "__main__":
    main()
