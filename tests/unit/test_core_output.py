"""Which output an execution has."""

from __future__ import annotations

from typing import Any

import pytest

from flowpilot_schemas import messages as m
from flowpilot_schemas.limits import Limits
from tests.property.run import Run, workflow

REPLY = m.ReplyTo(topic="flowpilot.replies", partition=0)


def finish(run: Run, **outputs: Any) -> dict[str, Any]:
    while run.in_flight:
        step = run.in_flight[0]
        run.complete(step, outputs.get(step))
    record: dict[str, Any] = run.history[-1]["record"]
    assert record["type"] == "ExecutionCompleted"
    return record


@pytest.mark.parametrize("output", [{"x": 1}, None, False, 0, "", [], 1.0])
def test_the_step_marked_as_output_wins(output: Any) -> None:
    steps = [{"name": "a", "output": True}, {"name": "b", "depends_on": ["a"]}]
    run = Run(workflow(*steps), reply=REPLY)
    record = finish(run, a=output, b="leaf")
    assert record["output"] == output
    [ended] = run.sent("reply")
    assert (ended["status"], ended["output"]) == ("completed", output)


def test_else_the_only_leaf() -> None:
    steps = [{"name": "a"}, {"name": "b"}, {"name": "c", "depends_on": ["a", "b"]}]
    assert finish(Run(workflow(*steps)), a=1, b=2, c=3)["output"] == 3


def test_else_a_dict_of_the_leaves() -> None:
    steps = [{"name": "a"}, {"name": "b", "depends_on": ["a"]}, {"name": "c", "depends_on": ["a"]}]
    assert finish(Run(workflow(*steps)), a=1, b=None, c={"z": 3})["output"] == {"b": None, "c": {"z": 3}}


@pytest.mark.parametrize("beyond", [0, 1])
def test_leaves_that_are_together_too_large_are_left_out_and_that_is_said(beyond: int) -> None:
    run = Run(workflow({"name": "a"}, {"name": "b"}), limits=Limits(step_inputs=20), reply=REPLY)
    record = finish(run, a="x" * 8, b="y" * (8 + beyond))
    if beyond:
        assert record["output_omitted"] is True
        assert "output" not in record
        assert "output" not in run.sent("reply")[0]
        assert run.sent("reply")[0]["output_omitted"] is True
    else:
        assert record["output"] == {"a": "x" * 8, "b": "y" * 8}
        assert "output_omitted" not in record


def test_the_history_holds_each_output_where_its_step_completed() -> None:
    run = Run(workflow({"name": "a"}, {"name": "b", "depends_on": ["a"], "takes": ["a"]}))
    finish(run, a={"k": [1, 2]}, b=None)
    completed = [r["record"] for r in run.history if r["record"]["type"] == "StepCompleted"]
    assert [(r["step"], r["output"], r["size"]) for r in completed] == [("a", {"k": [1, 2]}, 11), ("b", None, 4)]
