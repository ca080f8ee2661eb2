"""Cancelling, in every state that an execution can be in."""

from __future__ import annotations

import pytest

from flowpilot_schemas import messages as m
from tests.property.run import Run, workflow

STEPS = [{"name": "a", "retry": {"max_attempts": 2}}, {"name": "b"}, {"name": "c", "depends_on": ["a"]}]


@pytest.mark.parametrize("before", ["ready", "running", "retrying", "completed", "failed"])
def test_every_step_that_is_not_over_is_cancelled(before: str) -> None:
    run = Run(workflow(*STEPS), reply=m.ReplyTo(topic="flowpilot.replies", partition=0))
    match before:
        case "running":
            run.started("a")
        case "retrying":
            run.fail("a")
        case "completed":
            run.complete("a")
        case "failed":
            run.fail("a", retryable=False)
    assert run.statuses["a"] == before
    run.cancel()
    kept = before in ("completed", "failed")
    below = "skipped" if before == "failed" else "cancelled"
    assert run.statuses == {"a": before if kept else "cancelled", "b": "cancelled", "c": below}
    assert run.state.status == "cancelled"
    assert (run.state.open, run.state.due) == (0, None)
    assert run.state.forget_at == run.now + run.definition.retry_window_ms
    last = run.history[-1]["record"]
    assert (last["type"], last["actor"], last["reason"]) == ("ExecutionCancelled", "me", "enough")
    control = {"v": 1, "type": "execution.cancelled", "execution": run.state.id, "run": run.state.run}
    assert run.sent("control") == [control]
    [ended] = run.sent("reply")
    assert (ended["status"], ended["reason"]) == ("cancelled", "enough")


@pytest.mark.parametrize("how", ["completed", "failed", "cancelled"])
def test_a_cancel_after_the_end_is_only_recorded(how: str) -> None:
    run = Run(workflow({"name": "a"}))
    match how:
        case "completed":
            run.complete("a")
        case "failed":
            run.fail("a", retryable=False)
        case "cancelled":
            run.cancel()
    before = run.state
    run.cancel()
    assert run.told[-1] == "CancelIgnored"
    assert run.history[-1]["record"]["reason"] == "the execution is over"
    after = run.state._replace(ignored=before.ignored)
    assert after == before._replace(src=after.src, seq=before.seq + 1, head=after.head)


def test_a_cancel_of_another_run_is_only_recorded() -> None:
    run = Run(workflow({"name": "a"}))
    run.cancel(run=run.state.run + 1)
    assert run.told[-1] == "CancelIgnored"
    assert run.statuses == {"a": "ready"}
    run.cancel(run=run.state.run)
    assert run.state.status == "cancelled"


def test_an_execution_that_stands_still_can_be_cancelled() -> None:
    run = Run(workflow(*STEPS))
    run.fault()
    assert run.state.status == "incident"
    assert run.state.due is None
    run.complete("a")
    assert run.history[-1]["record"]["reason"] == "incident"
    assert run.fault() == []
    run.cancel()
    assert run.state.status == "cancelled"


def test_an_answer_after_the_cancel_is_told_as_late() -> None:
    run = Run(workflow({"name": "a"}))
    run.cancel()
    run.complete("a", {"x": 1})
    late = run.history[-1]["record"]
    assert (late["type"], late["reason"], late["answer"]) == (
        "CompletionIgnored",
        "execution_over",
        "step.completed",
    )
    assert run.stored.outputs == {}
