"""Several versions of a workflow and one worker: what it runs, what it leaves to others, and what it learns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.authoring import Workflow
from flowpilot.ports.definitions import VersionConflict
from flowpilot.ports.log import LogUnavailable
from flowpilot_schemas.messages import NOT_SERVED
from tests.unit.worker_rig import TOPICS, Rig
from tests.waiting import eventually_async


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 30))


def version(number: int, *, changed: bool = False, name: str = "clinic") -> Workflow:
    """Step `same` has one contract in all versions, `other` another one where it is `changed`."""
    workflow = Workflow(name, version=str(number), queue="clinic")

    def same() -> str:
        return f"v{number}"

    def other(text: str, count: int = 0) -> str:
        return f"v{number}"

    def changed_other(text: str, count: int) -> str:
        return f"v{number}"

    workflow.add_step(same, name="same")
    args = {"text": "x", **({"count": 2} if changed else {})}
    workflow.add_step(changed_other if changed else other, name="other", args=args)
    workflow.add_step(same, name=f"only-{number}")
    return workflow


def known(rig: Rig) -> LogDefinitions:
    return LogDefinitions(rig.log.producer(), rig.log.reader(), TOPICS.definitions)


async def report(rig: Rig, step: str, of: Workflow, **fields: Any) -> dict[str, Any]:
    """What the worker reports on a step message of that workflow."""
    place = {"workflow": of.name, "version": of.version, "definition": of.definition.hash}
    task = rig.ready(step, **{**place, **fields})
    found = await eventually_async(lambda: rig.answer(task, "completed", "failed"))
    assert isinstance(found, dict)
    return found


async def outcome(rig: Rig, step: str, of: Workflow, **fields: Any) -> str:
    """What ran the step; or the end of the sentence that says why it was not served."""
    found = await report(rig, step, of, **fields)
    if found["type"] == "step.completed":
        return str(found["output"])
    assert (found["error"]["kind"], found["error"]["retryable"]) == (NOT_SERVED, True)
    return str(found["error"]["message"]).rpartition(": ")[2]


NEWER = "the definition was registered after the worker's"
CONTRACT = "the worker's version of the step takes or returns something else"


def test_worker_runs_its_own_and_older_steps_of_equal_contract() -> None:
    one, two, three = version(1), version(2, changed=True), version(3, changed=True)

    async def scenario() -> None:
        rig = Rig(two)
        definitions = known(rig)
        for workflow in (one, two, three):
            await definitions.register(workflow.definition)
        async with rig.serving(two):
            await rig.assigned()
            assert await outcome(rig, "same", two) == await outcome(rig, "only-2", two) == "v2"
            assert await outcome(rig, "same", one) == "v2"
            assert await outcome(rig, "other", one) == CONTRACT
            assert await outcome(rig, "only-1", one) == "it has no such step"
            assert await outcome(rig, "same", three) == await outcome(rig, "other", three) == NEWER

    run(scenario())


def test_one_worker_serves_several_versions() -> None:
    one, two, three = version(1), version(2, changed=True), version(3, changed=True)

    async def scenario() -> None:
        rig = Rig(one)
        await known(rig).register(two.definition)
        async with rig.serving(one, three):
            await rig.assigned()
            args = {"args": {"text": "x", "count": 2}}
            assert await outcome(rig, "same", one) == await outcome(rig, "other", one, **args) == "v1"
            # version 1 was registered after 2, by this worker, and 3 after it: the newest that may
            assert await outcome(rig, "same", two) == await outcome(rig, "other", two, **args) == "v3"
            assert await outcome(rig, "same", three) == "v3"

    run(scenario())


def test_applying_an_older_version_makes_it_the_newest() -> None:
    one, two = version(1), version(2)

    async def scenario() -> None:
        rig = Rig(one)
        definitions = known(rig)
        async with rig.serving(one):
            await rig.assigned()
            await definitions.register(two.definition, move_pointer=True)
            assert await outcome(rig, "same", two) == "the definition is not known to it"
            # the worker learns of it, which changes nothing of the order
            await eventually_async(lambda: _is(rig, "same", two, NEWER), timeout=10)
            await definitions.register(one.definition, move_pointer=True)  # a roll-back
            await eventually_async(lambda: _is(rig, "same", two, "v1"), timeout=10)
            await definitions.register(two.definition, move_pointer=True)  # and forward again
            await eventually_async(lambda: _is(rig, "same", two, NEWER), timeout=10)

    async def _is(rig: Rig, step: str, of: Workflow, expected: str) -> bool:
        return await outcome(rig, step, of) == expected

    run(scenario())


def test_hostile_hashes_do_not_make_it_read() -> None:
    async def scenario() -> None:
        rig = Rig(version(1))
        reader = rig.log.reader()
        asked = []
        bounds = reader.bounds

        async def counting(topic: str, partition: int) -> tuple[int, int]:
            asked.append(topic)
            return await bounds(topic, partition)

        reader.bounds = counting  # type: ignore[method-assign]
        definitions = LogDefinitions(rig.producer, reader, TOPICS.definitions)
        async with rig.serving(definitions=definitions):
            await rig.assigned()
            asked.clear()
            began = time.monotonic()
            for number in range(300):
                rig.ready("same", definition=f"sha256:{number}")
            await eventually_async(lambda: len(rig.answers()) == 300)
            assert all("not known" in found["error"]["message"] for found in rig.answers())
            assert 1 <= asked.count(TOPICS.definitions) <= 2 + 2 * (time.monotonic() - began)

    run(scenario())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"definition": ""}, "the definition is not known to it"),
        ({"workflow": "another"}, "it has no such step"),
    ],
)
def test_step_of_nobodys_definition_is_not_served(fields: dict[str, str], reason: str) -> None:
    async def scenario() -> None:
        rig = Rig(version(1))
        async with rig.serving():
            await rig.assigned()
            assert await outcome(rig, "same", version(1), **fields) == reason

    run(scenario())


def test_step_of_another_workflows_definition_is_not_served() -> None:
    one, other = version(1), version(1, name="hospital")

    async def scenario() -> None:
        rig = Rig(one)
        async with rig.serving(one, other):
            await rig.assigned()
            forged = await outcome(rig, "same", one, definition=other.definition.hash)
            assert forged == "the definition has no such step"

    run(scenario())


def test_report_says_where_the_message_was_and_how_many_partitions() -> None:
    async def scenario() -> None:
        rig = Rig(version(1), partitions=7)
        async with rig.serving():
            await rig.assigned()
            found = await report(rig, "nobody", version(1), partition=5, dispatch=3)
            assert (found["dispatch"], found["partitions"]) == (3, 7)
            assert found["broker_task_id"] == f"{TOPICS.steps('clinic')}/5/0"
            assert found["worker_id"] in found["error"]["message"]
            await eventually_async(lambda: _committed(rig))

    async def _committed(rig: Rig) -> bool:
        return await rig.committed(5) == 1

    run(scenario())


def test_two_contents_of_one_version_are_refused() -> None:
    async def scenario() -> None:
        rig = Rig(version(1))
        with pytest.raises(VersionConflict):
            await rig.worker(version(1), version(1, changed=True)).run()

    run(scenario())


class Gate(LogDefinitions):
    """Reads what is registered only while it is `open`; else waits, or fails if it `fails`."""

    def __init__(self, rig: Rig, *, fails: bool = False) -> None:
        super().__init__(rig.producer, rig.log.reader(), TOPICS.definitions)
        self._fails = fails
        self.open = asyncio.Event()
        self.open.set()
        self.asked = 0

    async def refresh(self) -> None:
        self.asked += 1
        if self._fails and not self.open.is_set():
            raise LogUnavailable("not now")
        await self.open.wait()
        await super().refresh()


def older(rig: Rig, of: Workflow, partition: int = 0) -> str:
    return rig.ready("same", partition=partition, version=of.version, definition=of.definition.hash)


@pytest.mark.parametrize("fails", [False, True])
def test_older_step_begins_after_a_reading_newer_than_its_message(fails: bool) -> None:
    one, two = version(1), version(2)

    async def scenario() -> None:
        rig = Rig(two)
        others, gate = known(rig), Gate(rig, fails=fails)
        await others.register(one.definition)
        async with rig.serving(two, definitions=gate):
            await rig.assigned()
            assert await outcome(rig, "same", one) == "v2"
            gate.open.clear()
            await others.register(one.definition, move_pointer=True)  # a roll-back
            asked, tasks = gate.asked, [older(rig, one) for _ in range(6)]  # more than there are places
            assert await outcome(rig, "same", two) == "v2"  # its own steps do not wait
            await eventually_async(lambda: gate.asked > asked)
            assert not any(rig.answer(task) for task in tasks)
            gate.open.set()
            for task in tasks:
                found = await eventually_async(lambda task=task: rig.answer(task, "completed", "failed"))
                assert found["error"]["message"].endswith(NEWER)

    run(scenario())


@pytest.mark.parametrize("handed_over", [True, False])
def test_older_step_that_waits_runs_once_across_a_rebalance(
    handed_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowpilot.worker.intake._HAND_OVER", 10.0 if handed_over else 0.1)
    one, two = version(1), version(2)

    async def scenario() -> None:
        rig = Rig(two, partitions=2)
        await known(rig).register(one.definition)
        gate = Gate(rig)
        async with rig.serving(two, definitions=gate) as worker:
            await rig.assigned()
            gate.open.clear()
            asked, tasks = gate.asked, [older(rig, one, partition) for partition in (0, 1)]
            await eventually_async(lambda: gate.asked > asked)
            async with rig.serving(two):
                [intake] = worker._intakes.values()
                if handed_over:  # the first worker waits for what it holds, before it lets a partition go
                    await eventually_async(lambda: any(not each.alive for each in intake._partitions.values()))
                else:
                    await rig.assigned(members=2)
                gate.open.set()
                for task in tasks:
                    await eventually_async(lambda task=task: rig.answer(task, "completed"))
                await rig.assigned(members=2)
                await eventually_async(lambda: _committed(rig))
        assert sorted(found["task_id"] for found in rig.answers("completed")) == sorted(tasks)

    async def _committed(rig: Rig) -> bool:
        return [await rig.committed(partition) for partition in (0, 1)] == [1, 1]

    run(scenario())


def test_stopped_worker_leaves_steps_that_wait_to_others() -> None:
    one, two = version(1), version(2)

    async def scenario() -> None:
        rig = Rig(two)
        await known(rig).register(one.definition)
        gate = Gate(rig)
        async with rig.serving(two, definitions=gate) as worker:
            await rig.assigned()
            gate.open.clear()
            asked, task = gate.asked, older(rig, one)
            await eventually_async(lambda: gate.asked > asked)
            worker.stop()
        assert rig.answers() == []
        async with rig.serving(two):
            await eventually_async(lambda: rig.answer(task, "completed"))

    run(scenario())
