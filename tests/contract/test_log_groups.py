"""Consumer groups: one behaviour, in memory and on Kafka."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

import pytest

from flowpilot.ports.log import Fetched, Record, TopicPartition
from tests.contract.logs import MEMORY_AND_KAFKA, Log, open_log
from tests.waiting import eventually_async

run = asyncio.run


@pytest.fixture(params=MEMORY_AND_KAFKA)
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    yield from open_log(request.param, request)


class Member:
    """A consumer and what its handlers were told."""

    def __init__(self, log: Log, topic: str, group: str = "g") -> None:
        self.assigned: set[int] = set()
        self.told: list[tuple[str, list[int]]] = []
        self.seek_to: dict[int, int] = {}
        self.pause: set[int] = set()
        self.commit_on_loss: int | None = None
        self.topic = topic
        self.consumer = log.consumer(group, [topic], on_assigned=self._gained, on_revoked=self._lost)

    async def _gained(self, partitions: Sequence[TopicPartition]) -> None:
        await asyncio.sleep(0)
        numbers = sorted(tp.partition for tp in partitions)
        self.told.append(("assigned", numbers))
        self.assigned |= set(numbers)
        for number in numbers:
            if number in self.seek_to:
                self.consumer.seek(TopicPartition(self.topic, number), self.seek_to[number])
            if number in self.pause:
                self.consumer.pause([TopicPartition(self.topic, number)])

    async def _lost(self, partitions: Sequence[TopicPartition]) -> None:
        if self.commit_on_loss is not None:
            await self.consumer.commit(dict.fromkeys(partitions, self.commit_on_loss))
        numbers = sorted(tp.partition for tp in partitions)
        self.told.append(("revoked", numbers))
        self.assigned -= set(numbers)

    async def take(self, count: int) -> list[Fetched]:
        """Poll until so many records have come."""
        found: list[Fetched] = []

        async def enough() -> bool:
            found.extend(await self.consumer.poll(100, 0.05))
            return len(found) >= count

        await eventually_async(enough, what=f"{count} records")
        return found

    async def settle(self, *partitions: int) -> None:
        """Poll until exactly these are assigned."""

        async def settled() -> bool:
            assert await self.consumer.poll(100, 0.05) == []
            return self.assigned == set(partitions)

        await eventually_async(settled, what=f"assignment of {partitions}")


def tp(topic: str, partition: int = 0) -> TopicPartition:
    return TopicPartition(topic, partition)


async def fill(log: Log, topic: str, count: int, partition: int = 0) -> None:
    await log.producer().send([Record(topic, None, str(n).encode(), partition) for n in range(count)])


def offsets(found: list[Fetched], partition: int = 0) -> list[int]:
    return [item.offset for item in found if item.partition == partition]


def test_a_poll_takes_what_is_there_and_waits_for_the_first_only(log: Log) -> None:
    topic = log.topic()

    async def scenario() -> None:
        member = Member(log, topic)
        await member.settle(0)
        await fill(log, topic, 5)
        loop = asyncio.get_running_loop()
        before = loop.time()
        found = await member.consumer.poll(100, 60)
        assert loop.time() - before < 30
        assert found
        found += await member.take(5 - len(found)) if len(found) < 5 else []
        assert [item.value for item in found] == [b"0", b"1", b"2", b"3", b"4"]
        assert await member.consumer.poll(100, 0.01) == []
        await fill(log, topic, 7)
        limited = await member.consumer.poll(2, 10)
        assert 1 <= len(limited) <= 2
        await member.consumer.close()

    run(scenario())


def test_a_record_wakes_a_waiting_poll(log: Log) -> None:
    topic = log.topic()

    async def scenario() -> None:
        member = Member(log, topic)
        await member.settle(0)
        waiting = asyncio.create_task(member.consumer.poll(10, 60))
        await fill(log, topic, 1)
        assert offsets(await asyncio.wait_for(waiting, 30)) == [0]
        await member.consumer.close()

    run(scenario())


def test_what_is_not_committed_comes_again(log: Log) -> None:
    topic = log.topic()

    async def scenario() -> None:
        await fill(log, topic, 10)
        first = Member(log, topic)
        assert offsets(await first.take(10)) == list(range(10))
        await first.consumer.commit({tp(topic): 4})
        await first.consumer.close()
        second = Member(log, topic)
        assert offsets(await second.take(6)) == [4, 5, 6, 7, 8, 9]
        await second.consumer.close()

    run(scenario())


def test_a_member_commits_while_it_leaves(log: Log) -> None:
    topic = log.topic()

    async def scenario() -> None:
        await fill(log, topic, 3)
        first = Member(log, topic)
        first.commit_on_loss = 2
        await first.take(3)
        await first.consumer.close()
        second = Member(log, topic)
        assert offsets(await second.take(1)) == [2]
        await second.consumer.close()

    run(scenario())


def test_a_commit_does_not_wait_for_a_poll(log: Log) -> None:
    topic = log.topic()

    async def scenario() -> None:
        member = Member(log, topic)
        await member.settle(0)
        waiting = asyncio.create_task(member.consumer.poll(10, 30))
        await asyncio.sleep(0)
        await asyncio.wait_for(member.consumer.commit({tp(topic): 7}), 10)
        assert await asyncio.wait_for(member.consumer.committed([tp(topic)]), 10) == {tp(topic): 7}
        assert not waiting.done()
        await fill(log, topic, 1)
        assert offsets(await asyncio.wait_for(waiting, 20)) == [0]
        await member.consumer.close()

    run(scenario())


def test_positions_belong_to_the_group(log: Log) -> None:
    topic = log.topic(2)

    async def scenario() -> None:
        member = Member(log, topic)
        await member.settle(0, 1)
        await member.consumer.commit({tp(topic, 0): 5})
        await member.consumer.commit({})
        assert await member.consumer.committed([tp(topic, 0), tp(topic, 1)]) == {
            tp(topic, 0): 5,
            tp(topic, 1): None,
        }
        other = Member(log, topic, "h")
        assert await other.consumer.committed([tp(topic, 0)]) == {tp(topic, 0): None}
        await other.consumer.close()
        await member.consumer.close()

    run(scenario())


def test_two_members_share_the_partitions(log: Log) -> None:
    topic = log.topic(4)

    async def scenario() -> None:
        first = Member(log, topic)
        await first.settle(0, 1, 2, 3)
        second = Member(log, topic)

        async def shared() -> bool:
            await asyncio.gather(first.consumer.poll(10, 0.05), second.consumer.poll(10, 0.05))
            return len(first.assigned) == len(second.assigned) == 2

        await eventually_async(shared)
        assert first.assigned | second.assigned == {0, 1, 2, 3}
        kept = {n for n in range(4) if ("revoked", [n]) not in first.told}
        assert first.assigned <= kept  # cooperative: what stays is never revoked

        for partition in range(4):
            await fill(log, topic, 3, partition)
        found = await first.take(6), await second.take(6)
        for member, taken in zip((first, second), found, strict=True):
            assert {item.partition for item in taken} == member.assigned
            for partition in member.assigned:
                assert offsets(taken, partition) == [0, 1, 2]

        await first.consumer.commit({tp(topic, n): 3 for n in first.assigned})
        gone = set(first.assigned)
        await first.consumer.close()
        assert first.assigned == set()
        await second.settle(0, 1, 2, 3)
        assert ("assigned", sorted(gone)) in second.told
        await second.consumer.close()
        assert second.assigned == set()

    run(scenario())


def test_a_member_commits_while_its_partitions_are_taken(log: Log) -> None:
    """`on_revoked` runs to its end before another member has the partition: nothing is delivered twice."""
    topic = log.topic(4)

    async def scenario() -> None:
        for partition in range(4):
            await fill(log, topic, 10, partition)
        seen: list[tuple[int, int]] = []
        members: list[Member] = []

        class Committing(Member):
            positions: dict[TopicPartition, int]

            async def _lost(self, partitions: Sequence[TopicPartition]) -> None:
                await self.consumer.commit({p: self.positions[p] for p in partitions if p in self.positions})
                await super()._lost(partitions)

            async def step(self) -> None:
                for item in await self.consumer.poll(3, 0.05):
                    assert item.partition in self.assigned
                    seen.append((item.partition, item.offset))
                    self.positions[tp(topic, item.partition)] = item.offset + 1

        def join() -> None:
            member = Committing(log, topic)
            member.positions = {}
            members.append(member)

        join()
        await eventually_async(lambda: _stepped(members, lambda: len(seen) >= 5))
        join()
        await eventually_async(lambda: _stepped(members, lambda: len(seen) >= 40))
        assert sorted(seen) == [(partition, offset) for partition in range(4) for offset in range(10)]
        for member in members:
            await member.consumer.close()

    async def _stepped(members: list[Member], enough: object) -> bool:
        await asyncio.gather(*(member.step() for member in members))  # type: ignore[attr-defined]
        return bool(enough())  # type: ignore[operator]

    run(scenario())


def test_seek_between_polls(log: Log) -> None:
    topic = log.topic()

    async def scenario() -> None:
        await fill(log, topic, 20)
        member = Member(log, topic)
        assert offsets(await member.take(20)) == list(range(20))
        member.consumer.seek(tp(topic), 15)
        assert offsets(await member.take(5)) == [15, 16, 17, 18, 19]
        member.consumer.seek(tp(topic), 3)
        member.consumer.seek(tp(topic), 18)
        assert offsets(await member.take(2)) == [18, 19]
        await member.consumer.close()

    run(scenario())


def test_seek_where_records_wait_to_be_polled(log: Log) -> None:
    topic = log.topic()

    async def scenario() -> None:
        await fill(log, topic, 50)
        member = Member(log, topic)
        first = await member.take(1)
        taken = offsets(first) + offsets(await member.consumer.poll(3, 0.2))
        assert taken == list(range(len(taken)))
        member.consumer.seek(tp(topic), 0)
        assert offsets(await member.take(50)) == list(range(50))
        await member.consumer.close()

    run(scenario())


def test_seek_during_a_poll(log: Log) -> None:
    topic = log.topic()

    async def scenario() -> None:
        member = Member(log, topic)
        await member.settle(0)
        await fill(log, topic, 3)
        await member.take(3)
        waiting = asyncio.create_task(member.consumer.poll(10, 2))
        await asyncio.sleep(0)
        member.consumer.seek(tp(topic), 1)
        await fill(log, topic, 1)
        found = await waiting
        # Either this poll saw the seek already or the next does; nothing from before it is delivered.
        found += await member.take(3 - len(found)) if len(found) < 3 else []
        assert offsets(found) == [1, 2, 3]
        await member.consumer.close()

    run(scenario())


def test_seek_in_the_assignment_handler(log: Log) -> None:
    topic = log.topic(2)

    async def scenario() -> None:
        await fill(log, topic, 10)
        await fill(log, topic, 10, 1)
        member = Member(log, topic)
        member.seek_to = {0: 7}
        found = await member.take(13)
        assert offsets(found, 0) == [7, 8, 9]
        assert offsets(found, 1) == list(range(10))
        await member.consumer.close()

    run(scenario())


def test_pause_and_resume(log: Log) -> None:
    topic = log.topic(2)

    async def scenario() -> None:
        member = Member(log, topic)
        await member.settle(0, 1)
        member.consumer.pause([tp(topic, 0)])
        await fill(log, topic, 5)
        await fill(log, topic, 5, 1)
        assert {item.partition for item in await member.take(5)} == {1}
        assert await member.consumer.poll(10, 0.2) == []
        member.consumer.resume([tp(topic, 0)])
        assert offsets(await member.take(5)) == list(range(5))
        await member.consumer.close()

    run(scenario())


def test_pause_in_the_assignment_handler(log: Log) -> None:
    topic = log.topic(2)

    async def scenario() -> None:
        await fill(log, topic, 5)
        await fill(log, topic, 5, 1)
        member = Member(log, topic)
        member.pause = {1}
        member.seek_to = {1: 2}
        assert {item.partition for item in await member.take(5)} == {0}
        assert await member.consumer.poll(10, 0.2) == []
        member.consumer.resume([tp(topic, 1)])
        assert offsets(await member.take(3), 1) == [2, 3, 4]
        await member.consumer.close()

    run(scenario())


def test_pause_during_a_poll(log: Log) -> None:
    topic = log.topic()

    async def scenario() -> None:
        member = Member(log, topic)
        await member.settle(0)
        for _ in range(20):
            waiting = asyncio.create_task(member.consumer.poll(10, 0.02))
            await asyncio.sleep(0)
            member.consumer.pause([tp(topic)])
            await asyncio.sleep(0)
            member.consumer.resume([tp(topic)])
            assert await waiting == []
        await fill(log, topic, 1)
        assert offsets(await member.take(1)) == [0]
        await member.consumer.close()

    run(scenario())


def test_a_pause_ends_with_the_assignment(log: Log) -> None:
    topic = log.topic(2)

    async def scenario() -> None:
        first = Member(log, topic)
        await first.settle(0, 1)
        for partition in (0, 1):
            await fill(log, topic, 2, partition)
        await first.take(4)
        first.consumer.pause([tp(topic, 0), tp(topic, 1)])
        first.commit_on_loss = 2
        second = Member(log, topic)

        async def shared() -> bool:
            assert await first.consumer.poll(10, 0.05) == []
            assert await second.consumer.poll(10, 0.05) == []
            return len(first.assigned) == len(second.assigned) == 1

        await eventually_async(shared)
        [moved] = second.assigned
        await fill(log, topic, 3, moved)
        await second.take(3)
        second.commit_on_loss = 5
        await second.consumer.close()
        await first.settle(0, 1)
        await fill(log, topic, 4, moved)
        await fill(log, topic, 4, 1 - moved)
        # From where the other left it; what was kept is still paused.
        assert offsets(await first.take(4), moved) == [5, 6, 7, 8]
        assert await first.consumer.poll(10, 0.2) == []
        await first.consumer.close()

    run(scenario())


def test_a_sought_partition_stays_paused(log: Log) -> None:
    topic = log.topic()

    async def scenario() -> None:
        member = Member(log, topic)
        await member.settle(0)
        await fill(log, topic, 5)
        await member.take(5)
        member.consumer.pause([tp(topic)])
        member.consumer.seek(tp(topic), 2)
        assert await member.consumer.poll(10, 0.2) == []
        member.consumer.resume([tp(topic)])
        assert offsets(await member.take(3)) == [2, 3, 4]
        await member.consumer.close()

    run(scenario())


def test_a_cancelled_poll_loses_nothing(log: Log) -> None:
    topic = log.topic()

    async def scenario() -> None:
        member = Member(log, topic)
        await member.settle(0)
        for round_number in range(5):
            waiting = asyncio.create_task(member.consumer.poll(10, 10))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await fill(log, topic, 1)
            assert offsets(await member.take(1)) == [round_number]
        await member.consumer.close()

    run(scenario())


def test_a_failing_handler_fails_the_poll(log: Log) -> None:
    topic = log.topic()

    async def broken(_: Sequence[TopicPartition]) -> None:
        raise ArithmeticError("in the handler")

    async def scenario() -> None:
        consumer = log.consumer("g", [topic], on_assigned=broken)

        async def polled() -> bool:
            await consumer.poll(10, 0.05)
            return False

        with pytest.raises(ArithmeticError):
            await eventually_async(polled)
        with contextlib.suppress(ArithmeticError):
            await consumer.close()

    run(scenario())


def test_a_commit_for_a_partition_that_moved_away_is_no_error(log: Log) -> None:
    topic = log.topic()

    async def scenario() -> None:
        first = Member(log, topic)
        await first.settle(0)
        await first.consumer.close()
        await first.consumer.commit({tp(topic): 5})
        second = Member(log, topic)
        assert await second.consumer.committed([tp(topic)]) == {tp(topic): None}
        await second.consumer.close()

    run(scenario())
