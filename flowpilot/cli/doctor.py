"""`flowpilot doctor`: what is wrong, and what mends it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import typer

from flowpilot.cli.failures import CommandFailed, Exit, explain
from flowpilot.cli.output import Format, Output, rows, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowpilot.app.doctor import Check


def doctor(output: Output = Format.TABLE) -> None:
    """Look for what is wrong, and name the command that mends it. Changes nothing.

    \b
    Examples:
      flowpilot doctor
      flowpilot doctor -o json | jq '.[] | select(.status == "fail")'

    It looks at Java, settings, Kafka, topics, PostgreSQL, migrations, dead letters, the audit record, and at
    whether every role and queue is served and keeps up. Exit code 0: nothing failed; 1: something did.
    """
    if find_spec("sqlalchemy") is None or find_spec("psycopg2") is None:
        raise CommandFailed("flowpilot doctor looks into PostgreSQL too: install flowpilot[server]")
    found: list[dict[str, Any]] = [check._asdict() for check in _all()]
    rows(found, ("status", "check", "detail", "remedy"), output, empty="nothing was checked")
    failed = sum(check["status"] == "fail" for check in found)
    if failed:
        say(f"{failed} of {len(found)} checks failed")
        raise typer.Exit(Exit.ERROR)


def _all() -> Iterator[Check]:
    from flowpilot.app.doctor import Check, examine
    from flowpilot.app.logging import configure_logging
    from flowpilot.local.errors import LocalError
    from flowpilot.local.java import find_java
    from flowpilot.settings import DevNotRunning, SettingsError, dev_state, load_settings

    try:
        yield Check("java", "ok", find_java())
    except LocalError as error:
        # Only embedded Kafka needs it.
        yield Check("java", "warn", str(error), "pip install 'flowpilot[local]'")
    try:
        settings = load_settings()
    except DevNotRunning as error:
        yield Check("flowpilot dev", "fail", str(error), "flowpilot dev")
        return
    except SettingsError as error:
        yield Check("settings", "fail", explain(error)[0], "flowpilot config show lists what is set where")
        return
    configure_logging(settings, "doctor")
    yield Check("flowpilot dev", "ok", f"{dev_state().value} in this folder")
    yield from examine(settings)
