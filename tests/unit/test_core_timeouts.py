"""The time-outs: what each of them does, and that a timer alone decides nothing."""

from __future__ import annotations

import pytest

from flowpilot_schemas import messages as m
from tests.property.run import T0, Run, chain_of, workflow

TRIES = {"retry": {"max_attempts": 2, "initial_ms": 0}}


def told_of_timeouts(run: Run) -> list[tuple[str, str]]:
    records = [record["record"] for record in run.history]
    return [(r["timeout"], r["outcome"]) for r in records if r["type"] == "StepTimedOut"]


def test_schedule_to_start_fails_the_step_unless_told_otherwise() -> None:
    run = Run(chain_of("a", "b", schedule_to_start_ms=5_000, **TRIES))
    assert run.state.due == T0 + 5_000
    assert run.timer(after=4_999) == []
    run.timer(after=1)
    assert told_of_timeouts(run) == [("schedule_to_start", "fail")]
    assert run.statuses == {"a": "failed", "b": "skipped"}
    assert run.step("a").error["kind"] == "timed_out"
    assert "'q'" in run.step("a").error["message"]


def test_schedule_to_start_may_count_as_an_attempt() -> None:
    run = Run(chain_of("a", schedule_to_start_ms=5_000, on_schedule_to_start="retry", **TRIES))
    run.timer()
    assert run.statuses == {"a": "retrying"}
    run.timer()
    assert run.step("a").attempt == 2
    run.timer()
    assert told_of_timeouts(run) == [("schedule_to_start", "retry"), ("schedule_to_start", "fail")]
    assert run.state.status == "failed"


def test_schedule_to_start_may_only_be_recorded_once() -> None:
    run = Run(chain_of("a", schedule_to_start_ms=5_000, on_schedule_to_start="record", **TRIES))
    run.timer()
    assert told_of_timeouts(run) == [("schedule_to_start", "record")]
    assert run.statuses == {"a": "ready"}
    assert run.state.due is None
    run.complete("a", after=86_400_000)
    assert run.state.status == "completed"


def test_a_step_that_was_started_has_its_own_deadlines() -> None:
    steps = {"schedule_to_start_ms": 5_000, "start_to_close_ms": 20_000, "heartbeat_ms": 8_000}
    run = Run(chain_of("a", **steps, **TRIES))
    run.started("a", after=1_000)
    assert run.step("a").deadline == T0 + 21_000
    assert run.step("a").heartbeat_deadline == T0 + 9_000
    assert run.timer(after=6_000) == []  # that of schedule_to_start is over
    run.heartbeat("a", after=1_000)
    assert run.step("a").heartbeat_deadline == T0 + 16_000
    assert run.step("a").deadline == T0 + 21_000


def test_a_lost_heartbeat_is_an_attempt_and_tells_the_worker() -> None:
    run = Run(chain_of("a", heartbeat_ms=8_000, start_to_close_ms=60_000, **TRIES))
    run.heartbeat("a", {"done": 3})
    run.timer()
    assert told_of_timeouts(run) == [("heartbeat", "retry")]
    assert run.sent("control") == [{"v": 1, "type": "attempt.superseded", "task_id": run.task("a", 1)}]
    run.timer()
    assert run.sent("step")[-1]["last_heartbeat"] == {"done": 3}
    run.started("a")
    run.timer()
    assert told_of_timeouts(run) == [("heartbeat", "retry"), ("heartbeat", "fail")]
    assert run.state.status == "failed"


def test_start_to_close_ends_an_attempt_that_is_alive() -> None:
    run = Run(chain_of("a", heartbeat_ms=8_000, start_to_close_ms=10_000, **TRIES))
    run.started("a")
    run.heartbeat("a", after=7_000)
    assert run.state.due == T0 + 10_000
    run.timer()
    assert told_of_timeouts(run) == [("start_to_close", "retry")]


@pytest.mark.parametrize(("close", "expected"), [(7_000, "start_to_close"), (9_000, "heartbeat")])
def test_of_two_deadlines_that_passed_the_earlier_is_told(close: int, expected: str) -> None:
    run = Run(chain_of("a", heartbeat_ms=8_000, start_to_close_ms=close, **TRIES))
    run.started("a")
    run.timer(after=3_600_000)
    assert told_of_timeouts(run) == [(expected, "retry")]


@pytest.mark.parametrize("started", [False, True])
def test_a_worker_that_enforces_the_time_out_itself_says_so(started: bool) -> None:
    run = Run(chain_of("a", **TRIES))
    if started:
        run.started("a")
    run.fail("a", "timed_out", message="not closed within 10 s")
    assert told_of_timeouts(run) == [("start_to_close", "retry")]
    run.timer()
    run.fail("a", "timed_out")
    assert told_of_timeouts(run)[-1] == ("start_to_close", "fail")


def test_the_workflows_time_out_ends_everything() -> None:
    reply = m.ReplyTo(topic="flowpilot.replies", partition=2)
    steps = [{"name": "a"}, {"name": "b", "retry": {"initial_ms": 9_000}}, {"name": "c", "depends_on": ["a"]}]
    run = Run(workflow(*steps, {"name": "d", "retry": {"max_attempts": 1}}, timeout_ms=3_000), reply=reply)
    run.started("a")
    run.fail("b", message="oh")
    run.fail("d", message="no")
    assert run.state.due == T0 + 3_000
    assert run.timer(after=2_999) == []
    run.timer(after=1)
    assert run.statuses == {"a": "cancelled", "b": "cancelled", "c": "cancelled", "d": "failed"}
    assert run.history[-1]["record"]["reason"] == "timed_out"
    assert run.history[-1]["record"]["errors"] == {"d": {"kind": "Boom", "message": "no"}}
    assert [message["type"] for message in run.sent("control")] == ["execution.cancelled"]
    [ended] = run.sent("reply")
    assert (ended["status"], ended["reason"]) == ("failed", "timed_out")
    assert run.state.due is None


def test_one_timer_serves_every_deadline_that_has_passed() -> None:
    steps = [{"name": name, "schedule_to_start_ms": 1_000 * (i + 1)} for i, name in enumerate("abc")]
    run = Run(workflow(*steps))
    run.timer(after=2_500)
    assert run.statuses == {"a": "failed", "b": "failed", "c": "ready"}
    assert run.timer() != []
    assert run.state.status == "failed"


def test_a_timer_of_another_run_changes_nothing() -> None:
    run = Run(chain_of("a", schedule_to_start_ms=1_000))
    late = m.TimerFired(execution=run.state.id, run=run.state.run + 1)
    assert run.send(late, after=10**9) == []


def test_an_answer_that_comes_before_the_timer_wins_however_late_it_is() -> None:
    run = Run(chain_of("a", schedule_to_start_ms=1_000))
    run.complete("a", after=10**9)
    assert run.state.status == "completed"


def test_what_is_not_sent_after_is_in_the_step_message() -> None:
    run = Run(chain_of("a", schedule_to_start_ms=5_000))
    assert run.sent("step")[0]["not_after"] == "2023-11-14T22:13:25.000Z"


def test_where_a_wait_is_only_recorded_a_worker_may_still_begin_after_it() -> None:
    run = Run(chain_of("a", schedule_to_start_ms=5_000, on_schedule_to_start="record"))
    assert run.sent("step")[0]["not_after"] == "2023-11-21T22:13:20.000Z"
