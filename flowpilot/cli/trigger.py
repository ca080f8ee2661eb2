"""`flowpilot trigger publish|fate|dry-run|rewind`."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowpilot.cli.begin import begin
from flowpilot.cli.failures import CommandFailed, Exit
from flowpilot.cli.output import Format, Output, line, record, rows, say
from flowpilot.ports.log import Headers, is_utf8

if TYPE_CHECKING:
    from flowpilot.app.triggers import Place
    from flowpilot.settings import Settings

app = typer.Typer(
    name="trigger",
    help="Publish trigger records, and see what became of one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

TopicName = Annotated[str, typer.Argument(help="The Kafka topic.", metavar="TOPIC")]
RecordHeaders = Annotated[
    list[str] | None,
    typer.Option("--header", "-H", help="A record header; may be repeated.", metavar="NAME=VALUE"),
]
_FATE = ("workflow", "fate", "reason", "execution", "run", "detail")


@app.command()
def publish(
    topic: TopicName,
    key: Annotated[
        str | None,
        typer.Option("--key", "-k", help="The record's key: the same key, the same partition.", metavar="KEY"),
    ] = None,
    header: RecordHeaders = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="The record's value; without it, stdin.", metavar="FILE")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would start, and publish nothing.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Wait until it is known what became of it, and print that.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, help="Wait at most so long.", metavar="SECONDS")
    ] = 30.0,
    output: Output = Format.TABLE,
) -> None:
    """Publish a record on TOPIC, and --wait for what it starts.

    \b
    Examples:
      flowpilot trigger publish patients.registered < record.json
      echo '{"patient_id": "p-17"}' | flowpilot trigger publish patients.registered --wait
      flowpilot trigger publish orders --key o-1 --file event.json -H content-type=application/cloudevents+json
      flowpilot trigger publish patients.registered --file record.json --dry-run

    The bytes are sent as they are. Nothing is published on a topic that is not there (none is created) or that no
    workflow reads: exit code 6. With --wait: 1 if it became a dead letter or was refused, 4 if that is not known
    in time.
    """
    from flowpilot.app import triggers

    headers = _headers(header)
    settings = begin()
    value = _value(file)
    foretold = _foretold(settings, topic, value, headers)
    if dry_run:
        _show_foretold(foretold, output)
        return
    given = None if key is None else key.encode(errors="surrogateescape")
    place = asyncio.run(triggers.publish(settings, topic, value, key=given, headers=headers))
    if not wait:
        if output is Format.TABLE:
            line("/".join(map(str, place)))
            for each in foretold:
                say(_expected(each))
        else:
            record({**place._asdict(), "foretold": foretold}, output)
        return
    say(f"record {'/'.join(map(str, place))}")
    found = triggers.await_fates(settings, place, foretold, timeout)
    if output is Format.TABLE:
        rows(found, _FATE, output, empty="")
    else:
        record({**place._asdict(), "fates": found}, output)
    if not triggers.all_told(found, foretold):
        later = f"flowpilot trigger fate {' '.join(map(str, place))}"
        raise CommandFailed(
            f"what became of it is not known after {timeout:g} s; `{later}` tells later, `flowpilot doctor` "
            "whether router, engine and audit run",
            Exit.TIMED_OUT,
        )
    _fail_for_dead_letters(sum(each["fate"] == "dead_letter" for each in found))
    if any(each["fate"] == "refused" for each in found):
        raise typer.Exit(Exit.ERROR)


def _expected(foretold: dict[str, Any]) -> str:
    who = foretold["workflow"] or "every workflow that reads it"
    match foretold["outcome"]:
        case "start":
            key = f" of key {foretold['key']}" if foretold["key"] else ""
            which = f" {foretold['execution']}" if foretold["execution"] else ""
            return f"{who}: starts execution{which}{key}, unless there is one"
        case "filtered":
            return f"{who}: starts nothing, {foretold['detail']}"
        case _:
            return f"{who}: a dead letter, {foretold['reason']}: {foretold['detail']}"


@app.command()
def rewind(
    topic: TopicName,
    partition: Annotated[int, typer.Argument(help="The partition.", metavar="PARTITION", min=0)],
    offset: Annotated[int, typer.Argument(help="Where to go on.", metavar="OFFSET", min=0, max=2**62)],
) -> None:
    """Resume a partition at OFFSET after its log lost its last records.

    \b
    Example:
      flowpilot trigger rewind patients.registered 0 4711        as the router and `flowpilot doctor` print it

    The records that are gone keep what became of them. One published since under the offset of such a record is
    served; without a key of its own it meets the execution of that record (`key_conflict`): publish it again.
    A router that reads the partition goes on where it is. Exit code 1: no position is beyond OFFSET.
    """
    from flowpilot.app.rewinding import rewind as move_back

    settings = begin()
    workflows = asyncio.run(move_back(settings, topic, partition, offset))
    line(f"{topic}/{partition} goes on from offset {offset} for {', '.join(workflows)}")


@app.command()
def fate(
    topic: TopicName,
    partition: Annotated[
        int | None, typer.Argument(help="The record's partition.", metavar="PARTITION", min=0)
    ] = None,
    offset: Annotated[
        int | None, typer.Argument(help="The record's offset.", metavar="OFFSET", min=0, max=2**62)
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """What became of one record, workflow by workflow.

    \b
    Examples:
      flowpilot trigger fate patients.registered 0 4711
      flowpilot trigger fate patients.registered/0/4711 -o json        as `trigger publish` prints it

    It reads the audit record, which follows the router by a moment. Exit code 6: nothing is known of the record.

    Fates: started, duplicate, key_conflict, filtered, dead_letter, …
    """
    from flowpilot.app import triggers

    place = _place(topic, partition, offset)
    settings = begin()
    found = triggers.fates(settings, *place)
    if not found:
        # Kafka is asked only now: the audit outlives topics and their records.
        absent = triggers.absence(settings, place)
        unknown = (
            f"the audit knows nothing of {'/'.join(map(str, place))} (yet); "
            f"`flowpilot trigger dry-run {place.topic}` shows which workflows would take such a record"
        )
        raise CommandFailed(absent or unknown, Exit.NOT_FOUND)
    rows(found, columns(found), output, empty="")


def columns(found: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The table's columns: with the topic's id if several topics of the same name had a record at this place."""
    ids = {fate["topic_id"] for fate in found if fate["topic_id"] is not None}
    return (*_FATE, "topic_id") if len(ids) > 1 else _FATE


def _place(topic: str, partition: int | None, offset: int | None) -> Place:
    from flowpilot.app.triggers import Place

    if partition is not None and offset is not None:
        return Place(topic, partition, offset)
    whole = re.fullmatch(r"(.+)/(\d{1,9})/(\d{1,18})", topic, re.ASCII)
    if whole is None or partition is not None:
        raise CommandFailed(
            "a record is named as TOPIC PARTITION OFFSET or TOPIC/PARTITION/OFFSET, such as orders 0 17", Exit.USAGE
        )
    return Place(whole[1], int(whole[2]), int(whole[3]))


@app.command("dry-run")
def dry_run(topic: TopicName, header: RecordHeaders = None, output: Output = Format.TABLE) -> None:
    """What a record on stdin would start on TOPIC; nothing is sent.

    \b
    Examples:
      flowpilot trigger dry-run patients.registered < record.json
      flowpilot trigger dry-run orders -H content-type=application/cloudevents+json < event.json

    It takes the registered workflows as they are now. Exit code 1: it would be a dead letter; 6: no workflow reads
    the topic. `flowpilot trigger publish` sends it.

    It tells with which key and id, or why it would start nothing.
    """
    headers = _headers(header)
    _show_foretold(_foretold(begin(), topic, _value(None), headers), output)


def _foretold(settings: Settings, topic: str, value: bytes, headers: Headers) -> list[dict[str, Any]]:
    from flowpilot.app import triggers

    return asyncio.run(triggers.dry_run(settings, topic, value, headers))


def _show_foretold(found: list[dict[str, Any]], output: Format) -> None:
    rows(found, ("workflow", "outcome", "reason", "key", "execution", "detail"), output, empty="")
    _fail_for_dead_letters(sum(each["outcome"] == "dead_letter" for each in found))


def _fail_for_dead_letters(letters: int) -> None:
    if letters:
        say(f"{letters} dead letter{'' if letters == 1 else 's'}")
        raise typer.Exit(Exit.ERROR)


def _value(file: Path | None) -> bytes:
    """The record: the file's bytes as they are, or those of stdin."""
    if file is None:
        if sys.stdin.isatty():
            say("reading the record from the terminal: Ctrl-D ends it, Ctrl-C publishes nothing")
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise CommandFailed(f"cannot read {file}: {error.strerror}", Exit.USAGE) from error


def _headers(given: list[str] | None) -> Headers:
    return tuple(_header(each) for each in given or ())


def _header(given: str) -> tuple[str, bytes]:
    name, equals, value = given.partition("=")
    if not equals or not name:
        raise CommandFailed(f"--header takes NAME=VALUE, not {given!r}", Exit.USAGE)
    if not is_utf8(name):
        raise CommandFailed(f"the name of a header must be UTF-8, not {name!r}", Exit.USAGE)
    return name, value.encode(errors="surrogateescape")
