"""A step that its reader does not serve: where and when it is sent again, and what ends the wait."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowpilot.core import events as e
from flowpilot.core.dispatch import delay_ms, next_partition
from flowpilot.core.render import render
from flowpilot.core.state import decode_execution, encode_execution
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import parse
from flowpilot_schemas.history import from_iso
from flowpilot_schemas.limits import MAX_PARTITIONS
from flowpilot_schemas.topics import DAY
from tests.property.run import HOME, T0, Run, chain_of

QUEUE_TOPIC = "flowpilot.steps.q"


def refuse(run: Run, *, after: int = 5, step: str = "a", **fields: Any) -> list[e.CoreEvent]:
    """A worker that reads the partition of the last dispatch reports that it does not serve the step."""
    sent = [message for message in run.outgoing if message.kind == "step"][-1]
    place = sent.partition if sent.partition is not None else 4
    return run.send(report(run, step, place=f"{QUEUE_TOPIC}/{place}/17", **fields), after=after)


def report(run: Run, step: str = "a", *, place: str | None = None, **fields: Any) -> m.StepFailed:
    value: dict[str, Any] = {
        "task_id": run.task(step),
        "error": {"kind": m.NOT_SERVED, "message": "not here"},
        "worker_id": "w",
        "broker_task_id": place,
        "dispatch": run.step(step).dispatch,
        "partitions": 12,
        **fields,
    }
    return parse(m.StepFailed, {name: field for name, field in value.items() if field is not None})


def partitions_of(run: Run) -> list[int | None]:
    return [message.partition for message in run.outgoing if message.kind == "step"]


def test_each_partition_is_tried_once_100_ms_apart() -> None:
    run = Run(chain_of("a"))
    for _ in range(11):
        refuse(run)
        assert run.state.due == run.now + 100
        run.timer()
    assert partitions_of(run) == [None, *range(5, 12), *range(4)]
    assert {sent["task_id"] for sent in run.sent("step")} == {run.task("a", 1)}
    assert [sent["dispatch"] for sent in run.sent("step")] == [*range(1, 13)]
    assert run.statuses == {"a": "ready"}


def test_delay_then_doubles_up_to_five_seconds() -> None:
    run, delays = Run(chain_of("a")), []
    for _ in range(20):
        refuse(run)
        delays.append((run.state.due or 0) - run.now)
        run.timer()
    assert delays[11:] == [200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000, 5_000]
    assert partitions_of(run)[-9:] == [*range(4, 12), 0]  # round robin


def test_history_has_the_first_report_of_an_attempt_only() -> None:
    run = Run(chain_of("a", "b", retry={"max_attempts": 2, "initial_ms": 0}))
    for _ in range(30):
        refuse(run)
        run.timer()
    assert run.told == ["ExecutionStarted", "StepReady", "StepNotServed"]
    told = run.history[-1]["record"]
    assert (told["step"], told["attempt"], told["detail"], told["worker_id"]) == ("a", 1, "not here", "w")
    assert told["broker_task_id"] == f"{QUEUE_TOPIC}/4/17"
    run.fail("a")
    run.timer()
    assert run.step("a").dispatch == 1
    refuse(run)
    assert run.told[-3:] == ["StepRetryScheduled", "StepReady", "StepNotServed"]
    run.timer()
    run.complete("a")
    assert run.statuses == {"a": "completed", "b": "ready"}


def test_schedule_to_start_runs_from_the_first_dispatch() -> None:
    limit = 120_000
    run = Run(chain_of("a", schedule_to_start_ms=limit, retry={"max_attempts": 5}))
    while not run.is_over:
        refuse(run)
        run.timer()
    assert T0 + limit <= run.now <= T0 + limit + 6_000
    assert {from_iso(sent["not_after"]) for sent in run.sent("step")} == {T0 + limit}
    assert run.told[-3:] == ["StepTimedOut", "StepFailed", "ExecutionFailed"]
    assert run.step("a").error["kind"] == "timed_out"
    assert "serves this version" in run.step("a").error["message"]
    assert {sent["attempt"] for sent in run.sent("step")} == {1}


def test_a_wait_that_is_only_recorded_goes_on() -> None:
    run = Run(chain_of("a", schedule_to_start_ms=5_000, on_schedule_to_start="record"))
    for _ in range(40):
        refuse(run)
        run.timer()
    assert run.told.count("StepTimedOut") == 1
    assert run.statuses == {"a": "ready"}
    assert from_iso(run.sent("step")[-1]["not_after"]) > run.now + 6 * DAY
    run.complete("a")
    assert run.is_over


def test_a_wait_that_counts_as_an_attempt_begins_anew() -> None:
    run = Run(
        chain_of(
            "a",
            schedule_to_start_ms=5_000,
            on_schedule_to_start="retry",
            retry={"max_attempts": 2, "initial_ms": 0},
        )
    )
    while not run.is_over:
        if run.step("a").status == "ready" and run.step("a").resend_at is None:
            refuse(run, after=0)
        run.timer()
    assert run.now - T0 == 10_000
    assert run.told.count("StepNotServed") == 2


@pytest.mark.parametrize("numbered", [True, False])
def test_stale_report_does_not_begin_a_second_chain(numbered: bool) -> None:
    run = Run(chain_of("a"))
    number = {} if numbered else {"dispatch": None}
    first = report(run, place=f"{QUEUE_TOPIC}/4/17", **number)
    run.send(first)
    assert run.send(first) == []  # a duplicate, while the next dispatch waits
    run.timer()
    sent = len(run.sent("step"))
    assert run.send(first) == []  # a replay, when it was sent
    assert run.state.due == T0 + DAY
    assert len(run.sent("step")) == sent == 2
    refuse(run, **number)
    assert run.state.due == run.now + 100


def test_report_on_a_step_that_runs_or_is_over_changes_nothing() -> None:
    run = Run(chain_of("a", "b"))
    early = report(run, place=f"{QUEUE_TOPIC}/4/17")
    run.started("a")
    assert run.send(early) == []
    run.complete("a")
    assert run.send(early) == []
    assert run.send(report(run, "b", dispatch=7)) == []  # a dispatch that never was
    assert run.statuses == {"a": "completed", "b": "ready"}
    run.cancel()
    assert run.send(early) == []
    assert "CompletionIgnored" not in run.told


def test_a_waiting_step_takes_what_another_worker_did() -> None:
    """The refused record was delivered twice, and the other reader serves it."""
    run = Run(chain_of("a", "b"))
    refuse(run)
    run.complete("a")
    assert run.statuses == {"a": "completed", "b": "ready"}
    refuse(run, step="b")
    run.started("b")
    assert run.step("b").resend_at is None
    assert run.timer(after=500) == []
    assert len(run.sent("step")) == 2


def test_cancel_ends_the_wait() -> None:
    run = Run(chain_of("a"))
    refuse(run)
    run.cancel()
    assert run.state.due is None
    assert run.send(m.TimerFired(execution=run.state.id, run=run.state.run), after=200) == []


def test_heartbeat_details_travel_with_each_dispatch() -> None:
    run = Run(chain_of("a", retry={"initial_ms": 0}))
    run.heartbeat("a", {"done": 3})
    run.fail("a")
    run.timer()
    refuse(run)
    run.timer()
    assert [sent.get("last_heartbeat") for sent in run.sent("step")] == [None, {"done": 3}, {"done": 3}]


def test_a_dispatch_renders_to_the_same_bytes_later() -> None:
    run = Run(chain_of("a", "b"))
    refuse(run)
    run.timer()
    turn = run.turns[-1]
    assert turn.entry is not None
    assert turn.rendered is not None
    refuse(run)
    run.timer()
    run.complete("a")
    events = [e.unpack(packed) for packed in turn.entry.events]
    later = decode_execution(encode_execution(run.state._replace(outbox=(turn.entry,))))
    again = render(run.definition, later, later.outbox[0], events, run.stored, HOME)
    assert again == turn.rendered
    assert [message.kind for message in again.messages] == ["step"]
    assert again.seq == turn.before.seq


def test_a_state_of_before_this_rule_is_read() -> None:
    run = Run(chain_of("a"))
    assert encode_execution(run.state).count(b"null") == 0
    refuse(run)
    assert decode_execution(encode_execution(run.state)) == run.state


HOSTILE = st.one_of(
    st.none(), st.booleans(), st.floats(allow_nan=False), st.text(max_size=9), st.integers(), st.just(10**9)
)


@settings(max_examples=300)
@given(
    place=st.one_of(
        st.none(),
        st.text(max_size=40),
        st.builds(lambda p: f"{QUEUE_TOPIC}/{p}/0", HOSTILE),
        st.just("other.steps.x/3/0"),
    ),
    partitions=st.one_of(HOSTILE, st.integers(1, 20)),
)
def test_hostile_report_only_sends_its_own_step_again(place: str | None, partitions: Any) -> None:
    run = Run(chain_of("a"))
    run.send(report(run, place=place, partitions=partitions))
    assert run.state.due is not None
    assert 100 <= run.state.due - run.now <= 5_000
    run.timer()
    [_, partition] = partitions_of(run)
    assert partition is None or 0 <= partition < MAX_PARTITIONS
    assert len(run.sent("step")) == 2
    if place is None or not place.startswith(QUEUE_TOPIC):
        assert partition is None


@given(partition=st.integers(0, 10**9), partitions=st.integers(1, MAX_PARTITIONS))
def test_the_next_partition_is_another_where_there_is_one(partition: int, partitions: int) -> None:
    following = next_partition(partition, partitions)
    if partition >= partitions:
        assert following is None
    else:
        assert following is not None
        assert 0 <= following < partitions
        assert (following != partition) == (partitions > 1)


@given(st.integers(1, 10**6), st.integers(1, MAX_PARTITIONS))
def test_a_delay_is_within_its_bounds(dispatch: int, partitions: int) -> None:
    delay = delay_ms(dispatch, partitions)
    assert 100 <= delay <= 5_000
    assert (delay == 100) == (dispatch < partitions)
