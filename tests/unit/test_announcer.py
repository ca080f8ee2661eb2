"""A worker's announcement: what it tells, when it is repeated, and that nothing about it disturbs the worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from structlog.testing import capture_logs

from flowpilot.adapters.announcer import LogAnnouncer
from flowpilot.adapters.members import LogMembers
from flowpilot.authoring import Workflow
from flowpilot.ports.log import Consumer, Delivery, LogUnavailable, Producer, Rebalanced, Record, TopicPartition
from flowpilot.worker.intake import Intake
from flowpilot.worker.worker import StepWorker
from flowpilot_schemas.members import EngineAnnounced, ServedDefinition, WorkerAnnounced, worker_key
from tests.unit.worker_rig import TOPICS, Rig
from tests.waiting import eventually_async

flow = Workflow("flow", version="1")
other = Workflow("flow", version="2")


@flow.step
def work() -> int:
    return 1


other.add_step(lambda: 2, name="work")


def announcing(
    rig: Rig, producer: Producer | None = None, **options: Any
) -> AbstractAsyncContextManager[StepWorker]:
    announcer = LogAnnouncer(producer or rig.log.producer(), TOPICS.members)
    return rig.serving(announcer=announcer, **options)


async def live(rig: Rig) -> list[WorkerAnnounced]:
    return (await LogMembers(rig.log.reader(), TOPICS.members, rig.log.producer()).live()).workers


def written(rig: Rig, worker: str) -> list[bytes | None]:
    return [record.value for record in rig.log.records(TOPICS.members) if record.key == worker_key(worker)]


def shows(rig: Rig, **partitions: list[int]) -> Callable[[], Any]:
    """Whether exactly these workers are live, each with these partitions of the queue."""

    async def look() -> bool:
        return {worker.worker: worker.queues["flow"] for worker in await live(rig)} == partitions

    return look


def test_worker_announces_its_partitions_and_definitions() -> None:
    async def scenario() -> None:
        rig = Rig(flow, partitions=3)
        async with announcing(rig, worker_id="w1", session=20.0, release="7.1"):
            await eventually_async(shows(rig, w1=[0, 1, 2]))
            [found] = await live(rig)
        assert (found.release, found.session_ms) == ("7.1", 20_000)
        hashed = flow.definition.hash
        assert found.definitions == [ServedDefinition(workflow="flow", version="1", definition=hashed)]

    asyncio.run(scenario())


def test_several_versions_in_a_worker_are_announced() -> None:
    async def scenario() -> None:
        rig = Rig(flow)
        announcer = LogAnnouncer(rig.log.producer(), TOPICS.members)
        async with rig.serving(flow, other, announcer=announcer, worker_id="w1"):
            await eventually_async(shows(rig, w1=[0]))
            [found] = await live(rig)
        assert [each.version for each in found.definitions] == ["1", "2"]

    asyncio.run(scenario())


def test_changed_assignment_is_announced_at_once() -> None:
    async def scenario() -> None:
        rig = Rig(flow, partitions=2)
        # Long sessions: what is seen is not the repetition.
        async with announcing(rig, worker_id="w1", session=120.0):
            await eventually_async(shows(rig, w1=[0, 1]))
            async with announcing(rig, worker_id="w2", session=120.0):

                async def shared() -> bool:
                    found = {worker.worker: worker.queues["flow"] for worker in await live(rig)}
                    return sorted(found.get("w1", []) + found.get("w2", [])) == [0, 1] and all(found.values())

                await eventually_async(shared)
            await eventually_async(shows(rig, w1=[0, 1]))

    asyncio.run(scenario())


def test_announcement_is_repeated_within_its_session() -> None:
    async def scenario() -> None:
        rig = Rig(flow)
        async with announcing(rig, worker_id="w1", session=1.0):
            await eventually_async(shows(rig, w1=[0]))
            before = len(written(rig, "w1"))
            began = time.monotonic()
            await eventually_async(lambda: len(written(rig, "w1")) >= before + 4)
            assert time.monotonic() - began < 4.0
            assert [worker.worker for worker in await live(rig)] == ["w1"]

    asyncio.run(scenario())


def test_worker_that_leaves_takes_its_announcement_back() -> None:
    async def scenario() -> None:
        rig = Rig(flow)
        async with announcing(rig, worker_id="w1"):
            await eventually_async(shows(rig, w1=[0]))
        assert await live(rig) == []
        assert written(rig, "w1")[-1] is None

    asyncio.run(scenario())


def test_killed_worker_expires() -> None:
    async def scenario() -> None:
        rig = Rig(flow)
        worker = rig.worker(announcer=LogAnnouncer(rig.log.producer(), TOPICS.members), worker_id="w1", session=1.0)
        running = asyncio.create_task(worker.run())
        await eventually_async(shows(rig, w1=[0]))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert None not in written(rig, "w1")
        assert [each.worker for each in await live(rig)] == ["w1"]
        await eventually_async(shows(rig))

    asyncio.run(scenario())


class Failing:
    """A producer that fails in one of the ways there are, until it is `mended`."""

    def __init__(self, producer: Producer, how: Exception | str) -> None:
        self.producer, self.how, self.mended = producer, how, False
        self.asked = 0

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        self.asked += 1
        if self.mended:
            return await self.producer.send(records)
        if isinstance(self.how, Exception):
            raise self.how
        if self.how == "hangs":
            await asyncio.Event().wait()
        return [Delivery(-1, -1, self.how) for _ in records]


FAILURES = [LogUnavailable("away"), BufferError("full"), RuntimeError("a defect"), "not authorised", "hangs"]


@pytest.mark.parametrize("how", FAILURES, ids=str)
def test_failing_announcement_does_not_disturb_the_worker(how: Exception | str) -> None:
    async def scenario() -> None:
        rig = Rig(flow)
        failing = Failing(rig.log.producer(), how)
        with capture_logs() as logs:
            async with announcing(rig, failing, worker_id="w1"):
                await eventually_async(lambda: failing.asked)
                task_id = rig.ready("work")
                await eventually_async(lambda: rig.answer(task_id, "completed"))
                began = time.monotonic()
            assert time.monotonic() - began < 5.0
        if how != "hangs":
            [warned] = [entry for entry in logs if "cannot be announced" in entry["event"]]
            assert warned["log_level"] == "warning"

    asyncio.run(scenario())


def test_hanging_announcement_holds_up_the_end_for_a_second() -> None:
    async def scenario() -> None:
        producer = Failing(Rig(flow).log.producer(), "hangs")
        producer.mended = True
        announcer = LogAnnouncer(producer, TOPICS.members)
        running = asyncio.create_task(announcer.run(lambda: ENGINE))
        await eventually_async(lambda: announcer._key)
        producer.mended = False
        began = time.monotonic()
        await announcer.leave()
        assert 0.5 < time.monotonic() - began < 3.0
        await asyncio.wait_for(running, 5)

    asyncio.run(scenario())


ENGINE = EngineAnnounced(engine="e1", started_at="", release="", rules=1, session_ms=1_000)


def test_announcement_goes_through_once_the_log_is_back() -> None:
    async def scenario() -> None:
        rig = Rig(flow)
        failing = Failing(rig.log.producer(), "not there yet")
        async with announcing(rig, failing, worker_id="w1", session=1.0):
            await eventually_async(lambda: failing.asked >= 2)
            failing.mended = True
            await eventually_async(shows(rig, w1=[0]))

    asyncio.run(scenario())


def test_announcement_that_cannot_be_made_is_a_warning() -> None:
    async def scenario() -> None:
        rig = Rig(flow)
        with capture_logs() as logs:
            async with announcing(rig, worker_id="w" * 2_000):
                task_id = rig.ready("work")
                await eventually_async(lambda: rig.answer(task_id, "completed"))
        assert "cannot be announced" in str(logs)

    asyncio.run(scenario())


def test_partitions_that_are_taken_away_are_a_change() -> None:
    async def scenario() -> None:
        rig, changes = Rig(flow, partitions=2), list[list[int]]()
        handlers: dict[str, Rebalanced] = {}

        def consumer(group: str, topics: Sequence[str], **given: Rebalanced) -> Consumer:
            handlers.update(given)
            return rig.log.consumer(group, topics)

        topic, events = TOPICS.steps("flow"), rig.worker()._attempts
        intake = Intake(
            "group", topic, consumer, rig.log.reader(), events,
            window=1, room=1, on_change=lambda: changes.append(intake.partitions),
        )  # fmt: skip
        await handlers["on_assigned"]([TopicPartition(topic, 1), TopicPartition(topic, 0)])
        await handlers["on_revoked"]([TopicPartition(topic, 0)])
        assert changes == [[0, 1], [1]]
        await intake.close()

    asyncio.run(scenario())
