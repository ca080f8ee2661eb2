"""An execution's steps on a terminal, drawn once or in place, and in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from flowpilot.cli.output import STATUS_STYLES, cell, line, say

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

    from flowpilot.cli.progress import Line

Fields = Mapping[str, Any]

_FRAMES = 4  # a second, so that times run on between the looks


class Display(Protocol):
    """What is shown of the looks, one after the other."""

    def show(self, found: Fields, changed: Sequence[Fields]) -> None:
        """The execution as it stands, and the steps that changed."""
        ...

    def trouble(self, what: str | None) -> None:
        """The audit does not answer, and why; None: it does again."""
        ...


def print_steps(found: Fields) -> None:
    """The steps as a tree, or what there is of it; nothing without steps."""
    from rich.console import Console

    from flowpilot.cli.progress import drawn

    console = Console(highlight=False)
    now = datetime.now(UTC)
    if not console.is_terminal:
        for pieces in drawn(found, now):
            line("".join(piece.text for piece in pieces).rstrip())
        return
    for pieces in drawn(found, now, width=console.width):
        console.print(_text(pieces))


@contextmanager
def display() -> Iterator[Display]:
    """What suits stdout."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.live import Live

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # what a terminal cannot show is no reason to fail
    console = Console(highlight=False)
    if console.is_dumb_terminal:  # it cannot be drawn on in place
        yield Lines()
        return
    frame = Frame()
    with Live(frame, console=console, refresh_per_second=_FRAMES, redirect_stderr=False, redirect_stdout=False):
        yield frame


class Lines:
    """A line a change, for a pipe: `TIME execution STATUS` or `TIME STEP STATUS …`."""

    def __init__(self) -> None:
        self._status: str | None = None

    def show(self, found: Fields, changed: Sequence[Fields]) -> None:
        """See `Display`."""
        from flowpilot.cli.progress import change, elapsed, progress

        now = datetime.now(UTC)
        has_ended = found["finished_at"] is not None
        if self._status is None:
            parent = f"  a retry of {found['parent']}" if found["parent"] else ""
            line(f"{found['started_at'] or found['finished_at']}  execution {found['execution']}  begun{parent}")
        for step in changed:
            line(f"{_moment(step) or found['started_at']}  {change(step, now)}")
        if found["status"] != self._status and (has_ended or self._status is not None or found["reason"]):
            done, total = progress(found)
            took = elapsed(found["started_at"], found["finished_at"], now)
            when = found["finished_at"] or now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            why = f"  {cell(found['reason'])}" if found["reason"] else ""
            line(f"{when}  execution {found['status']}  {took}  {done} of {total} steps ended{why}")
        self._status = found["status"]

    def trouble(self, what: str | None) -> None:
        """See `Display`."""
        say(f"{what}; trying again" if what else "PostgreSQL answers again")


class Frame:
    """What a terminal shows: drawn again several times a second, so that times run on between the looks."""

    def __init__(self) -> None:
        self._found: Fields | None = None
        self._trouble: str | None = None

    def show(self, found: Fields, changed: Sequence[Fields]) -> None:
        """See `Display`."""
        self._found = found

    def trouble(self, what: str | None) -> None:
        """See `Display`."""
        self._trouble = what

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for pieces in self.lines(datetime.now(UTC), options.max_width, options.size.height):
            yield _text(pieces)

    def lines(self, now: datetime, width: int, height: int) -> list[Line]:
        """The frame as lines of at most `width` cells, at most `height` of them."""
        from flowpilot.cli.progress import Piece, cut, drawn, elapsed, progress

        found = self._found
        if found is None:
            return [cut([Piece(self._trouble or "waiting for the audit to know the execution …", "dim")], width)]
        status = found["status"]
        head = [
            Piece(f"{cell(found['workflow'])} {cell(found['version'])}", "bold"),
            Piece(f"  {found['execution']}  ", "dim"),
            Piece(cell(status), STATUS_STYLES.get(status, "")),
            Piece(f"  {elapsed(found['started_at'], found['finished_at'], now)}"),
        ]
        lines = [head]
        if found["parent"]:
            lines.append([Piece(f"a retry of {cell(found['parent'])}", "dim")])
        if found["reason"]:
            lines.append([Piece(cell(found["reason"]), "yellow")])
        below: list[Line] = []
        done, total = progress(found)
        if total:
            words = f"  {done:,} of {total:,} steps ended"
            room = max(min(width - len(words), 40), 1)
            full = room * done // total
            below.append([Piece("━" * full, "green"), Piece("─" * (room - full), "dim"), Piece(words)])
        if self._trouble:
            below.append([Piece(f"{cell(self._trouble)}; trying again", "bold red")])
        room = max(height - len(lines) - len(below) - 1, 4)  # and the line that the cursor stands on
        lines += drawn(found, now, width=width, height=room)
        return [cut(pieces, width) for pieces in (*lines, *below)]


def _text(pieces: Line) -> Text:
    from rich.text import Text

    return Text.assemble(*pieces, no_wrap=True, overflow="crop", end="\n")


def _moment(step: Fields) -> str | None:
    """When the step changed last, as far as its row tells."""
    status = step["status"]
    by_status = {"ready": "ready_at", "running": "started_at", "retrying": "finished_at"}
    found: str | None = step[by_status.get(status, "finished_at")] or step["started_at"] or step["ready_at"]
    return found
