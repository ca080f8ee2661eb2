"""Who is live, read from the members topic: one behaviour, in memory and on Kafka."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from flowpilot.adapters import members as adapter
from flowpilot.adapters.members import LogMembers
from flowpilot.ports.log import Delivery, LogUnavailable, Record
from flowpilot_schemas.codec import encode, encode_message
from flowpilot_schemas.members import (
    LONGEST_SESSION_MS,
    EngineAnnounced,
    ServedDefinition,
    WorkerAnnounced,
    worker_announced,
)
from flowpilot_schemas.topics import MEMBER_MESSAGE
from tests.contract.logs import MEMORY_AND_KAFKA, Log, open_log
from tests.waiting import eventually_async

run = asyncio.run
ORDERS = ServedDefinition(workflow="orders", version="1", definition="sha256:" + "a" * 64)


@pytest.fixture(params=MEMORY_AND_KAFKA)
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    yield from open_log(request.param, request)


def worker(name: str, session_ms: int = 30_000, **fields: Any) -> WorkerAnnounced:
    return worker_announced(
        name,
        **{
            "started_at": "2026-01-01T00:00:00.000Z",
            "release": "0.1.0",
            "queues": {"default": [0, 3]},
            "definitions": [ORDERS],
            "session_ms": session_ms,
            **fields,
        },
    )


def engine(name: str, rules: int, session_ms: int = 30_000) -> EngineAnnounced:
    return EngineAnnounced(
        engine=name, started_at="2026-01-01T00:00:00.000Z", release="0.1.0", rules=rules, session_ms=session_ms
    )


class Scene:
    """The topic, who writes to it, and who reads it."""

    def __init__(self, log: Log) -> None:
        self.topic = log.topic(compacted=True)
        self.producer, self.reader = log.producer(), log.reader()
        self.members = LogMembers(self.reader, self.topic, self.producer)

    async def announce(self, *announced: WorkerAnnounced | EngineAnnounced) -> None:
        await self.write(*((each.key, encode_message(each)) for each in announced))

    async def write(self, *records: tuple[bytes, bytes | None]) -> None:
        deliveries = await self.producer.send([Record(self.topic, key, value, 0) for key, value in records])
        assert all(delivery.error is None for delivery in deliveries)

    async def workers(self) -> list[str]:
        return [each.worker for each in (await self.members.live()).workers]


def test_announced_workers_and_engines_are_live(log: Log) -> None:
    async def scenario() -> None:
        scene = Scene(log)
        assert await scene.workers() == []
        await scene.announce(worker("w2"), engine("e1", 3), worker("w1"))
        live = await scene.members.live()
        assert live.workers == [worker("w1"), worker("w2")]
        assert live.engines == [engine("e1", 3)]
        assert live.is_complete
        assert abs(live.at - time.time() * 1_000) < 60_000  # the broker's clock is this machine's, in a test

    run(scenario())


def test_newest_announcement_of_a_worker_counts(log: Log) -> None:
    async def scenario() -> None:
        scene = Scene(log)
        await scene.announce(worker("w1"), worker("w1", queues={"default": [1]}))
        [found] = (await scene.members.live()).workers
        assert found.queues == {"default": [1]}

    run(scenario())


def test_worker_that_left_is_not_live(log: Log) -> None:
    async def scenario() -> None:
        scene = Scene(log)
        await scene.announce(worker("w1"), worker("w2"))
        await scene.write((worker("w1").key, None))
        assert await scene.workers() == ["w2"]

    run(scenario())


def test_worker_expires_with_its_session_without_a_later_record(log: Log) -> None:
    async def scenario() -> None:
        scene = Scene(log)
        await scene.announce(worker("short", 1_000), worker("long"))
        assert await scene.workers() == ["long", "short"]

        async def expired() -> bool:
            return await scene.workers() == ["long"]

        await eventually_async(expired)

    run(scenario())


def test_sessions_are_not_judged_by_this_machines_clock(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        scene = Scene(log)
        await scene.announce(worker("w1"))
        far = time.time() + 86_400
        monkeypatch.setattr(time, "time", lambda: far)
        assert await scene.workers() == ["w1"]

    run(scenario())


def test_reader_that_may_not_write_judges_by_the_newest_record(log: Log) -> None:
    class Refused:
        async def send(self, records: Sequence[Record]) -> list[Delivery]:
            return [Delivery(-1, -1, "not authorised") for _ in records]

    async def scenario() -> None:
        scene = Scene(log)
        for members in (
            LogMembers(scene.reader, scene.topic),
            LogMembers(scene.reader, scene.topic, Refused()),
        ):
            assert (await members.live()).workers == []
        await scene.announce(worker("w1", 1_000))
        await asyncio.sleep(1.1)  # nothing to wait for: that nothing happens is the point
        await scene.announce(worker("w2"))
        for members in (
            LogMembers(scene.reader, scene.topic),
            LogMembers(scene.reader, scene.topic, Refused()),
        ):
            assert [each.worker for each in (await members.live()).workers] == ["w2"]

    run(scenario())


HOSTILE = [
    (b"worker/x", b"\xff\xfe"),
    (b"worker/x", b"not JSON"),
    (b"worker/x", b"[]"),
    (b"worker/x", b"{}"),
    (b"worker/x", b'{"v": 2, "type": "worker.announced"}'),
    (b"worker/x", b'{"v": 1, "type": "worker.announced"}'),
    (b"worker/x", b'{"v": 1, "type": ["worker.announced"]}'),
    (b"worker/x", encode_message(worker("y"))),  # under another's key
    (b"engine/x", encode_message(worker("x"))),
    (b"worker/w1", encode_message(engine("w1", 1))),
    (b"worker/w1", b"[" * 100_000),
    (b"worker/w1", encode({**worker("w1").model_dump(), "session_ms": LONGEST_SESSION_MS + 1})),
    (b"worker/w1", encode({**worker("w1").model_dump(), "session_ms": "30000"})),
    (b"worker/w1", encode({**worker("w1").model_dump(), "queues": {"default": [-1]}})),
    (b"worker/w1", b"\x00" * (MEMBER_MESSAGE + 1)),
    (b"\xff\xfe", encode_message(worker("w1"))),
    (b"", b""),
    (b"clock", encode_message(worker("clock"))),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_hostile_records_are_skipped(log: Log, after: bool) -> None:
    async def scenario() -> None:
        scene = Scene(log)
        if after:
            await scene.announce(worker("w1"))
        await scene.write(*HOSTILE)
        if not after:
            await scene.announce(worker("w1"))
        assert (await scene.members.live()).workers == [worker("w1")]

    run(scenario())


def test_only_a_bounded_number_of_records_is_read(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "MOST_RECORDS", 600)

    async def scenario() -> None:
        scene = Scene(log)
        await scene.announce(worker("w1"))
        await scene.write(*((f"worker/forged-{n}".encode(), b"{}") for n in range(1_000)))
        await scene.announce(worker("w2"))
        live = await scene.members.live()
        assert not live.is_complete
        assert [each.worker for each in live.workers] == ["w2"]

    run(scenario())


def test_only_a_bounded_number_of_bytes_is_read(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "MOST_BYTES", 1_000_000)

    async def scenario() -> None:
        scene = Scene(log)
        await scene.announce(worker("w1"))
        for _ in range(4):
            await scene.write(*((b"worker/x", b"x" * 10_000) for n in range(250)))
        await scene.announce(worker("w2"))
        live = await scene.members.live()
        assert not live.is_complete
        assert [each.worker for each in live.workers] == ["w2"]

    run(scenario())


def test_an_unknown_topic_is_unavailable(log: Log) -> None:
    async def scenario() -> None:
        with pytest.raises(LogUnavailable):
            await LogMembers(log.reader(), "no-such-topic", log.producer()).live()

    run(scenario())
