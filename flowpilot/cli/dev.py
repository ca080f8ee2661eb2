"""`flowpilot dev`: everything on this machine, in one terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from flowpilot.cli.failures import CommandFailed, Exit
from flowpilot.cli.output import say


def dev(
    workflows: Annotated[
        list[str] | None,
        typer.Argument(help="MODULE:WORKFLOW or path/file.py:name; without it, those of this folder.",
                       metavar="[WORKFLOW...]", show_default=False),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Where the data are kept (default: .flowpilot).", metavar="DIR")
    ] = None,
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Begin with nothing and keep nothing.")] = False,
    kafka_port: Annotated[
        int | None, typer.Option("--kafka-port", min=1, max=65535, help="Default: the last one, or any.",
                                 metavar="PORT")
    ] = None,
    postgres_port: Annotated[
        int | None, typer.Option("--postgres-port", min=1, max=65535, help="Default: the last one, or any.",
                                 metavar="PORT")
    ] = None,
    api_port: Annotated[
        int | None, typer.Option("--api-port", min=1, max=65535, help="Default: the last one, or the next free "
                                 "one from 8080 on.", metavar="PORT")
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show what every role logs, not only the worker.")
    ] = False,
) -> None:  # fmt: skip
    """Run all of FlowPilot here, for your files.

    \b
    Examples:
      flowpilot dev                              every NAME = Workflow(…) of the *.py files in this folder
      flowpilot dev flows.py:orders              this one
      flowpilot dev --ephemeral                  begin with nothing, keep nothing
      flowpilot dev --kafka-port 9092            where your other programs look for Kafka

    Other terminals in this folder need no settings: `flowpilot execution start …` finds it. When a file changes,
    the worker is started anew; content that changed under the same version becomes VERSION+dev.HASH and the
    current version. A file that does not import is told in one sentence, and the old worker goes on.
    """
    began = time.monotonic()
    if ephemeral and data is not None:
        raise CommandFailed("--ephemeral keeps nothing, so --data has no use with it: give one of them", Exit.USAGE)
    from flowpilot.app.logging import configure_logging
    from flowpilot.local.dev.server import DevOptions, DevServer, missing_parts
    from flowpilot.local.signals import terminate_cleanly
    from flowpilot.settings import load_given_settings

    if missing := missing_parts():
        raise CommandFailed(f"flowpilot dev needs {missing[0]}: install flowpilot[all]")
    settings = load_given_settings()
    configure_logging(settings, "dev")
    options = DevOptions(
        folder=Path.cwd(),
        references=tuple(workflows or ()),
        data=data,
        ephemeral=ephemeral,
        kafka_port=kafka_port,
        postgres_port=postgres_port,
        api_port=api_port,
        verbose=verbose,
    )
    with terminate_cleanly():
        DevServer(options, settings, say).run(began)
