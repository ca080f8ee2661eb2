"""Where an execution's steps stand, as lines for a terminal or a pipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from rich.cells import cell_len, set_cell_size

from flowpilot.cli.graph import MOST, tree
from flowpilot.cli.output import STATUS_STYLES, cell

Fields = Mapping[str, Any]

# Of a summary's steps, so many are named unless the terminal's height says otherwise.
MOST_NAMED = 50
_GAP = "  "
# What somebody looks for first in a summary. A retrying step is one whose attempt failed.
_NAMED = ("failed", "retrying", "running")
_ORDER = ("completed", "running", "ready", "retrying", "failed", "skipped", "cancelled", "pending")
_ENDED = frozenset({"completed", "failed", "skipped", "cancelled"})


class Piece(NamedTuple):
    """Part of a line, harmless for a terminal, and rich's style of it."""

    text: str
    style: str = ""


Line = list[Piece]


class _Row(NamedTuple):
    branch: str
    under: str
    name: str
    fields: Fields


def drawn(found: Fields, now: datetime, *, width: int | None = None, height: int | None = None) -> list[Line]:
    """The steps of `found`, as `executions.show_execution` gives it: a tree, or a list where it would be too deep;
    a summary with the steps that fail or run if there are too many, or more than fit `height` lines.

    Lines are cut at `width` cells.
    """
    tasks = {task["step"]: task for task in found["tasks"]}
    graph: Sequence[Fields] = found["graph"] or [{"step": name, "depends_on": []} for name in tasks]
    steps = [{"status": "pending", **step, **tasks.get(step["step"], {})} for step in graph]
    places = tree([(step["step"], step["depends_on"]) for step in graph])
    if not places and len(steps) <= MOST:  # too deep for a tree
        rows = [_Row("", "  ", step["step"], step) for step in steps]
    else:
        rows = [
            _Row(place.branch, place.under, steps[place.order]["step"] + _beside(place.beside), steps[place.order])
            for place in places
        ]
    lines = _lines(rows, now)
    if steps and (not rows or (height is not None and len(lines) > height)):
        lines = _summary(steps, now, MOST_NAMED if height is None else max(height - 2, 2))
    return lines if width is None else [cut(line, width) for line in _narrowed(lines, width)]


def progress(found: Fields) -> tuple[int, int]:
    """How many steps have ended, and how many there are."""
    done = sum(task["status"] in _ENDED for task in found["tasks"])
    return done, max(len(found["graph"]), len(found["tasks"]))


def change(step: Fields, now: datetime) -> str:
    """A step that changed, as a line of a log."""
    pieces = [cell(step["step"]), step["status"], *_details(step, now)]
    error = sentence(step["error"]) if step["status"] != "completed" else ""
    return _GAP.join(filter(None, [*pieces, cell(error)]))


def sentence(error: Any) -> Any:
    """A step's error as its kind and message."""
    if isinstance(error, dict) and {"kind", "message"} <= error.keys():
        return f"{error['kind']}: {error['message']}"
    return error


def span(seconds: float) -> str:
    """A duration as people say it: `75 ms`, `3.2 s`, `4 m 05 s`, `2 h 03 m`."""
    if seconds < 0.9995:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} m"


def elapsed(begun: str | None, ended: str | None, now: datetime) -> str:
    """From one time to another or to now; empty if it has not begun. Clocks may differ: never negative."""
    if begun is None:
        return ""
    until = now if ended is None else datetime.fromisoformat(ended)
    return span((until - datetime.fromisoformat(begun)).total_seconds())


def _lines(rows: Iterable[_Row], now: datetime) -> list[Line]:
    listed = list(rows)
    widest = max((cell_len(row.branch + cell(row.name)) for row in listed), default=0)
    lines: list[Line] = []
    for row in listed:
        status = cell(row.fields["status"])
        details = _GAP.join(_details(row.fields, now))
        head = row.branch + cell(row.name)
        style = STATUS_STYLES.get(status, "dim")
        line = [Piece(head + " " * (widest - cell_len(head))), Piece(f"{_GAP}{status:<9}", style)]
        lines.append([*line, Piece(_GAP + details)] if details else line)
        error = sentence(row.fields.get("error"))
        if error is not None and status != "completed":
            lines.append([Piece(row.under), Piece(cell(error), "red" if status == "failed" else "yellow")])
        if remedy := (row.fields.get("waits_for") or {}).get("remedy"):
            lines.append([Piece(row.under), Piece(f"start one: {cell(remedy)}", "yellow")])
    return lines


def _summary(steps: Sequence[Fields], now: datetime, most: int) -> list[Line]:
    counts = Counter(step["status"] for step in steps)
    line: Line = [Piece(f"{len(steps):,} steps: ")]
    for n, status in enumerate(sorted(counts, key=lambda name: _ORDER.index(name) if name in _ORDER else 99)):
        text = f"{counts[status]:,} {cell(status)}"
        line.extend([Piece(", " if n else ""), Piece(text, STATUS_STYLES.get(status, "dim"))])
    named = [step for status in _NAMED for step in steps if step["status"] == status]
    lines = _lines((_Row("", "  ", step["step"], step) for step in named[:most]), now)
    if len(lines) > most or len(named) > most:
        # A step and its error stay together.
        fits, used = 0, 0
        for step in named[:most]:
            used += 1 + (step.get("error") is not None)
            if used > most - 1:
                break
            fits += 1
        lines = _lines((_Row("", "  ", step["step"], step) for step in named[:fits]), now)
        lines.append([Piece(f"… and {len(named) - fits:,} more that fail or run", "dim")])
    return [line, *lines]


def _details(step: Fields, now: datetime) -> list[str]:
    status, attempt, most = step["status"], step.get("attempt") or 0, step.get("max_attempts")
    if step.get("taken_from"):
        return [f"taken over from {cell(step['taken_from'])}"]
    found: list[str] = []
    if status == "retrying":
        again = step.get("retry_at")
        left = (datetime.fromisoformat(again) - now).total_seconds() if again else 0
        found.append(f"again in {span(left)}" if left > 0 else "again at once")
    elif status == "ready":
        queue = f" of queue {cell(step['queue'])}" if step.get("queue") else ""
        what = (step.get("waits_for") or {}).get("detail") or f"a worker{queue}"
        found.append(f"{elapsed(step.get('ready_at'), None, now)}, waits for {cell(what)}")
    elif status in ("running", "completed", "failed"):
        found.append(elapsed(step.get("started_at") or step.get("ready_at"), step.get("finished_at"), now))
    if attempt > 1 or (status in ("retrying", "failed") and attempt):
        found.append(f"attempt {attempt}" + (f" of {most}" if most else ""))
    if step.get("worker_id") and status in ("running", "completed", "failed", "retrying"):
        found.append(f"on {cell(step['worker_id'])}")
    return [text for text in found if text]


def _beside(others: Sequence[str]) -> str:
    if not others:
        return ""
    return f" (and {', '.join(others)})" if len(others) <= 2 else f" (and {len(others)} others)"


def _narrowed(lines: list[Line], width: int) -> list[Line]:
    """The column of names at most so wide that status and time fit beside it."""
    most = max(width - 40, width // 2)
    return [
        [Piece(_fit(line[0].text.rstrip(), min(cell_len(line[0].text), most))), *line[1:]]
        if len(line) > 1 and line[1].text.startswith(_GAP)
        else line
        for line in lines
    ]


def _fit(text: str, width: int) -> str:
    """`text` in exactly `width` cells."""
    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, max(width - 1, 0)) + "…"


def cut(line: Line, width: int) -> Line:
    """`line` in at most `width` cells."""
    kept: Line = []
    left = width
    for piece in line:
        size = cell_len(piece.text)
        if size > left:
            return [*kept, piece._replace(text=_fit(piece.text, left))] if left > 0 else kept
        kept.append(piece)
        left -= size
    return kept
