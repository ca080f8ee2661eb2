"""Data on stdout as a table, as JSON or as JSON lines; everything else on stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from flowpilot.cli.safe import escaped, escaped_json


class Format(StrEnum):
    """What `-o` takes."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


Output = Annotated[Format, typer.Option("--output", "-o", help="How data is printed.", show_choices=True)]

Row = Mapping[str, Any]


def say(text: str) -> None:
    """One line for the user, on stderr."""
    print(escaped(text, keep="\n"), file=sys.stderr, flush=True)


def line(text: str = "") -> None:
    """One line of data, on stdout."""
    _print(escaped(text))


def rows(found: Iterable[Row], columns: Sequence[str], form: Format, *, empty: str) -> None:
    """A list. JSON has every field of a row, the table `columns` alone; `empty` is said if there is none."""
    listed = list(found)
    if form is Format.JSON:
        _print(_json(listed, indent=2))
    elif form is Format.JSONL:
        for row in listed:
            _print(_json(row))
    elif listed:
        table(listed, columns)
    else:
        say(empty)


def record(found: Row, form: Format) -> None:
    """One object: a line a field in the table form."""
    if form is Format.TABLE:
        width = max(map(len, found), default=0)
        for name, value in found.items():
            if value is not None:
                _print(f"{name.replace('_', ' '):<{width}}  {cell(value)}")
    elif form is Format.JSON:
        _print(_json(found, indent=2))
    else:
        _print(_json(found))


def value(found: Any) -> None:
    """A JSON value alone."""
    _print(_json(found, indent=2 if sys.stdout.isatty() else None))


def table(found: Sequence[Row], columns: Sequence[str]) -> None:
    """A table on stdout: in a pipe, or where it cannot fit, plain and with each row on one line; on a terminal
    with colour, the last column folded to fit."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    cells = [[cell(row.get(column)) for column in columns] for row in found]
    heads = [column.upper() for column in columns]
    widths = [max(map(cell_len, of)) for of in zip(heads, *cells, strict=True)]
    room = console.width - sum(widths[:-1]) - _GAP * (len(columns) - 1)
    if not console.is_terminal or room < min(widths[-1], _NARROWEST):
        for row in (heads, *cells):
            padded = (text + " " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True))
            _print((" " * _GAP).join(padded).rstrip())
        return
    drawn = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for head in heads:
        drawn.add_column(head.replace("_", " "), overflow="fold", no_wrap=head != heads[-1])
    for row in cells:
        drawn.add_row(*(Text(_MOMENT.sub(r"\1 \2", text), style=STATUS_STYLES.get(text, "")) for text in row))
    console.print(drawn)


_GAP = 2
_NARROWEST = 16
_MOMENT = re.compile(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d\.\d{3}Z)$", re.ASCII)
STATUS_STYLES = {
    "completed": "green",
    "failed": "red",
    "incident": "bold red",
    "cancelled": "yellow",
    "running": "cyan",
    "retrying": "magenta",
}


def cell(found: Any) -> str:
    """A value as the text of a table's cell: control characters are shown, not obeyed."""
    if found is None:
        return ""
    if isinstance(found, bool):
        return "yes" if found else "no"
    return escaped(found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, default=str))


def _json(found: Any, indent: int | None = None) -> str:
    return escaped_json(json.dumps(found, indent=indent, ensure_ascii=False, default=str))


def _print(text: str) -> None:
    # What a terminal's encoding cannot show is no reason to fail.
    data = (text + "\n").encode(sys.stdout.encoding or "utf-8", errors="replace")
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        sys.stdout.write(text + "\n")
    else:
        sys.stdout.flush()
        buffer.write(data)
        buffer.flush()
