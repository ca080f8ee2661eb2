"""`flowpilot divergence list|acknowledge`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from flowpilot.cli.begin import begin
from flowpilot.cli.failures import CommandFailed, Exit
from flowpilot.cli.output import Format, Output, rows, say

app = typer.Typer(
    name="divergence",
    help="See what contradicts the audit record, acknowledge it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def print_divergences(found: Sequence[dict[str, Any]], output: Format, *, empty: str) -> None:
    """The list, with who acknowledged what; how many there are is said."""
    shown: list[dict[str, Any]] = list(found)
    if output is Format.TABLE:
        shown = [{**each, "acknowledged": _told(each["acknowledged"])} for each in shown]
    rows(shown, ("id", "execution", "run", "seq", "what", "acknowledged"), output, empty=empty)
    if found:
        known = sum(each["acknowledged"] is not None for each in found)
        also = f", {known} of them acknowledged" if known else ""
        say(f"{len(found)} difference{'' if len(found) == 1 else 's'}{also}")


def _told(given: dict[str, Any] | None) -> str:
    return "no" if given is None else f"{given['reason']} ({given['actor']}, {given['at']})"


@app.command("list")
def list_divergences(output: Output = Format.TABLE) -> None:
    """Records that contradict the audit or cannot be read, as the audit writer found them.

    \b
    Examples:
      flowpilot divergence list
      flowpilot divergence list -o json | jq '.[] | select(.acknowledged == null)'

    Nothing is recomputed: `flowpilot execution verify` does that, and lists these too.
    """
    from flowpilot.app import divergences

    print_divergences(divergences.recorded(begin()), output, empty="no divergence")


@app.command()
def acknowledge(
    reason: Annotated[str, typer.Option("--reason", help="Why it is no error any more.", metavar="TEXT")],
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="As `divergence list` and `execution verify` show them.", metavar="[ID]..."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that `execution verify` finds now.")] = False,
    execution: Annotated[
        str | None, typer.Option("--execution", help="Only those of this execution.", metavar="ID")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Acknowledge what contradicts the audit: it stays listed, and is no error any more.

    \b
    Examples:
      flowpilot divergence acknowledge 3f2a9c01d4be --reason "a record written by hand on 3 May"
      flowpilot divergence acknowledge --all --reason "records of the load test"

    The audit's database keeps who (FLOWPILOT_ACTOR, else the user), when and why. It holds for this very
    divergence: a new one, also at the same place, is an error again.
    """
    from flowpilot.app import divergences
    from flowpilot.client.client import default_actor

    if bool(ids) == everything:
        raise CommandFailed("name divergences by their ids, or all of them with --all", Exit.USAGE)
    if not reason.strip():
        raise CommandFailed("--reason is empty: say why it is no error any more", Exit.USAGE)
    settings = begin()
    found = divergences.acknowledge(settings, ids or (), execution, settings.actor or default_actor(), reason)
    print_divergences(found, output, empty="nothing that was not acknowledged before")
