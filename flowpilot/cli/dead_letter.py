"""`flowpilot dead-letter list|show`."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowpilot.cli.begin import begin
from flowpilot.cli.failures import CommandFailed, Exit
from flowpilot.cli.output import Format, Output, line, record, rows, say
from flowpilot.cli.safe import shown

if TYPE_CHECKING:
    from flowpilot.adapters.postgres.dead_letters import Place
    from flowpilot.app.dead_letters import Shown

app = typer.Typer(
    name="dead-letter",
    help="Look at the records that nobody could process.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SHOWN = 4096


@app.command("list")
def list_letters(
    reason: Annotated[
        str | None, typer.Option("--reason", "-r", help="Only with this reason.", metavar="REASON")
    ] = None,
    workflow: Annotated[
        str | None, typer.Option("--workflow", help="Only of this workflow.", metavar="NAME")
    ] = None,
    topic: Annotated[
        str | None, typer.Option("--topic", "-t", help="Only of records on this topic.", metavar="TOPIC")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", help="Only reported since then: 15m, 24h, or a time such as 2026-05-01T12:00Z."),
    ] = None,
    letters: Annotated[
        bool | None,
        typer.Option(
            "--letters/--by-reason", help="Each letter, or a line a reason (the default unless filtered)."
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000, help="At most so many letters.")] = 20,
    output: Output = Format.TABLE,
) -> None:
    """The dead letters by reason; with a filter, each of them.

    \b
    Examples:
      flowpilot dead-letter list
      flowpilot dead-letter list --reason not_json
      flowpilot dead-letter list --since 1h --by-reason
      flowpilot dead-letter list --workflow patient-onboarding --limit 1000 -o jsonl | jq -r .record

    It reads the audit record, which follows by a moment.

    The newest first.
    """
    from flowpilot.adapters.postgres.dead_letters import Wanted
    from flowpilot.app import dead_letters

    wanted = Wanted(reason, workflow, topic, None if since is None else _moment(since, datetime.now(UTC)))
    flat = wanted != Wanted() if letters is None else letters
    if not flat:
        found = dead_letters.list_groups(begin(), wanted)
        if output is Format.TABLE:
            for row in found:
                row["topics"] = ", ".join(row["topics"])
        rows(found, ("reason", "count", "newest", "topics", "example"), output, empty="no dead letters")
        if found and output is Format.TABLE:
            say("`flowpilot dead-letter list --reason REASON` lists them, `dead-letter show EXAMPLE` shows one")
        return
    found, total = dead_letters.list_letters(begin(), wanted, limit)
    rows(found, ("id", "reason", "record", "reported_at", "workflow", "detail"), output, empty="no dead letters")
    if total > len(found):
        say(f"the newest {len(found)} of {total:,}; --limit shows more")


@app.command()
def show(
    letter: Annotated[
        str, typer.Argument(help="A letter's id, or its record as TOPIC/PARTITION/OFFSET.", metavar="LETTER")
    ],
    raw: Annotated[bool, typer.Option("--raw", help="The record's bytes alone, as they are.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --raw: on a terminal, too.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """One dead letter: why, what to do, and the record's own bytes.

    \b
    Examples:
      flowpilot dead-letter show 17
      flowpilot dead-letter show patients.registered/3/1207
      flowpilot dead-letter show 17 --raw > record.json
      flowpilot dead-letter show 17 -o json | jq -r .value_base64 | base64 -d

    The bytes are made harmless for the terminal.
    """
    from flowpilot.app import dead_letters

    if raw and not force and sys.stdout.isatty():
        raise CommandFailed(
            "--raw would send the record's bytes to your terminal: write them to a file (> FILE), or add --force",
            Exit.USAGE,
        )
    found = dead_letters.show_letter(begin(), _which(letter))
    if found is None:
        raise CommandFailed(
            f"there is no dead letter {letter}; `flowpilot dead-letter list --letters` shows the newest",
            Exit.NOT_FOUND,
        )
    if raw:
        _write_raw(found)
    elif output is Format.TABLE:
        _print_letter(found)
    else:
        record(dead_letters.as_json(found), output)


def _which(letter: str) -> int | Place:
    from flowpilot.adapters.postgres.dead_letters import Place

    place = re.fullmatch(r"(.+)/(\d{1,9})/(\d{1,18})", letter, re.ASCII)
    if place is not None:
        return Place(place[1], int(place[2]), int(place[3]))
    if re.fullmatch(r"\d{1,18}", letter, re.ASCII):
        return int(letter)
    raise CommandFailed(f"{letter!r} is neither an id such as 17 nor TOPIC/PARTITION/OFFSET", Exit.USAGE)


def _moment(since: str, now: datetime) -> datetime:
    from flowpilot.authoring.durations import milliseconds

    try:
        return now - timedelta(milliseconds=milliseconds(since))
    except (ValueError, OverflowError):
        pass
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        example = "a duration such as 15m or 24h, or a time such as 2026-05-01T12:00Z"
        raise CommandFailed(f"--since takes {example}, not {since!r}", Exit.USAGE) from None
    return moment if moment.tzinfo is not None else moment.astimezone()


def _write_raw(found: Shown) -> None:
    if found.value is None:
        say("the record has no value (null)")
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(found.value)
    sys.stdout.buffer.flush()
    if found.fields["truncated"]:
        say(_kept(found))


def _print_letter(found: Shown) -> None:
    fields = found.fields
    names = ("id", "reason", "detail", "remedy", "record", "at", "reported_at", "source", "workflow")
    told: dict[str, Any] = {name: fields[name] for name in names}
    told["size"] = f"{fields['size']:,} bytes"
    told["sha256"] = fields["sha256"]
    if fields["others"]:
        told["others"] = ", ".join(
            f"{other['id']} ({other['reason']}{' of ' + other['workflow'] if other['workflow'] else ''})"
            for other in fields["others"]
        )
    record(told, Format.TABLE)
    if found.headers:
        line()
        line("headers:")
        for name, value in found.headers:
            first, *more = shown(value, SHOWN)
            line(f"  {name.encode(errors='surrogateescape').decode(errors='backslashreplace')}: {first}")
            for text in more:
                line(f"    {text}")
    if fields["headers_left_out"]:
        say(f"headers that were too large to be kept: {fields['headers_left_out']}")
    if found.key is not None:
        _print_bytes("key", found.key)
    if found.value is None:
        line()
        line("value: null")
    else:
        _print_bytes("value", found.value)
    if fields["truncated"]:
        say(_kept(found))


def _print_bytes(what: str, data: bytes) -> None:
    line()
    more = f", the first {SHOWN:,} of {len(data):,} bytes (--raw gives all)" if len(data) > SHOWN else ""
    line(f"{what}{more}:")
    # Indented, so that no line of theirs can be taken for one of ours.
    for text in shown(data, SHOWN):
        line(f"  {text}")


def _kept(found: Shown) -> str:
    kept = len(found.value or b"")
    return f"only the first {kept:,} of {found.fields['size']:,} bytes were kept: the record was too large"
