"""An execution's steps as lines: the tree, the summary of a wide one, widths, and what others wrote."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from flowpilot.cli import display
from flowpilot.cli.progress import Line, drawn, span

NOW = datetime(2026, 5, 1, 12, 0, 10, tzinfo=UTC)


def at(seconds: float) -> str:
    return datetime.fromtimestamp(NOW.timestamp() - 10 + seconds, UTC).isoformat()


def task(step: str, status: str, **more: Any) -> dict[str, Any]:
    names = ("taken_from", "ready_at", "started_at", "finished_at", "retry_at", "worker_id", "error")
    return {"step": step, "status": status, "attempt": 1, **dict.fromkeys(names), **more}


def execution(graph: dict[str, tuple[str, ...]], *tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    steps = [
        {"step": name, "depends_on": list(parents), "queue": "mail", "max_attempts": 3}
        for name, parents in graph.items()
    ]
    head = {"execution": "e", "workflow": "w", "version": "1", "status": "running", "parent": None, "reason": None}
    return {**head, "started_at": at(0), "finished_at": None, "graph": steps, "tasks": list(tasks), **more}


def plain(lines: list[Line]) -> list[str]:
    return ["".join(piece.text for piece in line).rstrip() for line in lines]


ONBOARDING = execution(
    {"create": (), "otp": ("create",), "mail": ("create",), "activate": ("otp", "mail"), "report": ("activate",)},
    task("create", "completed", attempt=0, taken_from="6f1c"),
    task(
        "otp",
        "retrying",
        attempt=2,
        retry_at=at(12.5),
        worker_id="w-1",
        error={"kind": "Smtp", "message": "no\nway"},
    ),
    task("mail", "running", started_at=at(6.8), worker_id="w-2"),
    task("activate", "failed", ready_at=at(1), finished_at=at(1.075), attempt=3, error={"odd": True}),
)


def test_each_step_stands_in_the_tree_with_what_matters_now() -> None:
    assert plain(drawn(ONBOARDING, NOW)) == [
        "create                    completed  taken over from 6f1c",
        "├─ otp                    retrying   again in 2.5 s  attempt 2 of 3  on w-1",
        "│     Smtp: no\\nway",
        "└─ mail                   running    3.2 s  on w-2",
        "   └─ activate (and otp)  failed     75 ms  attempt 3 of 3",
        '      │  {"odd": true}',
        "      └─ report           pending",
    ]


def test_a_step_that_waits_says_for_whom_and_a_deleted_workflow_leaves_a_list() -> None:
    waiting = execution({"a": ()}, task("a", "ready", ready_at=at(7)))
    assert plain(drawn(waiting, NOW)) == ["a  ready      3.0 s, waits for a worker of queue mail"]
    busy = {"reason": "busy", "detail": "the worker of queue mail that serves it", "remedy": None}
    waiting = execution({"a": ()}, task("a", "ready", ready_at=at(7), waits_for=busy))
    assert plain(drawn(waiting, NOW)) == ["a  ready      3.0 s, waits for the worker of queue mail that serves it"]
    unknown = execution({}, task("a", "completed", started_at=at(1), finished_at=at(2)), task("b", "skipped"))
    assert plain(drawn(unknown, NOW)) == ["a  completed  1.0 s", "b  skipped"]


def test_a_step_that_no_worker_serves_is_told_with_the_remedy() -> None:
    lacking = {"detail": "a worker: queue \x1bmail has none", "remedy": "flowpilot worker MODULE:\x1bflow"}
    waiting = execution({"a": (), "b": ("a",)}, task("a", "ready", ready_at=at(7), waits_for=lacking))
    assert plain(drawn(waiting, NOW)) == [
        "a     ready      3.0 s, waits for a worker: queue \\x1bmail has none",
        "│  start one: flowpilot worker MODULE:\\x1bflow",
        "└─ b  pending",
    ]


@pytest.mark.parametrize("width", [20, 40, 80])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    wide = execution(
        {"名" * 30: (), "x" * 90: ("名" * 30,)},
        task("名" * 30, "failed", error="e" * 300),
        task("x" * 90, "running", started_at=at(0), worker_id="w" * 60),
    )
    lines = plain(drawn(wide, NOW, width=width))
    assert max(map(cell_len, lines)) <= width
    if width >= 40:
        assert ["failed" in line or "running" in line for line in lines] == [True, False, True]


def test_ten_thousand_steps_are_counted_and_only_those_that_fail_or_run_are_named() -> None:
    graph: dict[str, tuple[str, ...]] = {f"s{n}": () for n in range(10_000)}
    tasks = [task(f"s{n}", "completed") for n in range(9_000)]
    tasks += [task(f"s{n}", "running", started_at=at(5)) for n in range(9_000, 9_100)]
    tasks.append(task("s9100", "failed", error="boom"))
    lines = plain(drawn(execution(graph, *tasks), NOW, width=80, height=10))
    assert lines[0] == "10,000 steps: 9,000 completed, 100 running, 1 failed, 899 pending"
    assert lines[1].split()[:2] == ["s9100", "failed"]
    assert lines[2].strip() == "boom"
    assert lines[3].split()[:2] == ["s9000", "running"]
    assert lines[-1] == f"… and {101 - (len(lines) - 3):,} more that fail or run"
    assert len(lines) <= 10


def test_a_tree_that_is_higher_than_the_terminal_becomes_a_summary() -> None:
    small = execution({f"s{n}": () for n in range(12)}, task("s3", "running", started_at=at(9)))
    assert len(drawn(small, NOW, width=80, height=12)) == 12
    assert plain(drawn(small, NOW, width=80, height=11)) == [
        "12 steps: 1 running, 11 pending",
        "s3  running    1.0 s",
    ]


def test_a_chain_that_is_too_deep_for_a_tree_is_a_list() -> None:
    chain = {f"s{n}": (f"s{n - 1}",) if n else () for n in range(60)}
    lines = plain(drawn(execution(chain, task("s0", "running", started_at=at(9))), NOW))
    assert [line.split()[:2] for line in lines] == [
        ["s0", "running"],
        *([f"s{n}", "pending"] for n in range(1, 60)),
    ]


def test_a_frame_fits_the_terminal_and_tells_of_trouble() -> None:
    frame = display.Frame()
    assert "waiting" in plain(frame.lines(NOW, 80, 24))[0]
    frame.show({**ONBOARDING, "parent": "p"}, [])
    frame.trouble("PostgreSQL did not let us in")
    lines = plain(frame.lines(NOW, 60, 24))
    assert lines[0] == "w 1  e  running  10.0 s"
    assert lines[1] == "a retry of p"
    assert lines[-2].endswith("2 of 5 steps ended")
    assert lines[-1] == "PostgreSQL did not let us in; trying again"
    assert len(plain(frame.lines(NOW, 60, 8))) <= 8


HOSTILE = "\x1b[2J\u202e\r[red]"


def test_nothing_hostile_reaches_a_terminal_and_colour_only_a_terminal() -> None:
    frame = display.Frame()
    found = execution(
        {HOSTILE: ()},
        task(HOSTILE, "failed", worker_id=HOSTILE, error={"kind": HOSTILE, "message": HOSTILE}),
        workflow=HOSTILE,
        version=HOSTILE,
        parent=HOSTILE,
        reason=HOSTILE,
        status="failed",
    )
    frame.show(found, [])
    for is_terminal in (True, False):
        out = io.StringIO()
        colours: Any = "standard" if is_terminal else "auto"
        console = Console(file=out, force_terminal=is_terminal, color_system=colours, width=80, highlight=False)
        console.print(frame)
        printed = out.getvalue()
        assert "\x1b[2J" not in printed
        assert not {"\u202e", "\r"} & set(printed)
        assert "\\x1b[2J\\u202e\\r[red]" in printed
        assert ("\x1b[31m" in printed) is is_terminal


def test_a_pipe_gets_a_line_a_change(capsys: pytest.CaptureFixture[str]) -> None:
    lines = display.Lines()
    running = task("a", "running", started_at=at(1), worker_id="w-1")
    failed = task("a", "failed", started_at=at(1), finished_at=at(3), error={"kind": HOSTILE, "message": "m"})
    lines.show(execution({"a": ()}, running), [running])
    lines.show(execution({"a": ()}, running), [])
    ended = execution({"a": ()}, failed, status="failed", finished_at=at(4), reason="r\nr")
    lines.show(ended, [failed])
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[2] for line in printed[0:1]] == ["execution e  begun"]
    assert printed[1].startswith(f"{at(1)}  a  running  ")
    assert printed[2] == f"{at(3)}  a  failed  2.0 s  attempt 1  \\x1b[2J\\u202e\\r[red]: m"
    assert printed[3] == f"{at(4)}  execution failed  4.0 s  1 of 1 steps ended  r\\nr"
    assert len(printed) == 4


def test_durations_are_said_as_people_say_them() -> None:
    assert [span(seconds) for seconds in (-1, 0.075, 0.9999, 3.24, 59.96, 245, 7_380)] == [
        "0 ms", "75 ms", "1.0 s", "3.2 s", "1 m 00 s", "4 m 05 s", "2 h 03 m",
    ]  # fmt: skip
