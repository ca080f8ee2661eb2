"""The client on the memory broker: what it sends, and how it learns of the end."""

from __future__ import annotations

import asyncio
import gc
import json
from functools import partial
from typing import Any

import pytest

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.authoring import InputInvalid, Workflow
from flowpilot.client import client as client_module
from flowpilot.client import handle as handle_module
from flowpilot.client import workflows as client_workflows
from flowpilot.client.blocking import BlockingClient
from flowpilot.client.connection import Started, StartSeen
from flowpilot.client.errors import (
    ExecutionCancelled,
    ExecutionExists,
    ExecutionFailed,
    ExecutionRefused,
    NotSent,
    ResultOmitted,
    ResultTimeout,
    RetryRefused,
    RetryUnanswered,
    StartUnconfirmed,
    UnknownExecution,
    UnknownWorkflow,
)
from flowpilot.ports.definitions import VersionConflict, WorkflowDeleted
from flowpilot.ports.log import LogUnavailable, Record
from flowpilot_schemas.codec import decode_object, encode, encode_message, parse
from flowpilot_schemas.definition import definition_key
from flowpilot_schemas.ids import keyed_execution_id
from flowpilot_schemas.limits import MAX_KEY
from flowpilot_schemas.messages import (
    CancelExecution,
    ExecutionEnded,
    GivenInput,
    RetryAnswered,
    RetryExecution,
)
from tests.unit.client_world import TOPICS, NewPatient, World, onboarding, run
from tests.waiting import eventually_async


def test_starting_an_object_registers_its_version_and_sends_one_record() -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            handle = await client.start(onboarding(), NewPatient(patient_id="p-17"), key="p-17")
        start, record = world.start()
        assert handle.id == start.execution == keyed_execution_id("onboarding", "p-17")
        assert record.key == handle.id.encode()
        assert (start.version, start.definition) == ("1", onboarding().definition.hash)
        assert (start.input, start.key) == ({"patient_id": "p-17", "age": 0}, "p-17")
        assert (start.created_by, start.origin, start.rules) == ("user:test", None, None)
        definitions = LogDefinitions(world.log.producer(), world.log.reader(), TOPICS.definitions)
        await definitions.refresh()
        assert definitions.get(start.definition) == onboarding().definition

    run(test)


def test_a_name_means_the_current_version_and_an_object_its_own() -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            assert await client.register(onboarding("1"))
            assert await client.register(onboarding("2", step="other"), move_pointer=True)
            assert not await client.register(onboarding("2", step="other"))
            patient = {"patient_id": "p"}
            cases: list[tuple[Workflow | str, str | None, str]] = [
                ("onboarding", None, "2"),
                ("onboarding", "1", "1"),
                (onboarding("1"), None, "1"),
                (onboarding("3"), None, "3"),
                ("onboarding", None, "2"),
            ]
            for workflow, version, expected in cases:
                await client.start(workflow, patient, version=version)
                assert world.start()[0].version == expected
            with pytest.raises(VersionConflict):
                await client.start(onboarding("1", step="changed"), patient)
            with pytest.raises(UnknownWorkflow, match="version '9' of workflow 'onboarding'"):
                await client.start("onboarding", patient, version="9")
            with pytest.raises(UnknownWorkflow, match="registered: onboarding"):
                await client.start("nobody", patient)

    run(test)


def test_an_object_whose_version_belongs_to_another_content_is_not_started() -> None:
    """Also where its definition is on the topic: of two that raced for the version it was the loser."""

    async def test(world: World) -> None:
        loser = onboarding("1", step="changed").definition
        value = encode(loser.model_dump(mode="json"))
        await world.log.producer().send([Record(TOPICS.definitions, definition_key(loser.hash), value)])
        async with world.client() as client:
            await client.register(onboarding())
            with pytest.raises(VersionConflict, match="another version"):
                await client.start(onboarding("1", step="changed"), NewPatient(patient_id="p"))
        assert world.events() == []

    run(test)


def test_a_deleted_workflow_is_started_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        patient = NewPatient(patient_id="p")
        async with world.client() as sure, world.client() as asking, world.client() as new:
            await sure.start(onboarding(), patient)
            monkeypatch.setattr(client_workflows, "REGISTERED_FOR", 0.0)
            await asking.start(onboarding(), patient)
            deleting = LogDefinitions(world.log.producer(), world.log.reader(), TOPICS.definitions)
            assert await deleting.delete("onboarding") == ["1"]
            cases: list[tuple[Workflow | str, str | None]] = [
                ("onboarding", None), ("onboarding", "1"), (onboarding(), None),
            ]  # fmt: skip
            for client in (new, asking):
                for workflow, version in cases:
                    with pytest.raises(WorkflowDeleted, match="workflow 'onboarding' was deleted"):
                        await client.start(workflow, patient, version=version)
            await sure.start(onboarding(), patient)  # it has asked a moment ago
            assert await new.register(onboarding(), move_pointer=True)
            await asking.start(onboarding(), patient)
        assert len(world.events()) == 4

    run(test)


@pytest.mark.parametrize("value", [{}, {"patient_id": 5}, {"patient_id": "p", "age": 2**64}, None, "p"])
def test_a_wrong_input_is_refused_before_anything_is_sent(value: Any) -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            await client.register(onboarding())
            for workflow in (onboarding(), "onboarding"):
                with pytest.raises(InputInvalid):
                    await client.start(workflow, value)
        assert world.events() == []

    run(test)


def test_limits_of_input_and_key() -> None:
    async def test(world: World) -> None:
        async with world.client(input=100) as client:
            await client.register(onboarding())
            frame = len(json.dumps({"patient_id": "", "age": 0}, separators=(",", ":")))
            await client.start(onboarding(), {"patient_id": "x" * (100 - frame)})
            with pytest.raises(InputInvalid, match="101 bytes"):
                await client.start(onboarding(), {"patient_id": "x" * (101 - frame)})
            await client.start("onboarding", {"patient_id": "p\0"}, key="k" * MAX_KEY)
            for key in ("", "k" * (MAX_KEY + 1), "\ud800"):
                with pytest.raises(InputInvalid):
                    await client.start("onboarding", {"patient_id": "p"}, key=key)
        assert len(world.events()) == 2

    run(test)


def test_the_ways_an_execution_ends() -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            handle = await client.start(onboarding(), {"patient_id": "p"})
            waiting = asyncio.create_task(handle.result())
            await world.reply("completed", output={"ok": [1, None]})
            assert await waiting == {"ok": [1, None]}
            assert await handle.result() == {"ok": [1, None]}

            handle = await client.start(onboarding(), {"patient_id": "p"})
            await world.reply("failed", errors={"create": {"kind": "ValueError", "message": "no"}})
            with pytest.raises(ExecutionFailed, match="step create: ValueError: no") as failed:
                await handle.result()
            assert failed.value.errors["create"]["kind"] == "ValueError"
            assert failed.value.execution == handle.id

            handle = await client.start(onboarding(), {"patient_id": "p"})
            await world.reply("cancelled", reason="by hand")
            with pytest.raises(ExecutionCancelled, match="by hand"):
                await handle.result()

            handle = await client.start(onboarding(), {"patient_id": "p"})
            await world.reply("refused", reason="unknown definition")
            with pytest.raises(ExecutionRefused, match="unknown definition"):
                await handle.result()

            handle = await client.start(onboarding(), {"patient_id": "p"})
            with pytest.raises(ResultTimeout):
                await handle.result(timeout=0.1)
            with pytest.raises(TimeoutError):
                await handle.result(timeout=0)

    run(test)


def test_replies_of_others_and_broken_ones_are_passed_over() -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            handle = await client.start(onboarding(), {"patient_id": "p"})
            start, record = world.start()
            assert start.reply is not None
            mine = (start.reply.key or "").encode()
            stranger = ExecutionEnded(execution=handle.id, run=record.offset, status="failed")
            await world.log.producer().send(
                [
                    Record(TOPICS.replies, b"somebody else", encode_message(stranger), start.reply.partition),
                    Record(TOPICS.replies, mine, b"\xff", start.reply.partition),
                    Record(TOPICS.replies, mine, None, start.reply.partition),
                ]
            )
            await world.reply("completed", output=1)
            assert await handle.result() == 1

    run(test)


def test_a_reply_that_retention_overtook_does_not_stop_the_reading() -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            handle = await client.start(onboarding(), {"patient_id": "p"})
            start, _ = world.start()
            assert start.reply is not None
            noise = [Record(TOPICS.replies, b"x", b"{}", start.reply.partition)] * 50
            await world.log.producer().send(noise)
            world.log.delete_before(TOPICS.replies, start.reply.partition, 50)
            await world.reply("completed", output=2)
            assert await handle.result() == 2

    run(test)


def test_the_audit_answers_where_no_reply_comes() -> None:
    async def test(world: World) -> None:
        async with world.client(world.audit) as client:
            handle = await client.start(onboarding(), {"patient_id": "p"}, key="k")
            start, record = world.start()
            ended = ExecutionEnded(execution=start.execution, run=2, status="completed", output="earlier")
            world.audit.seen[start.execution, record.offset] = StartSeen(2, existed=True)
            world.audit.ends[start.execution, 2] = ended
            assert await handle.result() == "earlier"
            assert await (await client.handle(start.execution)).result() == "earlier"
            world.audit.down = True
            other = await client.start(onboarding(), {"patient_id": "p"})
            await world.reply("completed", output="by reply")
            assert await other.result() == "by reply"

    run(test)


def test_a_reply_in_time_asks_nothing_of_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "LONGEST_LOOK", 3_600.0)  # however slow the machine

    async def test(world: World) -> None:
        async with world.client(world.audit) as client:
            handle = await client.start(onboarding(), {"patient_id": "p"})
            await world.reply("completed", output=1)
            assert await handle.result() == 1
            assert world.audit.asked == 0
            again = await client.handle(handle.id)
            with pytest.raises(ResultTimeout):
                await again.result(timeout=0)
            assert world.audit.asked == 1

    run(test)


def test_the_end_of_an_earlier_run_of_the_key_is_not_the_answer() -> None:
    async def test(world: World) -> None:
        async with world.client(world.audit) as client:
            first = await client.start(onboarding(), {"patient_id": "p"}, key="k")
            second = await client.start(onboarding(), {"patient_id": "p"}, key="k")
            start, record = world.start()
            assert first.start is not None
            await world.reply("completed", run=first.start, output="old")
            assert await first.result() == "old"
            with pytest.raises(ResultTimeout):
                await second.result(timeout=0.7)
            world.audit.seen[start.execution, record.offset] = StartSeen(record.offset)
            with pytest.raises(ResultTimeout):
                await second.result(timeout=0.7)
            await world.reply("completed", output="new")
            assert await second.result() == "new"

    run(test)


def test_if_exists_fail_tells_a_new_execution_from_one_that_was_there() -> None:
    async def test(world: World) -> None:
        async with world.client(world.audit) as client:
            await client.register(onboarding())
            execution = keyed_execution_id("onboarding", "k")

            async def start() -> Any:
                return await client.start("onboarding", {"patient_id": "p"}, key="k", if_exists="fail")

            world.audit.seen[execution, 0] = StartSeen(0)
            assert (await start()).id == execution
            world.audit.seen[execution, 1] = StartSeen(0, existed=True)
            with pytest.raises(ExecutionExists) as exists:
                await start()
            assert not exists.value.conflict
            world.audit.seen[execution, 2] = StartSeen(0, existed=True, conflict=True)
            with pytest.raises(ExecutionExists, match="another input"):
                await start()

    run(test)


def test_cancel_names_who_and_why() -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            handle = await client.start(onboarding(), {"patient_id": "p"})
            await handle.cancel("not wanted")
            record = world.events()[-1]
            assert parse(CancelExecution, decode_object(record.value)) == CancelExecution(
                execution=handle.id, actor="user:test", reason="not wanted"
            )
            assert record[:2] == world.events()[0][:2]
            await client.cancel(f"{handle.id}.2", "a retry", actor="user:ops")
            assert world.events()[-1].key == handle.id.encode()
            for wrong in ("", "p-17", handle.id + ".0"):
                with pytest.raises(InputInvalid):
                    await client.cancel(wrong, "")

    run(test)


ROOT = "6f1c0b1e-0d0f-5d0e-8a53-2f7f4c1f0b11"


def answered(world: World, *answers: Any) -> asyncio.Task[list[RetryExecution]]:
    """The engine's part: the requests for retries from now on, the nth answered with the nth of `answers`."""
    before = len(world.events())

    async def answer_all() -> list[RetryExecution]:
        asked: list[RetryExecution] = []
        for number, answer in enumerate(answers):
            await eventually_async(partial(_has_events, world, before + number + 1))
            asked.append(parse(RetryExecution, decode_object(world.events()[before + number].value)))
            reply = asked[-1].reply
            assert reply is not None
            told = [RetryAnswered(execution=ROOT, request=asked[-1].request, **answer)]
            if "retry" in answer:  # the end comes at once behind it
                told.append(ExecutionEnded(execution=answer["retry"], run=9, status="completed", output=5))
            key = (reply.key or "").encode()
            records = [Record(reply.topic, key, encode_message(message), reply.partition) for message in told]
            await world.log.producer().send(records)
        return asked

    return asyncio.create_task(answer_all())


def _has_events(world: World, count: int) -> bool:
    return len(world.events()) >= count


def test_a_retry_is_a_handle_to_the_new_execution() -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            engine = answered(world, {"retry": f"{ROOT}.1"})
            handle = await client.retry(ROOT, "fixed")
            [asked] = await engine
            assert (asked.execution, asked.actor, asked.reason, asked.from_start) == (
                ROOT, "user:test", "fixed", False,
            )  # fmt: skip
            assert world.events()[-1].key == ROOT.encode()
            assert handle.id == f"{ROOT}.1"
            assert await handle.result(5) == 5

    run(test)


def test_an_output_that_was_left_out_is_said_so() -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            handle = await client.start(onboarding(), {"patient_id": "p"})
            await world.reply("completed", output_omitted=True)
            with pytest.raises(ResultOmitted, match="FLOWPILOT_STEP_INPUTS_LIMIT"):
                await handle.result(5)

    run(test)


def test_a_retry_that_is_refused_or_not_answered() -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            engine = answered(world, {"refused": "results_gone", "detail": "use --from-start"})
            with pytest.raises(RetryRefused, match="use --from-start") as refused:
                await client.retry(ROOT)
            await engine
            assert refused.value.refusal == "results_gone"
            with pytest.raises(RetryUnanswered, match="no engine"):
                await client.retry(ROOT, timeout=0.05)
            with pytest.raises(InputInvalid):
                await client.retry("p-17")
            with pytest.raises(InputInvalid, match="--from-start"):
                await client.retry(ROOT, version="2")
            with pytest.raises(UnknownExecution, match="does not know"):
                await client.retry(ROOT, from_start=True, version="2")

    run(test)


def test_a_retry_behind_one_whose_end_is_on_the_way_is_asked_for_again() -> None:
    async def test(world: World) -> None:
        world.audit.ends[f"{ROOT}.1", 3] = ExecutionEnded(execution=f"{ROOT}.1", run=3, status="failed")
        async with world.client(world.audit) as client:
            behind = {"refused": "in_progress", "detail": "it runs", "running": f"{ROOT}.1"}
            engine = answered(world, behind, {"retry": f"{ROOT}.2"})
            handle = await client.retry(f"{ROOT}.1")
            first, second = await engine
            assert first.request != second.request
            assert handle.id == f"{ROOT}.2"
            engine = answered(world, behind | {"running": f"{ROOT}.7"})
            with pytest.raises(RetryRefused):  # that one runs indeed
                await client.retry(f"{ROOT}.1")
            await engine

    run(test)


def test_a_retry_from_the_start_brings_what_the_audit_knows() -> None:
    async def test(world: World) -> None:
        async with world.client(world.audit) as client:
            second = onboarding("2", step="other")
            await client.register(second)
            old = onboarding().definition
            trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
            world.audit.begun[ROOT] = Started("onboarding", "1", old.hash, {"patient_id": "p", "age": 1}, 3, trace)
            engine = answered(world, {"retry": f"{ROOT}.4"})
            await client.retry(ROOT, from_start=True)
            [asked] = await engine
            assert (asked.version, asked.definition, asked.known) == ("1", old.hash, 3)
            assert asked.traceparent == trace
            assert asked.input == GivenInput(value={"patient_id": "p", "age": 1})
            engine = answered(world, {"retry": f"{ROOT}.5"})
            await client.retry(ROOT, from_start=True, version="2")
            [asked] = await engine
            assert (asked.version, asked.definition) == ("2", second.definition.hash)
            world.audit.down = True
            with pytest.raises(RetryUnanswered):
                await client.retry(ROOT, from_start=True, timeout=0.05)

    run(test)


def test_a_log_without_topics_is_told_with_the_remedy() -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            await client.register(onboarding())
            world.log.delete_topic(TOPICS.events)
            with pytest.raises(NotSent, match="flowpilot setup"):
                await client.start("onboarding", {"patient_id": "p"})

    run(test)


def test_handles_that_nobody_holds_are_forgotten() -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            for _ in range(50):
                await client.start(onboarding(), {"patient_id": "p"})
            gc.collect()
            assert len(client._replies._inboxes) == 0

    run(test)


def test_the_blocking_client_is_the_same() -> None:
    world = World()
    with BlockingClient(world.client) as client:
        handle = client.start(onboarding(), {"patient_id": "p"})
        client.call(lambda: world.reply("completed", output=7))
        assert handle.result(timeout=5) == 7
        handle.cancel("over")
        client.cancel(handle.id, "again")
        assert not client.register(onboarding())
        with pytest.raises(ResultTimeout):
            client.start("onboarding", {"patient_id": "p"}).result(timeout=0.05)
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.start("onboarding", {"patient_id": "p"})
    with pytest.raises(ZeroDivisionError), BlockingClient(lambda: 1 / 0):  # type: ignore[arg-type, return-value]
        pass


def test_a_start_that_was_not_acknowledged_tells_its_id_and_whether_it_was_sent() -> None:
    async def test(world: World) -> None:
        patient, key = {"patient_id": "p"}, "k"
        execution = keyed_execution_id("onboarding", key)
        async with world.client(patience=0.05) as client:
            await client.register(onboarding())
            await client.start("onboarding", patient)
            for cut in ("refuses", "hangs"):
                world.line.cut = cut  # type: ignore[assignment]
                with pytest.raises(StartUnconfirmed, match=f"{execution} was not started: start it again") as none:
                    await client.start("onboarding", patient, key=key)
                assert (none.value.execution, none.value.sent) == (execution, False)
                with pytest.raises(LogUnavailable):
                    await client.cancel(execution, "no more")
            assert len(world.events()) == 1
            world.line.cut = "takes and hangs"
            with pytest.raises(
                StartUnconfirmed, match=r"no answer within 0.05 s; whether .* with the same key"
            ) as lost:
                await client.start("onboarding", patient, key=key)
            assert (lost.value.execution, lost.value.sent) == (execution, True)
            world.line.cut = None
            assert (await client.start("onboarding", patient, key=key)).id == execution
        assert len(world.events()) == 3

    run(test)


def test_the_actor_may_be_another_for_each_start() -> None:
    async def test(world: World) -> None:
        async with world.client() as client:
            await client.start(onboarding(), {"patient_id": "p"}, actor="billing")
            assert world.start()[0].created_by == "billing"

    run(test)


def test_a_thousand_that_wait_cost_one_reader_and_few_questions_to_the_audit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many wait: one position in the replies, read by one task, and a bounded rate of looks."""
    monkeypatch.setattr(handle_module, "FIRST_LOOK", 0.05)

    async def test(world: World) -> None:
        async with world.client(world.audit) as client:
            await client.register(onboarding())
            handles = [await client.start("onboarding", {"patient_id": "p"}) for _ in range(1_000)]
            began, world.line.looks = asyncio.get_running_loop().time(), 0
            waiting = [asyncio.create_task(handle.result()) for handle in handles]
            await eventually_async(lambda: world.audit.asked >= 1_000)
            await eventually_async(lambda: world.line.looks >= 150)
            elapsed = asyncio.get_running_loop().time() - began
            # One look each, then all of them together a hundred a second.
            assert world.audit.asked <= 1_000 + 150 * elapsed
            assert world.line.looks <= 50 + elapsed / 0.005
            for record in world.events():
                await world.reply("completed", to=record, output=record.offset)
            assert await asyncio.gather(*waiting) == [handle.start for handle in handles]

    run(test)
