"""An input that only a worker's type could refuse: the execution fails as a whole, and its key is free."""

from __future__ import annotations

from base64 import b64decode

import orjson
import pytest

from flowpilot.core import decide as d
from flowpilot.core import lineage
from flowpilot.core.refusals import why_not
from flowpilot.core.state import decode_execution, encode_execution
from flowpilot.engine.starting import holds
from flowpilot_schemas import messages as m
from flowpilot_schemas.definition import StepDefinition, WorkflowDefinition
from flowpilot_schemas.limits import Limits
from flowpilot_schemas.topics import LARGE_MESSAGE
from tests.property.run import T0, Run, chain_of

ORIGIN = m.Origin(topic="patients", topic_id="AAAA", partition=1, offset=5, timestamp=T0 - 40)
WIDE = WorkflowDefinition(
    name="flow",
    version="1",
    steps=(
        StepDefinition(name="a", queue="q", takes_input=True),
        StepDefinition(name="b", queue="q"),
        StepDefinition(name="c", queue="q", depends_on=("b",)),
        StepDefinition(name="below", queue="q", depends_on=("a",)),
        StepDefinition(name="d", queue="q"),
    ),
)


def refused(definition: WorkflowDefinition = WIDE, origin: m.Origin | None = ORIGIN, **how: object) -> Run:
    """A run whose step a refused the input."""
    run = Run(definition, value={"n": "x"}, **how)  # type: ignore[arg-type]
    run.state = run.state._replace(origin=origin.model_dump() if origin else None)
    if "d" in definition.index:
        run.complete("d")
    run.fail("a", "input_invalid", message="the input does not fit: n: Input should be a valid integer")
    return run


def test_a_refused_input_fails_the_execution_at_once() -> None:
    run = refused()
    assert run.told[-6:] == [
        *("StepCompleted", "StepFailed", "StepSkipped", "StepCancelled", "StepCancelled", "ExecutionFailed")
    ]
    assert {name: str(run.step(name).status) for name in WIDE.index} == {
        "a": "failed", "below": "skipped", "b": "cancelled", "c": "cancelled", "d": "completed",
    }  # fmt: skip
    end = run.history[-1]["record"]
    assert (end["reason"], list(end["errors"])) == ("input_invalid", ["a"])
    assert end["detail"] == "the input does not fit: n: Input should be a valid integer"
    assert run.sent("control") == [
        {"v": 1, "type": "execution.cancelled", "execution": run.state.id, "run": run.state.run}
    ]
    assert run.state.due is None


def test_a_refused_input_is_never_tried_again() -> None:
    run = refused(chain_of("a"))
    assert run.told == ["ExecutionStarted", "StepReady", "StepFailed", "ExecutionFailed"]


def test_its_dead_letter_has_the_place_of_the_trigger_record() -> None:
    [letter] = refused().sent("dead_letter")
    assert (letter["reason"], letter["source"], letter["workflow"]) == ("input_invalid", "worker", "flow")
    assert (letter["topic"], letter["partition"], letter["offset"]) == ("patients", 1, 5)
    assert letter["timestamp"] == T0 - 40
    assert orjson.loads(b64decode(letter["value"])) == {"n": "x"}
    assert (letter["size"], letter["truncated"]) == (len(b'{"n":"x"}'), False)
    assert "n: Input should be" in letter["detail"]


def test_without_a_trigger_record_it_has_the_place_of_the_start() -> None:
    run = refused(origin=None)
    [letter] = run.sent("dead_letter")
    assert (letter["topic"], letter["partition"], letter["offset"]) == ("flowpilot.events", 3, run.state.run)
    assert letter["timestamp"] == run.now


def test_the_largest_input_fits_into_its_dead_letter() -> None:
    limit = LARGE_MESSAGE // 4
    limits = Limits(input=limit, step_inputs=limit)
    run = Run(chain_of("a", takes_input=True), value="x" * (limit - 2), limits=limits)
    run.fail("a", "input_invalid", message="é" * 5_000)
    rendered = run.turns[-1].rendered
    assert rendered is not None
    [letter] = [message for message in rendered.messages if message.kind == "dead_letter"]
    assert limit < len(letter.value) < LARGE_MESSAGE


def test_the_key_of_a_refused_input_is_free() -> None:
    run = refused()
    state = decode_execution(encode_execution(run.state))
    assert state == run.state
    assert state.released
    assert not holds(state, run.start)
    assert not holds(state, run.start.model_copy(update={"origin": ORIGIN.model_copy(update={"offset": 6})}))


def test_the_record_of_a_refused_input_begins_nothing_again() -> None:
    run = refused()
    again = run.start.model_copy(update={"origin": ORIGIN})
    assert holds(run.state, again)
    assert d.decide_again(run.state, again).events == []
    # Nor after another record has begun a run.
    other = run.start.model_copy(update={"origin": ORIGIN.model_copy(update={"offset": 6})})
    begun = lineage.inherited(run.state, d.decide_start(WIDE, other, 2, T0, 90)).state
    assert not begun.released
    assert holds(begun, again)
    assert d.decide_again(begun, again).events == []
    # Of a topic that was made again, the same place is another record's.
    anew = run.start.model_copy(update={"origin": ORIGIN.model_copy(update={"topic_id": "BBBB"})})
    assert d.decide_again(begun, anew).events != []


def test_a_forgotten_execution_knows_no_refused_record() -> None:
    run = refused()
    marker = lineage.forget(run.state)
    assert marker.refused_origins == ()
    assert not holds(marker, run.start.model_copy(update={"origin": ORIGIN}))
    assert marker.origin == run.state.origin  # its dead letter may have to be sent again


@pytest.mark.parametrize("from_start", [False, True])
def test_a_refused_input_is_not_retried(from_start: bool) -> None:
    state = refused().state
    asked = m.RetryExecution(execution=state.id, request="r", actor="me", from_start=from_start)
    refusal = why_not(state, asked, m.RULES)
    assert refusal is not None
    assert refusal.reason == "input_invalid"
    assert "its key is free" in refusal.detail


def test_a_retry_whose_input_is_refused_releases_nothing() -> None:
    run = Run(chain_of("a", takes_input=True), value=1, execution=f"{refused().state.id}.1")
    retry = {"execution": refused().state.id, "request": "r", "from_start": True, "shares": [], "input_of": None}
    run.state = run.state._replace(retry=retry)
    run.fail("a", "input_invalid")
    assert (run.state.status, run.state.released) == ("failed", False)
    assert len(run.sent("dead_letter")) == 1


def test_reports_after_the_refusal_are_ignored() -> None:
    run = refused()
    run.send(m.StepCompleted(task_id=run.task("b", attempt=1), output=1))
    run.fail("b", "input_invalid")
    last = run.history[-1]["record"]
    assert (last["type"], last["reason"]) == ("CompletionIgnored", "execution_over")
    assert len(run.sent("dead_letter")) == 1


def test_arguments_that_do_not_fit_fail_the_step_alone() -> None:
    run = Run(WIDE, value=1)
    run.fail("a", "arguments_invalid", retryable=False)
    assert (str(run.state.status), run.state.released) == ("running", False)
