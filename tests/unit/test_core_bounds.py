"""What foreign workers send is bounded before it reaches state, outbox and history."""

from __future__ import annotations

import orjson
import pytest

from flowpilot.core import decide as d
from flowpilot.core.inputs import MAX_DEPTH
from flowpilot.core.state import decode_execution, encode_execution
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import BadRecord, decode, decode_object, encode, parse
from flowpilot_schemas.limits import KIB, MAX_HEARTBEAT_DETAILS, Limits
from flowpilot_schemas.topics import LARGE_MESSAGE
from tests.property.run import Run, chain_of, workflow

ONE_TRY = {"retry": {"max_attempts": 1}}
TWO_TRIES = {"retry": {"max_attempts": 2, "initial_ms": 0}}


@pytest.mark.parametrize("character", ["x", "é", "漢", "😀", "\x01", '"'])
def test_an_error_message_is_cut_in_history_and_more_so_in_the_state(character: str) -> None:
    run = Run(chain_of("a", **TWO_TRIES))
    run.fail("a", message=character * 100_000)
    run.timer()
    run.fail("a", message=character * 100_000)
    for record in run.history:
        assert len(record["raw"]) < 6 * KIB, record["record"]["type"]
    [failed] = [record["record"] for record in run.history if record["record"]["type"] == "StepFailed"]
    assert failed["error"]["message"].startswith(character * 300)
    assert run.step("a").error["message"] == character * 300
    assert all(turn.entry is None or len(encode(turn.entry.events)) < 6 * KIB for turn in run.turns)


def test_an_error_message_within_the_bound_is_told_as_it_is() -> None:
    run = Run(chain_of("a", **ONE_TRY))
    run.fail("a", message="x" * 1_900)
    assert run.history[-2]["record"]["error"] == {"kind": "Boom", "message": "x" * 1_900}


def test_what_a_worker_says_of_itself_is_cut() -> None:
    run = Run(chain_of("a", "b", "c"))
    long = "\x01" * 1_000
    run.send(m.StepStarted(task_id=run.task("a"), worker_id=long, broker_task_id=long, started_at=long))
    run.send(m.StepCompleted(task_id=run.task("a"), worker_id=long, broker_task_id=long, started_at=long))
    run.send(m.StepCompleted(task_id=run.task("a"), worker_id=long))
    run.send(
        m.StepFailed(
            task_id=run.task("b"),
            error=m.StepError(kind="E"),
            worker_id=long,
            broker_task_id=long,
            started_at=long,
        )
    )
    assert max(len(record["raw"]) for record in run.history) < 5 * KIB


def test_only_the_first_twenty_failed_steps_keep_their_error() -> None:
    steps = [{"name": f"s{i}", **ONE_TRY} for i in range(50)]
    run = Run(workflow(*steps))
    for i in reversed(range(50)):
        run.fail(f"s{i}", message=f"wrong {i}")
    assert run.state.status == "failed"
    kept = {name: step.error for name, step in zip(run.statuses, run.state.steps, strict=True) if step.error}
    assert sorted(kept) == sorted(f"s{i}" for i in range(30, 50))
    errors = run.history[-1]["record"]["errors"]
    assert errors.pop("…") == {"kind": "more", "message": "30 more steps failed"}
    assert errors == kept


@pytest.mark.parametrize("by", ["answers", "one timer"])
def test_a_wide_failure_keeps_the_state_small(by: str) -> None:
    steps = [{"name": f"s{i}", "start_to_close_ms": 1_000, **ONE_TRY} for i in range(2_000)]
    run = Run(workflow(*steps))
    if by == "answers":
        for i in range(2_000):
            run.fail(f"s{i}", message="\x01" * 10_000)
    else:
        for i in range(2_000):
            run.started(f"s{i}")
        run.timer()
    assert run.state.status == "failed"
    assert len(encode_execution(run.state)) < 150 * KIB


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_details_of_a_heartbeat_are_taken_up_to_their_limit(beyond: int) -> None:
    run = Run(chain_of("a"))
    run.started("a")
    run.heartbeat("a", "first")
    before = run.step("a").heartbeat_deadline
    run.heartbeat("a", "x" * (MAX_HEARTBEAT_DETAILS - 2 + beyond), after=5)
    kept = run.step("a").heartbeat
    assert kept == "first" if beyond > 0 else len(encode(kept)) == MAX_HEARTBEAT_DETAILS + beyond
    assert before is not None
    assert run.step("a").heartbeat_deadline == before + 5  # it is alive, whatever it says


def test_the_details_of_all_heartbeats_of_a_wide_workflow_fit_the_state() -> None:
    steps = [{"name": f"s{i}"} for i in range(4_000)]
    run = Run(workflow(*steps))
    share = 4 * 1024 * KIB // 4_000
    for i in range(4_000):
        run.heartbeat(f"s{i}", "x" * (share - 2))
        run.heartbeat(f"s{i}", "y" * (share - 1))
    assert all(step.heartbeat == "x" * (share - 2) for step in run.state.steps)
    assert len(encode_execution(run.state)) < LARGE_MESSAGE // 2


@pytest.mark.parametrize("levels", [MAX_DEPTH, MAX_DEPTH + 1, 198])
def test_an_output_that_no_worker_could_read_fails_its_step(levels: int) -> None:
    run = Run(chain_of("a", "b"))
    answer = b'{"v":1,"type":"step.completed","task_id":"%s","output":%s}'
    value = answer % (run.task("a").encode(), b"[" * levels + b"]" * levels)
    run.send(parse(m.StepCompleted, decode_object(value)))
    for message in run.outgoing:
        decode(message.value)
    if levels <= MAX_DEPTH:
        assert run.in_flight == ["b"]
    else:
        assert run.statuses == {"a": "failed", "b": "skipped"}
        assert run.step("a").error == {
            "kind": "result_not_serialisable",
            "message": f"the result is nested deeper than {MAX_DEPTH} levels",
        }


def test_deep_values_do_pass_the_parser_so_the_limit_is_needed() -> None:
    decode(b"[" * 199 + b"]" * 199)
    with pytest.raises(BadRecord):
        decode(b"[" * 205 + b"]" * 205)


def test_a_defect_is_told_even_if_its_text_is_not_unicode() -> None:
    run = Run(chain_of("a"))
    run.fault("\ud800 bad" + "x" * 10_000)
    [told] = [record["record"] for record in run.history if record["record"]["type"] == "ExecutionIncident"]
    assert told["detail"].startswith("? bad")
    assert len(told["detail"]) == 300


def test_a_state_with_every_odd_value_survives_its_encoding() -> None:
    run = Run(chain_of("a", "b"), limits=Limits(result=1, input=2, step_inputs=3))
    run.started("a")
    odd: tuple[object, ...] = (0, False, "", [], {}, 1.0, -0.0, 2**63 - 1, -(2**63), "\x00\u2028😀", {"k": [None]})
    for details in odd:
        run.heartbeat("a", details)
        state = run.state._replace(deadline=0, forget_at=0, src=0, run=0)
        data = encode_execution(state)
        assert decode_execution(data) == state
        assert encode_execution(decode_execution(data)) == data
        assert orjson.dumps(run.step("a").heartbeat) == orjson.dumps(decode_execution(data).steps[0].heartbeat)


@pytest.mark.parametrize("attempt", ["0", "-1", "1.0", "1e3", "٣", "9999999999", "x", ""])
def test_a_task_id_with_an_absurd_attempt_changes_nothing(attempt: str) -> None:
    run = Run(chain_of("a"))
    before = run.state
    task = f"{run.state.id}/{run.state.run}/a/{attempt}"
    assert run.send(m.StepCompleted(task_id=task)) == []
    assert run.state._replace(src=0) == before._replace(src=0)


@pytest.mark.parametrize("after", ["-1", "2592000001", "1.5", '"30s"', "1e400"])
def test_an_absurd_retry_after_is_refused_where_it_is_read(after: str) -> None:
    error = f'{{"kind": "E", "retry_after_ms": {after}}}'
    record = f'{{"v":1,"type":"step.failed","task_id":"t","error":{error}}}'.encode()
    with pytest.raises(BadRecord):
        parse(m.StepFailed, decode_object(record))


def test_an_execution_that_did_not_begin_takes_no_answer() -> None:
    run = Run(chain_of("a"))
    pending = d.opened(run.start, 7)
    for message in (m.StepCompleted(task_id=run.task("a")), m.TimerFired(execution=run.state.id, run=7)):
        decision = d.decide(run.definition, pending, message, run.now)
        assert decision.state._replace(ignored=()) == pending
