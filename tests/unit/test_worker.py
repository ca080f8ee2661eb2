"""The worker's rules on the in-memory broker: the production code, one process, one loop."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections.abc import Coroutine, Mapping
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from flowpilot import NonRetryable, Retry, RetryAfter, StepContext, Workflow
from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.memory.group import MemoryConsumer
from flowpilot.core.murmur2 import partition_of
from flowpilot.ports.definitions import VersionConflict, WorkflowDeleted
from flowpilot.ports.log import Fetched, MembershipLost
from flowpilot.worker.errors import UnknownQueue, WorkerExhausted
from flowpilot.worker.handlers import Handlers
from flowpilot_schemas.codec import encode
from flowpilot_schemas.history import iso
from tests.unit.worker_rig import TOPICS, Rig
from tests.waiting import eventually_async


class NewPatient(BaseModel):
    patient_id: str


class Patient(BaseModel):
    id: str


class timed_out(Exception):
    """A user's class may have a reserved word's name."""


workflow = Workflow("clinic", version="2", input=NewPatient)


@workflow.step
def create(input: NewPatient) -> Patient:
    return Patient(id=input.patient_id)


@workflow.step
async def greet(create: Patient, ctx: StepContext) -> str:
    await asyncio.sleep(0)
    return f"{create.id} {ctx.attempt} {ctx.last_heartbeat}"


def part(i: int, step: timedelta = timedelta(0)) -> list[float]:
    return [i, step.total_seconds()]


workflow.add_step(part, name="part", args={"i": 3, "step": "PT2S"})


@workflow.step(depends_on=["create", "greet"])
def collect(parents: Mapping[str, Any]) -> list[str]:
    return sorted(parents)


@workflow.step(retry=Retry(non_retryable=(LookupError,)))
def fail(input: dict[str, Any]) -> Any:
    how = input["how"]
    if how == "value":
        raise ValueError("x" * 10_000 + "\ud800")
    if how == "key":
        raise KeyError("gone")
    if how == "never":
        raise NonRetryable("no such patient")
    if how == "later":
        raise RetryAfter("90s", "busy")
    if how == "exit":
        sys.exit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "reserved":
        raise timed_out
    if how == "unprintable":
        raise Unprintable
    if how == "awaitable":
        return asyncio.sleep(0)
    return {"nan": math.nan, "huge": 2**70, "surrogate": "\ud800", "object": object(), "large": "x" * 65_535}[how]


@workflow.step
async def fail_async(input: dict[str, Any]) -> Any:
    return fail(input)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_a_step_is_called_and_answered() -> None:
    async def scenario() -> None:
        rig = Rig(workflow)
        async with rig.serving() as worker:
            await rig.assigned()
            create_id = rig.ready("create", input={"patient_id": "p"})
            greet_id = rig.ready("greet", parents={"create": {"id": "p"}}, attempt=2, last_heartbeat={"at": 5})
            part_id = rig.ready("part", args={"i": 3, "step": "PT2S"})
            collect_id = rig.ready("collect", parents={"create": {"id": "p"}, "greet": None})
            await eventually_async(lambda: len(rig.answers("completed")) == 4)
            await eventually_async(lambda: rig.committed(), what="the position")
        created = rig.answer(create_id, "completed")
        assert created is not None
        assert created["output"] == {"id": "p"}
        assert created["worker_id"] == worker.worker_id
        assert created["broker_task_id"] == "flowpilot.steps.clinic/0/0"
        assert created["started_at"].endswith("Z")
        assert (rig.answer(greet_id, "completed") or {})["output"] == "p 2 {'at': 5}"
        assert (rig.answer(part_id, "completed") or {})["output"] == [3, 2.0]
        assert (rig.answer(collect_id, "completed") or {})["output"] == ["create", "greet"]
        # Home partition and key follow from the task id.
        for task_id in (create_id, greet_id, part_id, collect_id):
            root = task_id.partition("/")[0].encode()
            [record] = [each for each in rig.log.records(TOPICS.events) if task_id.encode() in (each.value or b"")]
            assert (record.partition, record.key) == (partition_of(root, 4), root)
        assert await rig.committed() == 4
        assert rig.answers("started") == []  # short steps do not pay for it

    run(scenario())


@pytest.mark.parametrize("step", ["fail", "fail_async"])
@pytest.mark.parametrize(
    ("how", "kind", "message", "retryable"),
    [
        ("value", "ValueError", "xxx", True),
        ("never", "NonRetryable", "no such patient", False),
        ("later", "RetryAfter", "busy", True),
        ("exit", "SystemExit", "sys.exit(3)", True),
        ("interrupt", "KeyboardInterrupt", "", True),
        ("reserved", "tests.unit.test_worker.timed_out", "", True),
        ("unprintable", "Unprintable", "RuntimeError while", True),
        ("nan", "result_not_serialisable", "float", False),
        ("huge", "result_not_serialisable", "64 bits", False),
        ("surrogate", "result_not_serialisable", "str", False),
        ("object", "result_not_serialisable", "object", False),
        ("large", "result_too_large", "65537 bytes; the limit FLOWPILOT_RESULT_LIMIT is 65536", False),
    ],
)
def test_whatever_a_handler_does_is_an_answer(
    step: str, how: str, kind: str, message: str, retryable: bool
) -> None:
    async def scenario() -> None:
        rig = Rig(workflow)
        async with rig.serving():
            task_id = rig.ready(step, input={"how": how})
            answer = await eventually_async(lambda: rig.answer(task_id, "failed"))
            assert answer["error"]["kind"] == kind
            assert message in answer["error"]["message"]
            assert len(answer["error"]["message"].encode()) <= 4_096
            assert answer["error"]["retryable"] is retryable
            assert answer["error"].get("retry_after_ms") == (90_000 if how == "later" else None)
            # The worker goes on.
            good = rig.ready("create", input={"patient_id": "p"})
            await eventually_async(lambda: rig.answer(good, "completed"))

    run(scenario())


def test_non_retryable_by_the_steps_retry_and_a_coroutine_by_mistake() -> None:
    async def scenario() -> None:
        rig = Rig(workflow)
        async with rig.serving():
            key = rig.ready("fail", input={"how": "key"})
            awaitable = rig.ready("fail", input={"how": "awaitable"})
            answer = await eventually_async(lambda: rig.answer(key, "failed"))
            assert answer["error"]["retryable"] is False
            answer = await eventually_async(lambda: rig.answer(awaitable, "failed"))
            assert "async def" in answer["error"]["message"]

    run(scenario())


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537])
def test_the_result_limit_is_exact(size: int) -> None:
    sized = Workflow("sized", version="1")
    sized.add_step(lambda: "x" * (size - 2), name="make")

    async def scenario() -> None:
        rig = Rig(sized)
        async with rig.serving():
            task_id = rig.ready("make")
            answer = await eventually_async(lambda: rig.answer(task_id, "completed", "failed"))
            assert answer["type"] == ("step.completed" if size <= 65_536 else "step.failed")

    run(scenario())


def test_an_input_that_does_not_fit_names_both_versions() -> None:
    async def scenario() -> None:
        rig = Rig(workflow)
        async with rig.serving():
            task_id = rig.ready("create", version="1", input={"name": "p"})
            answer = await eventually_async(lambda: rig.answer(task_id, "failed"))
            error = answer["error"]
            assert (error["kind"], error["retryable"]) == ("input_invalid", False)
            assert "version '1'" in error["message"]
            assert "version '2'" in error["message"]
            assert "patient_id" in error["message"]
            missing = rig.ready("greet", version="1")  # that version did not send what this one takes
            answer = await eventually_async(lambda: rig.answer(missing, "failed"))
            assert answer["error"]["kind"] == "arguments_invalid"

    run(scenario())


def good(**fields: Any) -> bytes:
    return encode(Rig(workflow).message("create", **fields))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "null_value"),
        (b"\xff", "not_utf8"),
        (b"{", "not_json"),
        (b'{"v": NaN}', "not_json"),
        (b"[" * 1_000, "not_json"),
        (b'{"a": ' + b"9" * 1_000_000 + b"}", "integer_too_large"),
        (b"[]", "not_an_object"),
        (b"{}", "wrong_shape"),
        (good(v=2), "future_version"),
        (good(task_id="nonsense"), "wrong_shape"),
        (good(attempt="1"), "wrong_shape"),
        (good(not_after="tomorrow"), "wrong_shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_step_message_is_a_dead_letter_and_stops_nothing(value: bytes | None, reason: str) -> None:
    async def scenario() -> None:
        rig = Rig(workflow)
        rig.raw(value)
        task_id = rig.ready("create", input={"patient_id": "p"})
        async with rig.serving():
            await eventually_async(lambda: rig.answer(task_id, "completed"))
            letters = await eventually_async(rig.dead_letters)
            assert [letter["reason"] for letter in letters] == [reason]
            assert (letters[0]["topic"], letters[0]["offset"]) == ("flowpilot.steps.clinic", 0)
            assert letters[0]["source"] == "worker"
        assert await rig.committed() == 2

    run(scenario())


def test_a_report_that_kafka_refuses_is_a_dead_letter() -> None:
    async def scenario() -> None:
        rig = Rig(workflow)
        rig.log.delete_topic("flowpilot.events")
        rig.ready("create", input={"patient_id": "p"})
        async with rig.serving():
            [letter] = await eventually_async(rig.dead_letters)
        assert letter["reason"] == "answer_refused"
        assert await rig.committed() == 1

    run(scenario())


def test_what_is_over_is_skipped_without_an_answer() -> None:
    async def scenario() -> None:
        rig = Rig(workflow)
        past = iso(int(time.time() * 1_000) - 1)
        rig.ready("create", input={"patient_id": "late"}, not_after=past)
        cancelled = rig.ready("create", input={"patient_id": "cancelled"})
        superseded = rig.ready("create", input={"patient_id": "superseded"})
        rig.say({"type": "execution.cancelled", "execution": cancelled.partition("/")[0], "run": 7})
        rig.say({"type": "attempt.superseded", "task_id": superseded})
        rig.say({"type": "execution.cancelled", "execution": 3})  # not understood, and harmless
        other_run = rig.ready("create", input={"patient_id": "p"})
        rig.say({"type": "execution.cancelled", "execution": other_run.partition("/")[0], "run": 6})
        async with rig.serving():
            await eventually_async(lambda: rig.answer(other_run, "completed"))
        assert {answer["task_id"] for answer in rig.answers()} == {other_run}
        assert await rig.committed() == 4

    run(scenario())


class Gate:
    """Handlers that wait until the test lets them go, and what they saw."""

    def __init__(self, **options: Any) -> None:
        self.workflow = Workflow("gated", version="1")
        self.opened = threading.Event()
        self.running = 0
        self.peak = 0
        self.seen: list[Any] = []
        self.calls: list[str] = []
        self._lock = threading.Lock()
        self.workflow.add_step(self.wait, name="wait", **options)
        self.workflow.add_step(self.wait_async, name="wait_async", **options)
        self.workflow.add_step(lambda: None, name="quick", **options)

    def wait(self, ctx: StepContext) -> str:
        with self._lock:
            self.running += 1
            self.peak = max(self.peak, self.running)
            self.calls.append(ctx.idempotency_key)
        while not self.opened.wait(0.005):
            if ctx.cancelled:
                self.seen.append("cancelled")
                break
        with self._lock:
            self.running -= 1
        return "done"

    async def wait_async(self, ctx: StepContext) -> None:
        self.running += 1
        self.calls.append(ctx.idempotency_key)
        try:
            while not self.opened.is_set():  # noqa: ASYNC110 - the event is shared with threads
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.seen.append(("async", ctx.cancelled))
            raise
        finally:
            self.running -= 1


def test_as_many_at_once_as_allowed_and_polling_goes_on() -> None:
    async def scenario() -> None:
        gate = Gate()
        rig = Rig(gate.workflow, partitions=4)
        for n in range(60):
            rig.ready("wait", partition=n % 4)
        async with rig.serving(concurrency=5):
            await eventually_async(lambda: gate.running == 5)
            gate.opened.set()
            await eventually_async(lambda: len(rig.answers("completed")) == 60)
        assert gate.peak == 5
        assert len(set(gate.calls)) == 60
        assert [await rig.committed(partition) for partition in range(4)] == [15] * 4

    run(scenario())


def test_a_long_handler_says_that_it_started_and_holds_nothing_back() -> None:
    async def scenario() -> None:
        gate = Gate()
        rig = Rig(gate.workflow)
        async with rig.serving():
            await rig.assigned()
            long = rig.ready("wait", heartbeat_ms=1_000)
            await eventually_async(lambda: gate.running == 1)
            quick = [rig.ready("quick") for _ in range(20)]
            await eventually_async(lambda: all(rig.answer(task_id, "completed") for task_id in quick))
            await eventually_async(lambda: _position(rig, 21), what="all are committed, the long one too")
            assert rig.answer(long, "started") is not None
            await eventually_async(lambda: len(rig.answers("heartbeat")) >= 2)
            assert {beat["task_id"] for beat in rig.answers("heartbeat")} == {long}
            gate.opened.set()
            await eventually_async(lambda: rig.answer(long, "completed"))

    run(scenario())


async def _position(rig: Rig, wanted: int, partition: int = 0) -> bool:
    return await rig.committed(partition) == wanted


def test_heartbeats_of_the_handler_carry_their_details() -> None:
    beating = Workflow("beating", version="1")

    @beating.step
    def work(ctx: StepContext) -> None:
        ctx.heartbeat({"done": 1})
        while not ctx.cancelled and not told.wait(0.005):
            pass

    told = threading.Event()

    async def scenario() -> None:
        rig = Rig(beating)
        async with rig.serving():
            rig.ready("work")
            beat = await eventually_async(lambda: rig.answers("heartbeat"))
            assert beat[0]["details"] == {"done": 1}
            assert [answer["type"] for answer in rig.answers()][:2] == ["step.started", "step.heartbeat"]
            told.set()
            await eventually_async(lambda: rig.answers("completed"))

    run(scenario())


def test_what_a_handler_sets_in_its_context_is_not_seen_by_the_next() -> None:
    """With one place, the next handler is begun where the last one ended."""
    seen: list[str] = []
    patient = ContextVar("patient", default="nobody")
    marking = Workflow("marking", version="1")

    @marking.step
    async def mark(ctx: StepContext) -> None:
        seen.append(patient.get())
        patient.set(ctx.execution)

    async def scenario() -> None:
        rig = Rig(marking)
        async with rig.serving(concurrency=1):
            tasks = [rig.ready("mark") for _ in range(3)]
            await eventually_async(lambda: all(rig.answer(task, "completed") for task in tasks))

    run(scenario())
    assert seen == ["nobody"] * 3


def test_a_cancel_reaches_running_handlers() -> None:
    async def scenario() -> None:
        gate = Gate()
        rig = Rig(gate.workflow)
        async with rig.serving():
            sync, asynchronous = rig.ready("wait"), rig.ready("wait_async")
            await eventually_async(lambda: gate.running == 2)
            for task_id in (sync, asynchronous):
                rig.say({"type": "execution.cancelled", "execution": task_id.partition("/")[0], "run": 7})
            await eventually_async(lambda: gate.running == 0)
            assert sorted(gate.seen, key=str) == [("async", True), "cancelled"]
            # What was done all the same is told; that it was not done need not be.
            await eventually_async(lambda: rig.answer(sync, "completed"))
            await eventually_async(lambda: _position(rig, 2))
            assert rig.answer(asynchronous, "completed", "failed") is None

    run(scenario())


@pytest.mark.parametrize("step", ["wait", "wait_async"])
def test_a_handler_that_runs_too_long_is_answered_and_its_place_is_free(step: str) -> None:
    async def scenario() -> None:
        gate = Gate()
        rig = Rig(gate.workflow)
        async with rig.serving(concurrency=1):
            long = rig.ready(step, start_to_close_ms=200)
            answer = await eventually_async(lambda: rig.answer(long, "failed"))
            assert (answer["error"]["kind"], answer["error"]["retryable"]) == ("timed_out", True)
            assert "200ms" in answer["error"]["message"]
            quick = rig.ready("quick")
            await eventually_async(lambda: rig.answer(quick, "completed"))
            await eventually_async(lambda: gate.seen, what="the handler is told")
            assert rig.answer(long, "completed") is None

    run(scenario())


def test_too_many_hanging_handlers_end_the_worker_with_a_sentence() -> None:
    release = threading.Event()
    hanging = Workflow("hanging", version="1")
    hanging.add_step(lambda: release.wait(30), name="hang")
    hanging.add_step(lambda: None, name="quick")

    async def scenario() -> None:
        rig = Rig(hanging)
        for _ in range(2):
            rig.ready("hang", start_to_close_ms=100)
        quick = rig.ready("quick")
        with pytest.raises(WorkerExhausted, match="2 handlers ran beyond") as caught:
            async with asyncio.timeout(20):
                await rig.worker(concurrency=2).run()
        assert caught.value.given_up == 2
        assert len(rig.answers("failed")) == 2
        assert rig.answer(quick, "completed") is not None
        assert await rig.committed() == 3

    try:
        run(scenario())
    finally:
        release.set()


def test_nothing_is_committed_before_its_answer_is_in() -> None:
    async def scenario() -> None:
        rig = Rig(workflow)
        async with rig.serving():
            await rig.assigned()
            first = rig.ready("create", input={"patient_id": "1"})
            await eventually_async(lambda: rig.answer(first, "completed"))
            await eventually_async(lambda: _position(rig, 1))
            rig.producer.away = True
            second = rig.ready("create", input={"patient_id": "2"})
            await asyncio.sleep(0.5)  # longer than two commit intervals: time in which a defect would show
            assert await rig.committed() == 1
            rig.producer.away = False
            await eventually_async(lambda: rig.answer(second, "completed"))
            await eventually_async(lambda: _position(rig, 2))

    run(scenario())


def test_answers_are_sent_together() -> None:
    async def scenario() -> None:
        rig = Rig(workflow, partitions=4)
        for n in range(200):
            rig.ready("create", input={"patient_id": "p"}, partition=n % 4)
        async with rig.serving(concurrency=16):
            await eventually_async(lambda: len(rig.answers("completed")) == 200)
        assert max(rig.producer.batches) > 4

    run(scenario())


def test_definitions_are_registered_and_another_content_is_refused() -> None:
    async def scenario() -> None:
        rig = Rig(workflow)
        async with rig.serving():
            await eventually_async(lambda: rig.log.records(TOPICS.definitions))
        changed = Workflow("clinic", version="2")
        changed.add_step(lambda: None, name="other")
        with pytest.raises(VersionConflict):
            await rig.worker(changed).run()

    run(scenario())


def test_a_deleted_workflow_is_served_and_not_brought_back() -> None:
    async def scenario() -> None:
        rig = Rig(workflow)
        registered = LogDefinitions(rig.log.producer(), rig.log.reader(), TOPICS.definitions)
        await registered.register(workflow.definition)
        await registered.delete(workflow.name)
        with capture_logs() as logged:
            async with rig.serving():
                rig.ready("create", input={"patient_id": "p"})  # of an execution that runs
                await eventually_async(lambda: rig.answers("completed"))
        assert [entry["reason"] for entry in logged if entry["log_level"] == "warning"] == [
            str(WorkflowDeleted(workflow.name))
        ]
        await registered.refresh()
        assert registered.is_deleted(workflow.name)
        assert registered.workflows() == []

    run(scenario())


def test_only_the_named_queues_are_served() -> None:
    two = Workflow("two", version="1")
    two.add_step(lambda: None, name="a")
    two.add_step(lambda: None, name="b", queue="notify")
    assert Handlers([two]).queues() == ["two", "notify"]
    with pytest.raises(UnknownQueue, match="'nope'; choose among: two, notify"):
        Handlers([two]).queues(["nope"])

    async def scenario() -> None:
        rig = Rig(two)
        a, b = rig.ready("a"), rig.ready("b", queue="notify")
        async with rig.serving(queues=["notify"]):
            await eventually_async(lambda: rig.answer(b, "completed"))
        assert rig.answer(a) is None
        async with rig.serving():
            await eventually_async(lambda: rig.answer(a, "completed"))

    run(scenario())


def test_a_worker_that_is_out_of_its_group_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        rig = Rig(workflow)
        worker = rig.worker()
        serving = asyncio.create_task(worker.run())
        await rig.assigned()

        async def lost(*_: object) -> list[Fetched]:
            raise MembershipLost("another has the name")

        monkeypatch.setattr(MemoryConsumer, "poll", lost)
        with pytest.raises(MembershipLost):
            await asyncio.wait_for(serving, 20)

    run(scenario())
