"""When a failed attempt is tried again, and when not."""

from __future__ import annotations

import pytest

from flowpilot.core.events import CompletionIgnored
from flowpilot.core.retry import JITTER, backoff_ms, delay_ms, may_retry
from flowpilot_schemas.definition import RetryPolicy
from flowpilot_schemas.messages import StepCompleted, StepError, StepFailed, StepHeartbeat, StepStarted
from tests.property.run import T0, Run, chain_of

MINUTE = 60_000


def test_the_back_off_doubles_up_to_its_cap_and_is_only_ever_shortened() -> None:
    policy = RetryPolicy(max_attempts=20, initial_ms=1_000, backoff=2.0, max_interval_ms=MINUTE)
    for attempt in range(1, 20):
        wanted = min(1_000 * 2 ** (attempt - 1), MINUTE)
        for task in range(50):
            assert wanted * (1 - JITTER) - 1 <= backoff_ms(policy, attempt, f"t/{task}") <= wanted


def test_the_jitter_spreads_tasks_and_is_the_same_on_every_replay() -> None:
    policy = RetryPolicy(initial_ms=100_000, max_interval_ms=1_000_000)
    delays = [backoff_ms(policy, 1, f"t/{task}") for task in range(1_000)]
    assert delays == [backoff_ms(policy, 1, f"t/{task}") for task in range(1_000)]
    assert len(set(delays)) > 900
    assert min(delays) < 82_000
    assert max(delays) > 98_000


def test_the_formula_does_not_change_unseen() -> None:
    # A release that computes another delay folds the same log to another state: that needs new rules.
    policy = RetryPolicy(max_attempts=9, initial_ms=1_000, backoff=2.0, max_interval_ms=MINUTE)
    assert [backoff_ms(policy, attempt, "e/7/a/1") for attempt in (1, 2, 3, 7, 8)] == [
        803,
        1605,
        3210,
        48153,
        48153,
    ]


@pytest.mark.parametrize(
    ("initial", "backoff", "cap", "expected"),
    [(1, 100.0, MINUTE, MINUTE), (30 * 86_400_000, 100.0, 30 * 86_400_000, 30 * 86_400_000), (0, 100.0, MINUTE, 0)],
)
def test_a_back_off_beyond_every_float_is_the_cap_and_none_stays_none(
    initial: int, backoff: float, cap: int, expected: int
) -> None:
    policy = RetryPolicy(max_attempts=1_000, initial_ms=initial, backoff=backoff, max_interval_ms=cap)
    for attempt in (155, 156, 160, 1_000):
        assert expected * (1 - JITTER) - 1 <= backoff_ms(policy, attempt, "t") <= expected


def test_retry_after_goes_before_the_formula() -> None:
    policy = RetryPolicy(initial_ms=1_000, max_interval_ms=2_000)
    assert delay_ms(policy, StepError(kind="E", retry_after_ms=5_000_000), 1, "t") == 5_000_000
    assert delay_ms(policy, StepError(kind="E", retry_after_ms=0), 1, "t") == 0
    assert delay_ms(policy, StepError(kind="E"), 1, "t") == backoff_ms(policy, 1, "t")


def test_who_may_try_again() -> None:
    policy = RetryPolicy(max_attempts=3, non_retryable=("Fatal",))
    assert may_retry(policy, StepError(kind="E"), 1)
    assert may_retry(policy, StepError(kind="E"), 2)
    assert not may_retry(policy, StepError(kind="E"), 3)
    assert not may_retry(policy, StepError(kind="E", retryable=False), 1)
    assert not may_retry(policy, StepError(kind="Fatal"), 1)


def test_a_step_is_tried_as_often_as_its_policy_says() -> None:
    run = Run(chain_of("a", retry={"max_attempts": 3, "initial_ms": 1_000}))
    run.fail("a")
    assert run.statuses == {"a": "retrying"}
    first = run.step("a").deadline
    assert first is not None
    assert 800 <= first - T0 <= 1_000
    run.timer()
    run.fail("a", retry_after_ms=30_000)
    assert run.step("a").deadline == run.now + 30_000
    run.timer()
    run.fail("a")
    assert run.told == [
        "ExecutionStarted",
        "StepReady",
        *("StepRetryScheduled", "StepReady") * 2,
        "StepFailed",
        "ExecutionFailed",
    ]
    assert [sent["attempt"] for sent in run.sent("step")] == [1, 2, 3]
    assert len({sent["idempotency_key"] for sent in run.sent("step")}) == 1


@pytest.mark.parametrize("error", [{"retryable": False}, {"kind": "Fatal"}])
def test_an_error_that_says_no_is_not_tried_again(error: dict[str, object]) -> None:
    run = Run(chain_of("a", retry={"non_retryable": ["Fatal"]}))
    run.fail("a", **error)  # type: ignore[arg-type]
    assert run.told[-2:] == ["StepFailed", "ExecutionFailed"]


@pytest.mark.parametrize("started", [False, True])
def test_a_late_answer_of_an_earlier_attempt_does_not_count_for_the_next(started: bool) -> None:
    run = Run(chain_of("a"))
    run.send(StepFailed(task_id=run.task("a", 1), error=StepError(kind="Boom")))
    run.timer()
    if started:
        run.send(StepStarted(task_id=run.task("a", 2)))
    before = run.state
    error = StepError(kind="Fatal", retryable=False)
    [ignored] = run.send(StepCompleted(task_id=run.task("a", 1)))
    assert isinstance(ignored, CompletionIgnored)
    assert (ignored.attempt, ignored.reason) == (1, "stale_attempt")
    assert run.send(StepFailed(task_id=run.task("a", 1), error=error)) == []
    assert run.send(StepHeartbeat(task_id=run.task("a", 1))) == []
    assert run.state._replace(seq=0, head=b"", src=0, ignored=()) == before._replace(seq=0, head=b"", src=0)
