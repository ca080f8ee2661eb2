"""The limits of results and of a step's inputs: at the limit −1, 0, +1 and ×10."""

from __future__ import annotations

import pytest

from flowpilot_schemas.codec import encode
from flowpilot_schemas.limits import Limits
from tests.property.run import Run, chain_of, workflow

LIMIT = 1_000
SIZES = [LIMIT - 1, LIMIT, LIMIT + 1, LIMIT * 10]


def text(size: int) -> str:
    """A value whose JSON has `size` bytes."""
    value = "x" * (size - 2)
    assert len(encode(value)) == size
    return value


@pytest.mark.parametrize("size", SIZES)
def test_a_result_beyond_the_limit_fails_the_attempt_for_good(size: int) -> None:
    run = Run(chain_of("a", "b"), limits=Limits(result=LIMIT))
    run.complete("a", text(size))
    if size <= LIMIT:
        assert run.in_flight == ["b"]
        assert run.step("a").size == size
        assert run.sent("step")[-1]["parents"] == {"a": text(size)}
    else:
        assert run.statuses == {"a": "failed", "b": "skipped"}
        assert run.step("a").error == {
            "kind": "result_too_large",
            "message": f"the result has {size} bytes; the limit (FLOWPILOT_RESULT_LIMIT) is {LIMIT}",
        }
        assert run.stored.outputs == {}
    assert run.sent("step")[0]["result_limit"] == LIMIT


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("made_of", ["outputs", "input", "args", "all"])
def test_inputs_beyond_the_limit_fail_the_step_before_it_is_sent(size: int, made_of: str) -> None:
    parts = {"outputs": (size - 500, 500, 0, 0), "input": (0, 0, size, 0), "args": (0, 0, 0, size)}
    left, right, value, args = parts.get(made_of, (size - 600, 200, 200, 200))
    steps = [
        {"name": "left"},
        {"name": "right"},
        {"name": "other"},
        {
            "name": "join",
            "depends_on": ["left", "right", "other"],
            "takes": ["left", "right"] if left else [],
            "takes_input": bool(value),
            "args": {"k": text(args - 6)} if args else None,
        },
        {"name": "after", "depends_on": ["join"]},
    ]
    limits = Limits(result=LIMIT * 10, step_inputs=LIMIT)
    run = Run(workflow(*steps), value=text(value) if value else None, limits=limits)
    run.complete("other", text(LIMIT * 2))  # not taken: does not count
    run.complete("left", text(left or 2))
    run.complete("right", text(right or 2))
    if size <= LIMIT:
        assert run.in_flight == ["join"]
    else:
        assert run.state.status == "failed"
        assert (run.statuses["join"], run.statuses["after"]) == ("failed", "skipped")
        assert run.step("join").attempt == 0
        assert run.step("join").error == {
            "kind": "input_too_large",
            "message": f"the step's inputs have {size} bytes; the limit (FLOWPILOT_STEP_INPUTS_LIMIT) is {LIMIT}",
        }
        assert "join" not in {sent["step"] for sent in run.sent("step")}


def test_a_first_step_that_is_given_too_much_ends_the_execution_at_once() -> None:
    run = Run(chain_of("a", "b", takes_input=True), value=text(20), limits=Limits(step_inputs=19))
    assert run.told == ["ExecutionStarted", "StepFailed", "StepSkipped", "ExecutionFailed"]
    assert run.sent("step") == []


def test_a_message_that_no_broker_takes_fails_its_step() -> None:
    run = Run(chain_of("a", "b"))
    run.fail("a", "dispatch_failed", message="MSG_SIZE_TOO_LARGE")
    assert run.told[-4:] == ["DispatchFailed", "StepFailed", "StepSkipped", "ExecutionFailed"]
