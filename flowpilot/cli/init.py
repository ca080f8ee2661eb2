"""`flowpilot init`: a small project that runs as it is."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from flowpilot.cli.failures import CommandFailed, Exit
from flowpilot.cli.output import say

# By the name it is written under: the template, and whether the project is none without it.
_FILES = {
    "flows.py": ("flows.py.template", True),
    "test_flows.py": ("test_flows.py.template", True),
    "README.md": ("README.md.template", False),
    ".env.example": ("env.example.template", False),
    ".gitignore": ("gitignore.template", False),
}


def init(
    folder: Annotated[Path, typer.Argument(help="Made if it is not there.", metavar="[DIR]")] = Path(),
) -> None:
    """Write a small project that runs as it is.

    \b
    Examples:
      flowpilot init shop && cd shop && flowpilot dev
      flowpilot init                             in this folder

    A workflow of three steps with a trigger, its test, and the commands.
    Nothing is overwritten: if the folder has a flows.py or test_flows.py, nothing is written at all.
    """
    if there := [name for name, (_, needed) in _FILES.items() if needed and (folder / name).exists()]:
        raise CommandFailed(
            f"{folder / there[0]} is there already, and nothing is overwritten: name another folder, as in "
            "`flowpilot init my-project`"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (template, _) in _FILES.items():
            target = folder / name
            if target.exists():
                say(f"kept    {target}")
                continue
            target.write_text((files("flowpilot.cli") / "project" / template).read_text())
            say(f"written {target}")
    except OSError as error:
        raise CommandFailed(f"cannot write to {folder}: {error.strerror}", Exit.USAGE) from error
    step = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
    say(f"next: {step}flowpilot dev")
