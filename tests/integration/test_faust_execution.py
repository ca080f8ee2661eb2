"""The parts of the Faust binding by themselves, without a broker: batches, acknowledgement, seeking, security."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
from faust.auth import SASLCredentials

from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.engine.table import PartitionTable
from flowpilot.ports.log import Fetched, Record
from flowpilot.settings import SettingsError
from flowpilot_agents import execution, transport, watch
from flowpilot_agents.execution import Delivered, Executions
from flowpilot_agents.security import credentials
from flowpilot_agents.watch import GuardedProducer, Pulse
from tests.waiting import eventually_async


class Ended(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def _ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(sentence: str, error: BaseException | None = None) -> NoReturn:
        raise Ended(f"{sentence}: {error}")

    monkeypatch.setattr(execution, "end_process", end)
    monkeypatch.setattr(watch, "end_process", end)


class Scripted:
    """An engine that keeps its batches and finishes what it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[Fetched]] = []
        self.stopped: Mapping[int, str] = {}
        self.finish: Any = lambda batch: batch
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.under_way = 0
        self.cuts = 0

    def cut_short(self) -> None:
        self.cuts += 1

    def table(self, partition: int) -> PartitionTable:
        return PartitionTable(partition)

    async def assign(self, partition: int, committed: int | None) -> int:
        return committed or 0

    async def process(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        await self._alone()
        self.batches.append(list(batch))
        return cast(Sequence[Fetched], self.finish(list(batch)))

    async def tick(self) -> None:
        await self._alone()

    async def _alone(self) -> None:
        assert not self.under_way
        self.under_way += 1
        await self.go_on.wait()
        self.under_way -= 1

    def revoke(self, partition: int) -> None:
        assert not self.under_way


def event(offset: int, partition: int = 0) -> Fetched:
    return Fetched("events", partition, offset, 0, b"k", b"v")


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 10))


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class Scene:
    """Executions at work on a scripted engine."""

    def __init__(self, batch_size: int = 10) -> None:
        self.engine = Scripted()
        self.executions = Executions(self.engine, Pulse(60), batch_size)
        self.executions.serve()
        self.inbox: asyncio.Queue[Delivered] = asyncio.Queue()
        self.agent = asyncio.ensure_future(self.executions.run(self.inbox))

    def deliver(self, *events: Fetched, assignment: int | None = None) -> None:
        current = self.executions.assignment
        self.inbox.put_nowait(Delivered(current if assignment is None else assignment, events))

    async def end(self) -> BaseException | None:
        await turns()
        if self.agent.done():
            return self.agent.exception()
        self.agent.cancel()
        return None


def test_what_waits_becomes_one_batch_of_at_most_the_size() -> None:
    async def scene() -> None:
        made = Scene(batch_size=4)
        made.deliver(event(0), event(1), event(0, 1))
        made.deliver(event(2), event(3), event(1, 1))
        await made.end()
        assert made.engine.batches == [[event(0), event(1), event(0, 1), event(2)], [event(3), event(1, 1)]]
        assert made.executions.acknowledged == {0: 4, 1: 2}

    run(scene())


def test_what_was_fetched_under_an_earlier_assignment_is_dropped() -> None:
    async def scene() -> None:
        made = Scene()
        made.deliver(event(0), assignment=made.executions.assignment - 1)
        made.deliver(event(7))
        await made.end()
        assert made.engine.batches == [[event(7)]]

    run(scene())


def test_nothing_begins_while_the_partitions_are_given_back_and_what_waits_is_dropped() -> None:
    async def scene() -> None:
        made = Scene()
        made.deliver(event(0))
        made.executions.suspend()
        made.deliver(event(1))
        await turns()
        await made.executions.tick()
        assert await made.end() is None
        assert made.engine.batches == []

    run(scene())


def test_what_is_finished_after_the_partitions_were_given_back_is_not_acknowledged() -> None:
    async def scene() -> None:
        made = Scene()
        made.engine.go_on.clear()
        made.deliver(event(0))
        await turns()
        made.executions.suspend()
        assert not await made.executions.idle(0.01)
        made.executions.give_back()
        made.engine.go_on.set()
        await made.end()
        assert made.engine.batches == [[event(0)]]
        assert made.executions.acknowledged == {}

    run(scene())


def test_a_batch_is_cut_short_when_the_partitions_are_asked_for_and_what_it_finished_counts() -> None:
    async def scene() -> None:
        made = Scene()
        made.engine.go_on.clear()
        made.engine.finish = lambda batch: batch[:2]
        made.deliver(event(0), event(1), event(2))
        await turns()
        made.executions.suspend()
        made.engine.go_on.set()
        assert await made.executions.idle(5)
        assert (made.engine.cuts, made.executions.acknowledged) == (1, {0: 2})
        assert await made.end() is None

    run(scene())


def test_what_is_finished_in_time_is_acknowledged() -> None:
    async def scene() -> None:
        made = Scene()
        made.engine.go_on.clear()
        made.deliver(event(0))
        await turns()
        made.executions.suspend()
        asyncio.get_running_loop().call_soon(made.engine.go_on.set)
        assert await made.executions.idle(5)
        assert made.executions.acknowledged == {0: 1}
        await made.end()

    run(scene())


def test_the_engine_is_called_by_one_at_a_time() -> None:
    async def scene() -> None:
        made = Scene()
        made.engine.go_on.clear()
        made.deliver(event(0))
        others = [asyncio.ensure_future(made.executions.tick()) for _ in range(3)]
        others.append(asyncio.ensure_future(made.executions.revoke([1])))
        await turns()
        made.engine.go_on.set()
        await asyncio.gather(*others)
        assert await made.end() is None

    run(scene())


@pytest.mark.parametrize(
    ("finished", "stopped", "why"),
    [
        ([1], {}, "beyond an unfinished record"),
        ([0], {}, "neither finished nor stopped"),
        ([1], {0: "sentence"}, "beyond an unfinished record"),
    ],
)
def test_a_gap_in_what_is_finished_ends_the_process(finished: list[int], stopped: dict[int, str], why: str) -> None:
    async def scene() -> None:
        made = Scene()
        made.engine.stopped = stopped
        made.engine.finish = lambda batch: [batch[index] for index in finished]
        made.deliver(event(0), event(1), event(2))
        with pytest.raises(Ended, match=why):
            await made.agent
        assert made.executions.acknowledged == {}

    run(scene())


def test_the_first_records_of_a_partition_that_stops_are_acknowledged() -> None:
    async def scene() -> None:
        made = Scene()
        paused: list[int] = []
        made.executions.on_stopped = paused.extend

        def finish(batch: list[Fetched]) -> list[Fetched]:
            made.engine.stopped = {0: "sentence"}
            return [batch[0], batch[2]]

        made.engine.finish = finish
        made.deliver(event(0), event(1), event(5, 1))
        assert await made.end() is None
        assert made.executions.acknowledged == {0: 1, 1: 6}
        assert paused == [0]
        assert await made.executions.claim({0: 1, 1: 6}) == {1: 6}

    run(scene())


def test_a_claim_ends_when_the_assignment_does() -> None:
    async def scene() -> None:
        made = Scene()

        async def assign(partition: int, committed: int | None) -> int:
            made.executions.suspend()
            return 0

        made.engine.assign = assign  # type: ignore[method-assign]
        assert await made.executions.claim({0: None, 1: None}) == {}
        await made.end()

    run(scene())


def test_nothing_is_written_after_a_standstill() -> None:
    async def scene() -> None:
        now = 100.0
        log = MemoryLog()
        log.create_topic("t", 1)
        pulse = Pulse(4.0, lambda: now)
        producer = GuardedProducer(log.producer(), pulse)
        beating = asyncio.ensure_future(pulse.run())
        await turns()
        now += 3.9
        await producer.send([Record("t", None, b"1", 0)])
        now += 0.2
        with pytest.raises(Ended, match="stood still"):
            await producer.send([Record("t", None, b"2", 0)])
        assert await log.reader().bounds("t", 0) == (0, 1)
        beating.cancel()

    run(scene())


def test_a_seek_waits_for_the_fetch_under_way() -> None:
    async def scene() -> None:
        sought: list[object] = []

        async def seek_wait(partitions: object) -> None:
            sought.append(partitions)

        consumer: Any = object.__new__(transport.Consumer)
        consumer._fetching = asyncio.Lock()
        consumer._thread = SimpleNamespace(seek_wait=seek_wait)
        await consumer._fetching.acquire()
        seeking = asyncio.ensure_future(consumer.seek_wait({"tp": 3}))
        await turns()
        assert not sought
        consumer._fetching.release()
        await seeking
        assert sought == [{"tp": 3}]

    run(scene())


@pytest.mark.parametrize(("waiting", "shown"), [(0, True), (transport.DELIVERIES_AHEAD, False)])
def test_a_member_with_nothing_to_fetch_stays_in_the_group_and_a_stuck_one_does_not(
    waiting: int, shown: bool
) -> None:
    async def scene() -> None:
        looks = shows = 0

        def active() -> set[str]:
            nonlocal looks
            looks += 1
            return set() if shown else {"tp"}

        def show_activity() -> None:
            nonlocal shows
            shows += 1

        consumer: Any = object.__new__(transport.Consumer)
        consumer.flow_active = True
        consumer._get_active_partitions = active
        consumer._changed = asyncio.Event()
        consumer._thread = SimpleNamespace(show_activity=show_activity)
        consumer._executions = SimpleNamespace(inbox=SimpleNamespace(qsize=lambda: waiting))
        consumer.app = SimpleNamespace(conf=SimpleNamespace(broker_max_poll_interval=0.001))
        fetching = asyncio.ensure_future(consumer._until_fetchable())
        await eventually_async(lambda: looks > 5)
        assert bool(shows) == shown
        fetching.cancel()

    run(scene())


def test_security_settings_reach_the_other_client() -> None:
    assert credentials({}) is None
    assert credentials({"linger.ms": "5"}) is None
    made = credentials(
        {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "SCRAM-SHA-256",
            "sasl.username": "u",
            "sasl.password": "p",
        }
    )
    assert isinstance(made, SASLCredentials)
    assert (made.username, made.password, made.mechanism.value) == ("u", "p", "SCRAM-SHA-256")
    encrypted = credentials({"security.protocol": "sasl_ssl", "sasl.username": "u", "sasl.password": "p"})
    assert isinstance(encrypted, SASLCredentials)
    assert encrypted.ssl_context is not None
    with pytest.raises(SettingsError, match=r"sasl\.oauthbearer\.config"):
        credentials({"sasl.oauthbearer.config": "x"})
    with pytest.raises(SettingsError, match="GSSAPI"):
        credentials({"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "GSSAPI"})
