"""`flowpilot trigger fate|dry-run`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from flowpilot.cli.begin import begin
from flowpilot.cli.failures import CommandFailed, Exit
from flowpilot.cli.output import Format, Output, rows, say

app = typer.Typer(
    name="trigger",
    help="What became of records on trigger topics, and what would.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

TopicName = Annotated[str, typer.Argument(help="The Kafka topic.", metavar="TOPIC")]


@app.command()
def fate(
    topic: TopicName,
    partition: Annotated[int, typer.Argument(help="The record's partition.", metavar="PARTITION", min=0)],
    offset: Annotated[int, typer.Argument(help="The record's offset.", metavar="OFFSET", min=0, max=2**62)],
    output: Output = Format.TABLE,
) -> None:
    """What became of one record, workflow by workflow: started, duplicate, key_conflict, filtered, dead_letter, …

    \b
    Examples:
      flowpilot trigger fate patients.registered 0 4711
      flowpilot trigger fate patients.registered 0 4711 -o json

    It reads the audit record, which follows the router by a moment. Exit code 6: nothing is known of the record.
    """
    from flowpilot.app import triggers

    found = triggers.fates(begin(), topic, partition, offset)
    if not found:
        raise CommandFailed(
            f"the audit knows nothing of {topic}/{partition}/{offset} (yet); `flowpilot trigger dry-run {topic}` "
            "shows which workflows would take such a record",
            Exit.NOT_FOUND,
        )
    rows(found, ("workflow", "fate", "reason", "execution", "run", "detail"), output, empty="")


@app.command("dry-run")
def dry_run(
    topic: TopicName,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", help="A record header; may be repeated.", metavar="NAME=VALUE"),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """What the record on stdin would start on TOPIC, with which key and id, or why it would not. Nothing is sent.

    \b
    Examples:
      flowpilot trigger dry-run patients.registered < record.json
      flowpilot trigger dry-run orders -H content-type=application/cloudevents+json < event.json

    It takes the registered workflows as they are now. Exit code 1: it would be a dead letter; 6: no workflow reads
    the topic.
    """
    import asyncio

    from flowpilot.app import triggers

    headers = tuple(_header(each) for each in header or ())
    found = asyncio.run(triggers.dry_run(begin(), topic, sys.stdin.buffer.read(), headers))
    if not found:
        raise CommandFailed(
            f"no registered workflow reads {topic}; `flowpilot workflow list` shows which topics are read",
            Exit.NOT_FOUND,
        )
    rows(found, ("workflow", "outcome", "reason", "key", "execution", "detail"), output, empty="")
    letters = sum(each["outcome"] == "dead_letter" for each in found)
    if letters:
        say(f"{letters} dead letter{'' if letters == 1 else 's'}")
        raise typer.Exit(Exit.ERROR)


def _header(given: str) -> tuple[str, bytes]:
    name, equals, value = given.partition("=")
    if not equals or not name:
        raise CommandFailed(f"--header takes NAME=VALUE, not {given!r}", Exit.USAGE)
    return name, value.encode(errors="surrogateescape")
