"""`python -m flowpilot.cli.inspect OUT [REFERENCE...]`: what a process of its own finds in the user's files.

`flowpilot dev` imports no user code itself: each look is a fresh interpreter. OUT becomes a JSON object, see
`flowpilot.local.dev.found.Found`; what the user's code prints while it is imported is no part of it.
"""

from __future__ import annotations

import json
import signal
import sys
import sysconfig
from pathlib import Path
from typing import Any

from flowpilot.cli.failures import Exit, explain
from flowpilot.cli.loading import load_workflow

# Seconds: an import that takes longer runs something; the process ends by itself even if nobody is left to end it.
LIMIT = 30


def main(out: str, references: list[str]) -> None:
    """Load every reference and write down what is there."""
    signal.alarm(LIMIT)
    found: dict[str, Any] = {"workflows": [], "error": None, "misnamed": False}
    for reference in references:
        try:
            definition = load_workflow(reference).definition
        except BaseException as error:  # noqa: BLE001 - the user's code may raise anything
            found["error"], code = explain(error)
            found["misnamed"] = code == Exit.USAGE
            break
        found["workflows"].append(
            {
                "reference": reference,
                "name": definition.name,
                "version": definition.version,
                "triggers": [trigger.topic for trigger in definition.triggers],
                "input_schema": definition.input_schema,
            }
        )
    found["files"] = loaded_files()
    Path(out).write_text(json.dumps(found))


def loaded_files() -> list[str]:
    """The files of the imported modules that are the user's: neither installed nor FlowPilot's."""
    foreign = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    foreign += [Path(__file__).parents[1]]
    foreign += [Path(file).parent for name in ("flowpilot_schemas",) if (file := sys.modules[name].__file__)]
    found = set()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.endswith(".py"):
            path = Path(file).resolve()
            if not any(path.is_relative_to(folder) for folder in foreign):
                found.add(str(path))
    return sorted(found)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
