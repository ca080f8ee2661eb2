"""Hand-over: suspects, windows, rebalances and stops, on the in-memory broker."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from flowpilot.adapters.memory.group import MemoryConsumer
from flowpilot.authoring import StepContext, Workflow
from flowpilot.ports.log import Fetched, TopicPartition
from flowpilot.worker import watch
from flowpilot.worker.partition import AssignedPartition
from tests.unit.test_worker import Gate, _position, run
from tests.unit.worker_rig import TOPICS, Rig
from tests.waiting import eventually_async


def test_what_was_there_at_the_assignment_is_suspect_and_committed_before_it_runs() -> None:
    async def scenario() -> None:
        gate = Gate()
        rig = Rig(gate.workflow)
        suspects = [rig.ready("wait") for _ in range(3)]
        async with rig.serving(concurrency=2):
            await eventually_async(lambda: gate.running == 2)
            # Before the first has run for a second: started, and committed.
            assert await rig.committed() == 2
            assert {answer["task_id"] for answer in rig.answers("started")} == set(suspects[:2])
            gate.opened.set()
            await eventually_async(lambda: len(rig.answers("completed")) == 3)
            gate.opened.clear()
            later = rig.ready("wait")
            await eventually_async(lambda: gate.running == 1)
            assert await rig.committed() == 3
            gate.opened.set()
            await eventually_async(lambda: rig.answer(later, "completed"))
            assert rig.answer(later, "started") is None  # it was not there, so nobody had run it

    run(scenario())


def test_a_suspect_does_not_run_while_its_start_is_not_acknowledged() -> None:
    async def scenario() -> None:
        gate = Gate()
        rig = Rig(gate.workflow)
        rig.ready("wait")

        def log_goes_away(queues: list[str]) -> None:
            rig.producer.away = True

        async with rig.serving(on_ready=log_goes_away):
            await rig.assigned()
            await asyncio.sleep(0.3)  # time in which a defect would show
            assert gate.calls == []
            rig.producer.away = False
            await eventually_async(lambda: gate.running == 1)
            gate.opened.set()

    run(scenario())


def test_a_suspect_that_is_cancelled_before_it_runs_does_not_count_as_hanging(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "_GRACE_GIVEN_UP", 0.05)
    commit = MemoryConsumer.commit

    async def scenario() -> None:
        gate = Gate()
        rig = Rig(gate.workflow)
        suspect = rig.ready("wait")
        committing = asyncio.Event()

        async def commit_later(self: MemoryConsumer, positions: Mapping[TopicPartition, int]) -> None:
            if committing.is_set():
                await commit(self, positions)

        monkeypatch.setattr(MemoryConsumer, "commit", commit_later)
        async with rig.serving(concurrency=1) as worker:
            await eventually_async(lambda: rig.answer(suspect, "started"))
            rig.say({"type": "execution.cancelled", "execution": suspect.partition("/")[0], "run": 7})
            await eventually_async(lambda: not worker._attempts.running)
            await asyncio.sleep(0.2)  # time in which a defect would show
            committing.set()
            gate.opened.set()
            later = rig.ready("wait")
            await eventually_async(lambda: rig.answer(later, "completed"))
            assert rig.answer(suspect, "completed") is None

    run(scenario())


def test_no_more_than_a_window_is_taken_beyond_the_committed_position() -> None:
    """Else a handler that kills its process would not be among its successor's suspects."""

    async def scenario() -> None:
        gate = Gate()
        rig = Rig(gate.workflow)
        async with rig.serving(concurrency=2):
            await rig.assigned()
            blocker = rig.ready("wait")
            await eventually_async(lambda: gate.running == 1)
            quick = [rig.ready("quick") for _ in range(30)]
            # The window is 4: it fills up, and the blocker is said to have started before its second is over.
            await eventually_async(lambda: rig.answer(blocker, "started"), timeout=0.9)
            await eventually_async(lambda: all(rig.answer(task_id, "completed") for task_id in quick))
            await eventually_async(lambda: _position(rig, 31))
            gate.opened.set()

    run(scenario())


def test_a_partition_counts_what_is_finished_in_a_row() -> None:
    partition = AssignedPartition(TopicPartition("t", 0), window=3, end=2)
    partition.waiting.extend(Fetched("t", 0, offset, 0, None, None) for offset in (0, 1, 5, 6))
    (_, first, suspect), (_, second, _), (_, third, late) = partition.take(), partition.take(), partition.take()
    assert suspect
    assert not late  # offset 5 was written after the assignment
    assert partition.is_full
    partition.finish(second)
    assert partition.to_commit is None
    assert partition.oldest() is first
    partition.finish(first)
    assert partition.to_commit == (2, 2)
    assert partition.is_full  # finished is not committed
    partition.committed(2)
    assert not partition.is_full
    assert partition.to_commit is None
    partition.finish(third)
    assert partition.to_commit == (6, 3)


def test_two_workers_share_and_what_runs_goes_on_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the hand-over says that a handler has started; else its second would be over before this is.
    monkeypatch.setattr("flowpilot.worker.watch._LONG", 60.0)

    async def scenario() -> None:
        gate = Gate()
        rig = Rig(gate.workflow, partitions=4)
        async with rig.serving(concurrency=8) as first:
            await rig.assigned()
            running = [rig.ready("wait", partition=n) for n in range(4)]
            await eventually_async(lambda: gate.running == 4)
            async with rig.serving(concurrency=8) as second:
                # The newcomer gets partitions; what ran in them was said to have started, and is committed.
                moved = await eventually_async(lambda: rig.answers("started"))
                assert {answer["worker_id"] for answer in moved} == {first.worker_id}
                quick = [rig.ready("quick", partition=n) for n in range(4) for _ in range(5)]
                await eventually_async(lambda: all(rig.answer(task_id, "completed") for task_id in quick))
                by = {(rig.answer(task_id, "completed") or {})["worker_id"] for task_id in quick}
                assert by == {first.worker_id, second.worker_id}
                gate.opened.set()
                await eventually_async(lambda: all(rig.answer(task_id, "completed") for task_id in running))
        assert len(gate.calls) == 4  # nothing ran twice

    run(scenario())


def test_a_stop_finishes_what_runs_and_leaves_the_rest_to_others() -> None:
    async def scenario() -> None:
        gate = Gate()
        rig = Rig(gate.workflow)
        worker = rig.worker(concurrency=2)
        serving = asyncio.create_task(worker.run())
        await rig.assigned()
        tasks = [rig.ready("wait") for _ in range(5)]
        await eventually_async(lambda: gate.running == 2)
        worker.stop()
        await asyncio.sleep(0.1)
        assert not serving.done()
        gate.opened.set()
        await asyncio.wait_for(serving, 10)
        assert {answer["task_id"] for answer in rig.answers("completed")} == set(tasks[:2])
        assert await rig.committed() == 2
        async with rig.serving():
            await eventually_async(lambda: all(rig.answer(task_id, "completed") for task_id in tasks))
        assert len(gate.calls) == 5

    run(scenario())


@pytest.mark.parametrize("step", ["wait", "wait_async"])
def test_what_does_not_end_in_the_grace_is_handed_back(step: str) -> None:
    async def scenario() -> None:
        gate = Gate()
        rig = Rig(gate.workflow)
        worker = rig.worker(concurrency=2, grace=0.2)
        serving = asyncio.create_task(worker.run())
        await rig.assigned()
        told = rig.ready(step)
        await eventually_async(lambda: rig.answer(told, "started"))
        fresh = rig.ready(step)
        await eventually_async(lambda: gate.running == 2)
        worker.stop()
        await asyncio.wait_for(serving, 10)
        lost = rig.answer(told, "failed")
        assert lost is not None  # the engine watches it: tell now, not after its heartbeat is missed
        assert (lost["error"]["kind"], lost["error"]["retryable"]) == ("worker_lost", True)
        assert rig.answer(fresh) is None
        assert await rig.committed() == 1
        gate.opened.set()
        async with rig.serving():
            await eventually_async(lambda: rig.answer(fresh, "completed"))

    run(scenario())


def test_from_a_stop_on_nothing_is_begun() -> None:
    async def scenario() -> None:
        workflow = Workflow("stopping", version="1")
        calls: list[str] = []

        @workflow.step
        async def last(ctx: StepContext) -> None:
            calls.append(ctx.idempotency_key)
            worker.stop()

        rig = Rig(workflow)
        worker = rig.worker(concurrency=1)
        for _ in range(2):
            rig.ready("last")
        await asyncio.wait_for(worker.run(), 10)
        assert len(calls) == 1

    run(scenario())


@pytest.mark.parametrize("between", [0.0, 0.1])
def test_a_second_stop_waits_for_no_handler(between: float) -> None:
    async def scenario() -> None:
        gate = Gate()
        rig = Rig(gate.workflow)
        worker = rig.worker(grace=60.0)
        serving = asyncio.create_task(worker.run())
        rig.ready("wait")
        await eventually_async(lambda: gate.running == 1)
        worker.stop()
        await asyncio.sleep(between)  # at once, or when it waits for the handler
        assert not serving.done()
        worker.stop()
        await asyncio.wait_for(serving, 5)  # the handler times out after 10
        gate.opened.set()

    run(scenario())


def test_a_stop_before_the_start_and_a_log_that_is_away_at_the_start() -> None:
    async def scenario() -> None:
        rig = Rig(Gate().workflow)
        worker = rig.worker()
        worker.stop()
        await asyncio.wait_for(worker.run(), 5)
        rig.producer.away = True
        waiting = rig.worker()
        serving = asyncio.create_task(waiting.run())
        await asyncio.sleep(0.1)
        assert not serving.done()
        waiting.stop()
        await asyncio.wait_for(serving, 5)

    run(scenario())


def test_a_lost_partition_is_read_again_by_its_next_owner() -> None:
    async def scenario() -> None:
        gate = Gate()
        rig = Rig(gate.workflow)
        async with rig.serving():
            group = await eventually_async(lambda: rig.log._groups.get("flowpilot.worker.gated"))
            await eventually_async(lambda: group.owner)
            task_id = rig.ready("wait_async")
            await eventually_async(lambda: gate.running == 1)
            group.members[0].lose()
            # Its commits are ignored now: joined again, it reads the record again and runs it a second time.
            await eventually_async(lambda: len(gate.calls) == 2)
            gate.opened.set()
            await eventually_async(lambda: rig.answer(task_id, "completed"))
            await eventually_async(lambda: _position(rig, 1))

    run(scenario())


def test_a_worker_without_room_takes_nothing_from_a_partition_it_is_given() -> None:
    """Else its backlog is read into memory, record by record, while the handlers run."""

    async def scenario() -> None:
        gate = Gate()
        rig = Rig(gate.workflow, partitions=2)
        topic = TOPICS.steps(gate.workflow.queue)
        async with rig.serving(concurrency=1) as busy:
            other = rig.worker(concurrency=1)
            serving = asyncio.create_task(other.run())
            await rig.assigned(2)
            group = rig.log._groups[TOPICS.worker_group(gate.workflow.queue)]
            mine = next(tp.partition for tp, member in group.owner.items() if member is group.members[0])
            rig.ready("wait", partition=mine)
            await eventually_async(lambda: gate.running == 1)
            tasks = [rig.ready("quick", partition=mine) for _ in range(10)]
            intake = busy._intakes[topic]
            await eventually_async(lambda: not intake._has_room.is_set())
            other.stop()
            await asyncio.wait_for(serving, 10)
            tasks += [rig.ready("quick", partition=1 - mine) for _ in range(300)]
            await rig.assigned(1)
            await asyncio.sleep(1.0)  # time in which a defect would show
            assert intake._waiting <= 10
            gate.opened.set()
            await eventually_async(lambda: all(rig.answer(task_id, "completed") for task_id in tasks[-1:]))

    run(scenario())
