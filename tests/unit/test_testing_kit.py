"""The test kit: that it runs workflows as production does, and tells what a test got wrong."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from typing import Any
from unittest.mock import AsyncMock, Mock

import jsonschema_rs
import pytest
from pydantic import BaseModel, field_validator

from flowpilot import (
    ExecutionCancelled,
    ExecutionFailed,
    InputInvalid,
    NonRetryable,
    Retry,
    RetryAfter,
    StepContext,
    Workflow,
    on_topic,
)
from flowpilot.testing import (
    BlockingEnvironment,
    Execution,
    HandlerHangs,
    InjectedFailure,
    KitMisused,
    NotFinished,
    WorkflowEnvironment,
)
from flowpilot_schemas.contract import public_messages
from flowpilot_schemas.topics import Topics


class Order(BaseModel):
    n: int


CALLS: list[str] = []
shop = Workflow("shop", version="1", input=Order, triggers=[on_topic("orders", unique_by="n")])


@shop.step
def reserve(input: Order, ctx: StepContext) -> int:
    CALLS.append(ctx.idempotency_key)
    return input.n


@shop.step(timeout="30s", retry=Retry(max_attempts=4, initial="1m"), heartbeat="20s", queue="money")
async def charge(reserve: int) -> int:
    if reserve < 0:
        raise NonRetryable("negative")
    return 2 * reserve


@shop.step
def ship(charge: int) -> str:
    return f"shipped for {charge}"


def types(env: BlockingEnvironment, execution: Execution, step: str | None = None) -> list[str]:
    return [event.type for event in env.history(execution) if step is None or event.step == step]


def run(**options: Any) -> BlockingEnvironment:
    return WorkflowEnvironment.blocking(shop, **options)


def test_a_workflow_runs_to_its_end_in_milliseconds() -> None:
    with run() as env:
        env.start(Order(n=0))  # what is imported and compiled once
    durations = []
    for n in range(20):
        begin = time.perf_counter()
        with run() as env:
            execution = env.start(Order(n=n))
            assert execution.result() == f"shipped for {2 * n}"
            assert [step.status for step in execution.steps.values()] == ["completed"] * 3
        durations.append(time.perf_counter() - begin)
    print(f"fastest {min(durations) * 1_000:.1f} ms, median {sorted(durations)[10] * 1_000:.1f} ms")
    assert min(durations) < 0.05


def test_failures_wait_for_virtual_time() -> None:
    with run() as env:
        begin = env.now
        env.fail("charge", times=2)
        env.fail(charge, error=RetryAfter("3h"))
        execution = env.start(Order(n=1))
        assert execution.status == "running"
        assert execution.steps["charge"] == ("retrying", 1, None, execution.steps["charge"].error)
        assert execution.steps["charge"].error["kind"] == "InjectedFailure"
        assert execution.steps["ship"].status == "pending"
        env.advance("2m")
        assert execution.steps["charge"].attempt == 3
        env.advance("2h59m")
        assert execution.status == "running"
        env.finish()
        assert execution.result() == "shipped for 2"
        assert types(env, execution, "charge") == ["StepReady", "StepRetryScheduled"] * 3 + [
            "StepReady",
            "StepCompleted",
        ]
        assert 3 * 3_600 < (env.now - begin).total_seconds() < 3 * 3_600 + 150


def test_the_last_failure_is_the_cause() -> None:
    with run() as env:
        env.fail("charge", times=None, error=KeyError("no account"))
        execution = env.start(Order(n=1))
        env.finish()
        with pytest.raises(ExecutionFailed, match="charge: KeyError") as failed:
            execution.result()
        assert isinstance(failed.value.__cause__, KeyError)
        assert execution.steps["charge"].attempt == 4
        assert execution.steps["ship"].status == "skipped"
        refused = env.start(Order(n=-1))
        assert refused.status == "running"  # every attempt fails, also of the next execution


def test_a_handlers_own_error_has_its_traceback() -> None:
    with run() as env, pytest.raises(ExecutionFailed) as failed:
        env.start(Order(n=-1)).result()
    cause = failed.value.__cause__
    assert isinstance(cause, NonRetryable)
    assert cause.__traceback__ is not None


@pytest.mark.parametrize(
    ("play", "seconds", "timeout"), [("hang", 30, "start_to_close"), ("lose_worker", 20, "heartbeat")]
)
def test_time_outs(play: str, seconds: int, timeout: str) -> None:
    with run() as env:
        getattr(env, play)("charge")
        execution = env.start(Order(n=1))
        env.advance(f"{seconds - 1}s")
        assert execution.steps["charge"].status == "running"
        env.advance("2s")
        [timed_out] = [event for event in env.history(execution) if event.type == "StepTimedOut"]
        assert timed_out.fields["timeout"] == timeout
        env.finish()
        assert execution.result() == "shipped for 2"
        assert execution.steps["charge"].attempt == 2


def test_a_long_hang_is_kept_alive_by_heartbeats() -> None:
    slow = Workflow("slow", version="1")

    @slow.step(timeout="1d", heartbeat="30s")
    def crawl() -> int:
        return 1

    with WorkflowEnvironment.blocking(slow) as env:
        env.hang(crawl)
        execution = env.start()
        env.advance("23h")
        assert types(env, execution, "crawl") == ["StepReady", "StepStarted"]


def test_a_step_that_is_delivered_twice() -> None:
    CALLS.clear()
    with run() as env:
        env.repeat("reserve")
        execution = env.start(Order(n=1))
        assert execution.result() == "shipped for 2"
        assert len(CALLS) == 2
        assert len(set(CALLS)) == 1
        assert "CompletionIgnored" in types(env, execution)


@pytest.mark.parametrize("during", ["reserve", charge, "ship"])
def test_the_engine_is_lost_at_the_worst_moment(during: Any) -> None:
    CALLS.clear()
    with run() as env:
        expected = env.start(Order(n=2))
        before = len(CALLS)
        env.crash(during=during)
        execution = env.start(Order(n=2))
        assert execution.result() == expected.result()
        assert types(env, execution) == types(env, expected)
        assert len(CALLS) - before == before == 1


def test_a_crash_that_never_came_about_is_told() -> None:
    def test_of_a_user() -> None:
        with run() as env:
            env.fail("charge")
            env.crash(during="ship")
            env.start(Order(n=1))

    with pytest.raises(KitMisused, match=r"env.crash\(during='ship'\) never came about"):
        test_of_a_user()


def test_the_engine_is_lost_again_and_again() -> None:
    with run() as env:
        env.fail("charge", times=3)
        execution = env.start(Order(n=1), key="k")
        for _ in range(10):
            env.crash()
            env.advance("1m")
        assert execution.result() == "shipped for 2"
        assert execution.steps["charge"].attempt == 4


def test_cancel() -> None:
    with run() as env:
        env.hang("charge")
        execution = env.start(Order(n=1))
        env.cancel(execution, "changed my mind")
        assert execution.status == "cancelled"
        with pytest.raises(ExecutionCancelled, match="changed my mind"):
            execution.result()
        env.advance("1h")
        assert types(env, execution)[-1] == "ExecutionCancelled"


class Seats(BaseModel):
    id: str
    seats: int

    @field_validator("seats")
    @classmethod
    def _there_are(cls, seats: int) -> int:
        if seats > 4:
            raise ValueError("there are 4 seats")
        return seats


def test_an_input_that_only_the_type_refuses_frees_its_key() -> None:
    booking = Workflow("booking", version="1", input=Seats, triggers=[on_topic("bookings", unique_by="id")])
    called: list[int] = []

    @booking.step
    def book(input: Seats) -> int:
        called.append(input.seats)
        return input.seats

    with WorkflowEnvironment.blocking(booking) as env:
        [refused] = env.publish("bookings", {"id": "b-1", "seats": 9})
        assert (refused.status, called) == ("failed", [])
        [letter] = env.dead_letters
        assert (letter.reason, letter.topic, letter.offset) == ("input_invalid", "bookings", 0)
        [good] = env.publish("bookings", {"id": "b-1", "seats": "3"})
        assert good.id == refused.id
        assert (good.result(), called) == (3, [3])
        assert "StartDeduplicated" not in types(env, good)


def test_triggers_are_routed_as_the_router_does() -> None:
    with run() as env:
        [execution] = env.publish("orders", {"n": 3}, key="any")
        assert execution.result() == "shipped for 6"
        assert env.publish("orders", Order(n=3)) == [execution]
        assert env.publish("orders", None) == []
        assert env.publish("orders", b"{") == []
        assert env.publish("orders", {"n": "x"}) == []
        assert [letter.reason for letter in env.dead_letters] == ["not_json", "input_invalid"]
        [named] = env.publish("flowpilot.triggers", {"v": 1, "workflow": "shop", "key": "k", "input": {"n": 4}})
        assert named == env.start(Order(n=4), key="k")
        with pytest.raises(
            KitMisused, match=r"no workflow here is triggered by the topic 'order'; these are read: .*orders"
        ):
            env.publish("order", {})


def test_a_key_within_its_window_and_after() -> None:
    with run() as env:
        first = env.start(Order(n=1), key="k")
        assert env.start(Order(n=1), key="k") == first
        assert env.start(Order(n=2), key="k") == first
        assert types(env, first)[-2:] == ["StartDeduplicated", "KeyConflict"]
        env.advance("61m")
        second = env.start(Order(n=2), key="k")
        assert (second.id, second == first) == (first.id, False)
        assert (first.result(), second.result()) == ("shipped for 2", "shipped for 4")


def test_mocks_take_the_handlers_place() -> None:
    with run() as env:
        money = AsyncMock(side_effect=[ConnectionError("busy"), 40])
        env.replace(charge, money)
        env.replace("ship", lambda charge: charge + 2)
        execution = env.start(Order(n=1))
        env.finish()
        assert execution.result() == 42
        assert money.await_args_list[1].kwargs == {"reserve": 1}
        plain = Mock(return_value=7)
        env.replace("reserve", plain)
        env.replace("ship", lambda: "nothing given")
        assert env.start(Order(n=1), key="2").status == "running"  # the mock's third answer: StopAsyncIteration
        assert plain.call_args.kwargs["input"] == Order(n=1)
        with pytest.raises(KitMisused, match="takes 'price', which the step is not given; it is given: charge"):
            env.replace("ship", lambda price: price)


def test_heartbeat_details_reach_the_next_attempt() -> None:
    copying = Workflow("copying", version="1")

    @copying.step
    def copy(ctx: StepContext) -> int:
        done = ctx.last_heartbeat or 0
        ctx.heartbeat(done + 5)
        if done < 5:
            raise ConnectionError
        return int(done)

    with WorkflowEnvironment.blocking(copying) as env:
        execution = env.start()
        env.finish()
        assert execution.result() == 5


def test_several_workflows_and_versions() -> None:
    second = Workflow("shop", version="2")

    @second.step
    def reserve() -> str:
        return "by version 2"

    other = Workflow("other", version="1")

    @other.step
    def ship() -> int:
        return 1

    with WorkflowEnvironment.blocking(shop, second, other) as env:
        assert env.start(workflow="shop").result() == "by version 2"
        assert env.start(Order(n=1), workflow=shop).result() == "shipped for 2"
        env.fail("ship", workflow=other)
        assert env.start(workflow=other).status == "running"
        with pytest.raises(KitMisused, match=r"several workflows; say which: workflow=… \(other, shop\)"):
            env.start()
        with pytest.raises(KitMisused, match="'ship' is more than one step"):
            env.fail("ship")


def test_steps_that_share_a_function_are_given_as_steps() -> None:
    parts = Workflow("parts", version="1")

    def count(n: int) -> int:
        return n

    first, second = (parts.add_step(count, name=f"part-{n}", args={"n": n}) for n in (1, 2))
    with WorkflowEnvironment.blocking(parts) as env:
        env.fail(second, error=NonRetryable("no"))
        execution = env.start()
        assert [step.status for step in execution.steps.values()] == ["completed", "failed"]
        with pytest.raises(KitMisused, match="count is more than one step"):
            env.hang(count)
        env.hang(first)


def test_queues_that_nobody_serves() -> None:
    with run(queues=["shop"]) as env:
        execution = env.start(Order(n=1))
        env.advance("23h")
        assert execution.steps["charge"].status == "ready"
        with pytest.raises(NotFinished, match=r"running \(charge is ready, attempt 1\); let time pass"):
            execution.result()
        env.finish()
        with pytest.raises(ExecutionFailed):
            execution.result()


def test_an_execution_that_will_never_end_is_told() -> None:
    patient = Workflow("patient", version="1")

    @patient.step(on_schedule_to_start="record")
    def wait() -> None: ...

    with WorkflowEnvironment.blocking(patient, queues=[]) as env:
        env.start()
        with pytest.raises(NotFinished, match="will never end: wait is ready, attempt 1, and nothing is due"):
            env.finish()


def test_a_handler_that_hangs_by_the_real_clock_is_told() -> None:
    stuck = Workflow("stuck", version="1")
    release = threading.Event()

    @stuck.step
    def block() -> None:
        release.wait()

    @stuck.step
    async def sleep() -> None:
        await asyncio.sleep(3_600)

    try:
        for place in ("block", "sleep"):
            with WorkflowEnvironment.blocking(stuck, patience=0.05) as env:
                env.replace({"block": "sleep", "sleep": "block"}[place], lambda: None)
                with pytest.raises(HandlerHangs, match=f"step '{place}' has run for 0.05 s of real time; mock"):
                    env.start()
    finally:
        release.set()


def test_misuse_is_told_in_a_sentence() -> None:
    with pytest.raises(KitMisused, match="made of workflows"):
        WorkflowEnvironment()
    with pytest.raises(KitMisused, match="did you mean 'charge'"), run() as env:
        env.fail("chrage")
    with pytest.raises(KitMisused, match="times=0 never happens"), run() as env:
        env.hang("charge", times=0)
    with pytest.raises(InputInvalid), run() as env:
        env.start({"n": "x"})
    with pytest.raises(ValueError, match="is not a duration"), run() as env:
        env.advance("soon")

    async def misused() -> None:
        with pytest.raises(KitMisused, match="not open; use it in `async with"):
            await WorkflowEnvironment(shop).start(Order(n=1))
        with pytest.raises(KitMisused, match="an event loop runs here already"):
            WorkflowEnvironment.blocking(shop).__enter__()

    asyncio.run(misused())


def test_it_is_the_same_on_every_run() -> None:
    def story() -> list[Any]:
        with run() as env:
            env.fail("charge")
            env.hang("ship")
            execution = env.start(Order(n=1), key="k")
            env.finish()
            return [event.body for event in env.history(execution)]

    assert story() == story()


def test_history_fits_its_published_schema() -> None:
    [told] = [message for message in public_messages(Topics()) if message.name == "history"]
    fits = jsonschema_rs.validator_for(told.schema())
    with run() as env:
        env.fail("charge", times=2)
        env.hang("charge")
        env.repeat("ship")
        execution = env.start(Order(n=1), key="k")
        env.finish()
        env.start(Order(n=2), key="k")
        events = env.history(execution)
        assert {"StepTimedOut", "CompletionIgnored", "KeyConflict", "ExecutionCompleted"} <= {
            e.type for e in events
        }
        for event in events:
            fits.validate(event.fields)
    with pytest.raises(jsonschema_rs.ValidationError):
        fits.validate({**events[0].fields, "type": "Invented"})


def test_the_plugin_loads_nothing_heavy() -> None:
    script = (
        "import sys, flowpilot.testing.plugin\n"
        "heavy = {'pydantic', 'orjson', 'structlog', 'confluent_kafka', 'jsonschema_rs'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_injected_failures_are_told_apart() -> None:
    with run() as env:
        env.fail("charge", times=None)
        execution = env.start(Order(n=1))
        env.finish()
        with pytest.raises(ExecutionFailed) as failed:
            execution.result()
        assert isinstance(failed.value.__cause__, InjectedFailure)
