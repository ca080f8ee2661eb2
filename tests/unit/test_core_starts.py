"""Starts: the first, the same again, another under the same id, and one that is refused."""

from __future__ import annotations

import orjson
import pytest

from flowpilot.core import decide as d
from flowpilot.core import lineage
from flowpilot.core.render import render
from flowpilot.core.state import OutboxEntry, decode_execution, encode_execution
from flowpilot_schemas import messages as m
from flowpilot_schemas.history import GENESIS
from flowpilot_schemas.topics import HOUR
from tests.property.run import HOME, T0, Run, Stored, chain_of

ORIGIN = m.Origin(topic="patients", topic_id="AAAA", partition=1, offset=5)


def test_the_first_start_sends_what_depends_on_nothing() -> None:
    run = Run(chain_of("a", "b", takes_input=True), value={"p": 1})
    assert run.told == ["ExecutionStarted", "StepReady"]
    [sent] = run.sent("step")
    assert sent["task_id"] == f"{run.state.id}/7/a/1"
    assert sent["idempotency_key"] == f"{run.state.id}/7/a"
    assert sent["reply"] == {"topic": "flowpilot.events", "partition": 3, "key": run.state.id}
    assert (sent["input"], sent["parents"]) == ({"p": 1}, {})


@pytest.mark.parametrize("over", [False, True])
def test_the_same_again_is_told_with_its_origin_and_changes_nothing(over: bool) -> None:
    run = Run(chain_of("a"), value={"p": 1, "q": 2})
    if over:
        run.complete("a")
    status = run.state.status
    run.again({"q": 2, "p": 1}, ORIGIN)
    assert run.history[-1]["record"]["type"] == "StartDeduplicated"
    assert run.history[-1]["record"]["origin"] == ORIGIN.model_dump()
    assert run.state.status == status


def test_another_input_under_the_same_key_is_a_conflict() -> None:
    run = Run(chain_of("a"), value={"p": 1})
    run.again({"p": 2}, ORIGIN)
    record = run.history[-1]["record"]
    assert record["type"] == "KeyConflict"
    assert record["input_hash"].startswith("sha256:")
    assert record["input_hash"] != run.state.input_hash


def test_the_record_that_started_it_read_twice_says_nothing() -> None:
    run = Run(chain_of("a"))
    run.state = run.state._replace(origin=ORIGIN.model_dump())
    assert run.again(None, ORIGIN) == []
    assert run.again(None, ORIGIN.model_copy(update={"offset": 6})) != []


def test_a_refused_start_is_told_and_a_good_one_begins_a_run_of_its_own() -> None:
    good = Run(chain_of("a"), offset=20)
    start = good.start.model_copy(update={"reply": m.ReplyTo(topic="r", partition=0, key="me")})
    refused = d.refuse_start(start, "unknown_definition", "no definition x is registered", T0, 9)
    assert (refused.state.refused, refused.state.status, refused.state.run) == (True, "failed", 9)
    assert refused.state.forget_at == T0 + HOUR
    assert refused.state.due is None
    assert decode_execution(encode_execution(refused.state)) == refused.state
    entry = OutboxEntry(9, T0, 1, GENESIS, [])
    history, reply = render(None, refused.state, entry, refused.events, Stored(), HOME).messages
    assert orjson.loads(history.value)["detail"] == "no definition x is registered"
    assert orjson.loads(reply.value)["status"] == "refused"
    assert (reply.topic, reply.key) == ("r", "me")
    # The next run counts from 1 again: history is named by (execution, run, seq).
    assert good.state.run == 20
    assert good.history[0]["record"]["seq"] == 1
    assert good.history[0]["prev"] == GENESIS


def test_a_forgotten_execution_keeps_only_what_its_outbox_may_need() -> None:
    run = Run(chain_of("a"), value={"p": 1})
    run.fail("a", retryable=False)
    marker = lineage.forget(run.state)
    assert marker.forgotten
    assert decode_execution(encode_execution(marker)) == marker
    assert (marker.steps, marker.due, marker.forget_at, marker.key) == ((), None, None, None)
    assert (marker.seq, marker.head, marker.run) == (run.state.seq, run.state.head, run.state.run)
