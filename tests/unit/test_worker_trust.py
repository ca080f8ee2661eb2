"""What a worker trusts: where it reports to, whose step messages it runs, whose control records it follows."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from structlog.testing import capture_logs

from flowpilot.authoring import Workflow
from flowpilot.core.murmur2 import partition_of
from flowpilot.ports import metrics
from flowpilot.ports.log import Fetched, Record
from flowpilot.worker.dropped import Dropped
from flowpilot_schemas.codec import encode
from flowpilot_schemas.history import iso
from flowpilot_schemas.mac import HEADER_MAC, StepSecrets, mac
from flowpilot_schemas.topics import Topics
from tests.unit.test_metrics import Seen
from tests.unit.worker_rig import TOPICS, Rig
from tests.waiting import eventually_async

NEW, OLD = "a secret of today, long enough", "a secret of yesterday, as long"
STEPS = TOPICS.steps("clinic")


class Patient(BaseModel):
    patient_id: str


calls: list[str] = []
clinic = Workflow("clinic", version="1", input=Patient, queue="clinic")


@clinic.step
def create(input: Patient) -> str:
    calls.append(input.patient_id)
    return input.patient_id


def run(scenario: Coroutine[Any, Any, None]) -> None:
    calls.clear()
    asyncio.run(asyncio.wait_for(scenario, 30))


# ---- where it reports to

_PLACES = st.fixed_dictionaries(
    {
        "topic": st.sampled_from(["payments", TOPICS.history, TOPICS.control, "other.events", TOPICS.events]),
        "partition": st.integers(0, 2**31 - 1),
    },
    optional={"key": st.text(max_size=20)},
)


@settings(max_examples=25, deadline=None)
@given(reply=_PLACES, retry=st.sampled_from(["", ".1", ".77"]), fails=st.booleans())
def test_reports_go_to_own_events_topic_only(reply: dict[str, Any], retry: str, fails: bool) -> None:
    async def scenario() -> None:
        rig = Rig(clinic)
        for foreign in ("payments", "other.events"):
            rig.log.create_topic(foreign, 4)
        before = {topic: len(rig.log.records(topic)) for topic in (TOPICS.history, TOPICS.control)}
        root = str(uuid.uuid4())
        task = rig.ready("create", execution=root + retry, input={} if fails else {"patient_id": "p"}, reply=reply)
        async with rig.serving():
            await eventually_async(lambda: rig.answer(task, "failed" if fails else "completed"))
        for record in rig.log.records(TOPICS.events):
            assert (record.key, record.partition) == (root.encode(), partition_of(root.encode(), 4))
        assert rig.dead_letters() == []
        assert not rig.log.records("payments")
        assert not rig.log.records("other.events")
        assert before == {topic: len(rig.log.records(topic)) for topic in before}

    run(scenario())


def test_namespace_is_that_of_the_queue_read_from() -> None:
    assert Topics.of_step_topic(Topics("clinic-1").steps("a.steps.b")) == Topics("clinic-1")


# ---- what it runs with a secret configured


def signed(rig: Rig, secret: str, step: str = "create", *, topic: str = STEPS, **fields: Any) -> str:
    """Put a step message on the queue, signed for `topic`."""
    message = rig.message(step, **fields)
    value = encode(message)
    rig.raw(value, headers=((HEADER_MAC, mac(secret.encode(), topic, value)),))
    return str(message["task_id"])


def test_only_signed_steps_are_run_with_a_secret() -> None:
    async def scenario() -> None:
        rig = Rig(clinic)
        rig.ready("create", input={"patient_id": "unsigned"})
        signed(rig, "quite another secret, as long", input={"patient_id": "forged"})
        signed(rig, NEW, topic=TOPICS.steps("other"), input={"patient_id": "moved"})
        value = encode(rig.message("create", input={"patient_id": "changed"}))
        rig.raw(value, headers=((HEADER_MAC, mac(NEW.encode(), STEPS, value.replace(b"changed", b"genuine"))),))
        rig.raw(value, headers=((HEADER_MAC, b""),))
        rig.raw(None, headers=((HEADER_MAC, b"v1:00"),))
        rig.raw(b"not json", headers=((HEADER_MAC, "v1:é".encode()),))
        last = signed(rig, NEW, input={"patient_id": "genuine"})
        async with rig.serving(secrets=StepSecrets([NEW])):
            await eventually_async(lambda: rig.answer(last, "completed"))
            await eventually_async(lambda: len(rig.dead_letters()) >= 7)
        assert calls == ["genuine"]
        # Nothing is reported of the others: a forged message must not fail the attempt that it names.
        assert {answer["task_id"] for answer in rig.answers()} == {last}
        reasons = [letter["reason"] for letter in rig.dead_letters()]
        assert reasons == ["step_mac_missing", *["step_mac_invalid"] * 6]
        assert all("FLOWPILOT_STEP_SECRET" in letter["detail"] for letter in rig.dead_letters())
        assert await rig.committed() == 8

    run(scenario())


def test_a_worker_without_the_secret_says_so_once() -> None:
    async def scenario() -> None:
        rig = Rig(clinic)
        rig.ready("create", input={"patient_id": "unsigned"})
        last = [signed(rig, NEW, input={"patient_id": f"signed {number}"}) for number in range(3)][-1]
        with capture_logs() as logs:
            async with rig.serving():
                await eventually_async(lambda: rig.answer(last, "completed"))
        assert len([line for line in logs if "FLOWPILOT_STEP_SECRET" in line["event"]]) == 1
        assert rig.dead_letters() == []

    run(scenario())


def test_each_secret_verifies_and_the_first_signs() -> None:
    secrets = StepSecrets([NEW, OLD])
    [(name, signature)] = secrets.header(STEPS, b"{}")
    assert (name, signature) == (HEADER_MAC, mac(NEW.encode(), STEPS, b"{}"))

    async def scenario() -> None:
        rig = Rig(clinic)
        old = signed(rig, OLD, input={"patient_id": "old"})
        new = signed(rig, NEW, input={"patient_id": "new"})
        async with rig.serving(secrets=secrets):
            await eventually_async(lambda: rig.answer(old, "completed") and rig.answer(new, "completed"))
        assert rig.dead_letters() == []

    run(scenario())


def test_without_a_secret_signed_steps_are_run() -> None:
    async def scenario() -> None:
        rig = Rig(clinic)
        task = signed(rig, NEW, input={"patient_id": "p"})
        async with rig.serving():
            await eventually_async(lambda: rig.answer(task, "completed"))

    run(scenario())


@given(
    value=st.binary(max_size=60),
    other=st.binary(max_size=60),
    topic=st.sampled_from([STEPS, TOPICS.control, "a", "a\nb"]),
    foreign=st.sampled_from([STEPS, TOPICS.control, "b", "a"]),
)
def test_mac_covers_topic_and_whole_value(value: bytes, other: bytes, topic: str, foreign: str) -> None:
    secrets = StepSecrets([NEW])
    headers = (("traceparent", b"00"), *secrets.header(topic, value))
    assert secrets.distrust(topic, value, headers) is None
    if (other, foreign) != (value, topic) and "\n" not in topic + foreign:
        assert secrets.distrust(foreign, other, headers) is not None


def test_secrets_are_in_no_text_of_theirs() -> None:
    secrets = StepSecrets([NEW])
    refused = secrets.distrust(STEPS, b"{}", [(HEADER_MAC, b"v1:")])
    assert NEW not in f"{secrets!r} {secrets} {refused} {secrets.distrust(STEPS, b'{}', [])}"


# ---- what it drops


def test_unsigned_control_records_are_not_followed() -> None:
    async def scenario() -> None:
        rig = Rig(clinic)
        forged, genuine = (str(uuid.uuid4()) for _ in range(2))
        value = encode({"v": 1, "type": "execution.cancelled", "execution": genuine, "run": 7})
        rig.say({"type": "execution.cancelled", "execution": forged, "run": 7})
        rig.log.append(
            Record(TOPICS.control, b"k", value, 0, ((HEADER_MAC, mac(NEW.encode(), TOPICS.control, value)),))
        )
        signed(rig, NEW, execution=genuine, input={"patient_id": "cancelled"})
        task = signed(rig, NEW, execution=forged, input={"patient_id": "wanted"})
        numbers = Seen()
        async with rig.serving(secrets=StepSecrets([NEW]), meter=numbers.meter):
            await eventually_async(lambda: rig.answer(task, "completed"))
        assert calls == ["wanted"]
        assert numbers.value(metrics.WORKER_CONTROL_IGNORED, "step_mac_missing") == 1
        assert numbers.value(metrics.WORKER_DROPPED, "cancelled") == 1

    run(scenario())


def test_dropped_steps_are_logged_and_counted() -> None:
    async def scenario() -> None:
        rig = Rig(clinic)
        late = rig.ready("create", input={"patient_id": "late"}, not_after=iso(0))
        cancelled = rig.ready("create", input={"patient_id": "cancelled"})
        superseded = rig.ready("create", input={"patient_id": "superseded"})
        rig.say({"type": "execution.cancelled", "execution": cancelled.partition("/")[0], "run": 7})
        rig.say({"type": "attempt.superseded", "task_id": superseded})
        rig.raw(b"{")
        numbers = Seen()
        with capture_logs() as logs:
            async with rig.serving(meter=numbers.meter, worker_id="w-1"):
                await eventually_async(rig.dead_letters)
        said = {line["reason"]: line for line in logs if line["event"] == "a step message is not run"}
        named = {"not_after": late, "cancelled": cancelled, "superseded": superseded}
        assert {reason: said[reason]["task"] for reason in named} == named
        for place, reason in enumerate((*named, "not_json")):
            assert (said[reason]["worker"], said[reason]["record"]) == ("w-1", f"{STEPS}/0/{place}")
            assert numbers.value(metrics.WORKER_DROPPED, reason) == 1

    run(scenario())


def test_a_flood_is_one_line_a_second_and_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("flowpilot.worker.dropped.time.monotonic", lambda: now)
    numbers = Seen()
    dropped = Dropped("w", numbers.meter)
    fetched = Fetched(STEPS, 0, 0, 0, None, b"{")
    with capture_logs() as logs:
        for _ in range(1_000):
            dropped.step(fetched, "step_mac_missing", None, "x" * 10_000)
            dropped.step(fetched, "cancelled", "t" * 10_000)
        assert [line["records"] for line in logs] == [1, 1]
        dropped.flush(now + 0.9)
        assert len(logs) == 2
        dropped.flush(now + 1.0)
        assert [line["records"] for line in logs] == [1, 1, 999, 999]
        assert all(len(str(line)) < 1_000 for line in logs)
        dropped.flush(now + 5.0)
        assert len(logs) == 4
    assert numbers.value(metrics.WORKER_DROPPED, "step_mac_missing") == 1_000
