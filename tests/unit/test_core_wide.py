"""A workflow of 1,000 steps: what one event costs grows with what it changes, not with its square."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from flowpilot.core.state import encode_execution
from flowpilot_schemas.topics import LARGE_MESSAGE
from tests.property.run import Run, workflow


def fan(width: int, **of_each: Any) -> Run:
    """root → `width` steps → join."""
    middle = [f"s{i}" for i in range(width)]
    steps = [{"name": "root"}, *[{"name": name, "depends_on": ["root"], **of_each} for name in middle]]
    return Run(workflow(*steps, {"name": "join", "depends_on": middle, "takes": middle}))


def operations(action: Any) -> int:
    """How many bytecode operations of the core `action` takes, loops included."""
    count = 0

    def seen(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if "/core/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return seen

    before = sys.gettrace()
    sys.settrace(seen)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def test_a_thousand_steps_run_to_the_end() -> None:
    run = fan(1_000)
    run.complete("root")
    assert len(run.in_flight) == 1_000
    for i in range(1_000):
        run.complete(f"s{i}", i)
    assert run.in_flight == ["join"]
    assert run.sent("step")[-1]["parents"] == {f"s{i}": i for i in range(1_000)}
    run.complete("join")
    assert run.state.status == "completed"
    assert len(encode_execution(run.state)) < 1_000  # a completed execution is only remembered


def test_one_answer_costs_the_same_in_a_wide_workflow() -> None:
    costs = {}
    for width in (10, 1_000):
        run = fan(width)
        run.complete("root")
        costs[width] = operations(lambda run=run: run.complete("s3"))
    assert 0 < costs[1_000] <= costs[10] * 1.1


@pytest.mark.parametrize("what", ["fan out", "cancel", "time out all", "fail all at once"])
def test_an_event_that_changes_all_steps_costs_in_proportion(what: str) -> None:
    costs = {}
    for width in (100, 1_000):
        run = fan(width, retry={"max_attempts": 1}, schedule_to_start_ms=5_000)
        actions = {
            "fan out": lambda run=run: run.complete("root"),
            "cancel": lambda run=run: run.cancel(),
            "time out all": lambda run=run: run.timer(after=5_000),
            "fail all at once": lambda run=run: run.fail("root", retryable=False),
        }
        if what in ("cancel", "time out all"):
            run.complete("root")
        costs[width] = operations(actions[what])
    assert 0 < costs[1_000] < 12 * costs[100]


def test_the_state_of_the_widest_workflow_fits_a_record() -> None:
    steps = [{"name": "s" * 90 + str(i), "queue": "q" * 100} for i in range(10_000)]
    run = Run(workflow(*steps))
    [started] = run.turns
    assert started.entry is not None
    assert len(encode_execution(run.state._replace(outbox=(started.entry,)))) < LARGE_MESSAGE // 2
    assert len(encode_execution(run.state)) < 400_000
