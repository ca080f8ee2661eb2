"""The log: `MemoryLog` keeps the records, this is the way to it, with all that may happen on that way.

A `send` is cut into chunks, each of one partition. Chunks of a partition land in the order in which they were
sent, each once; between partitions there is no order. Until it has landed a chunk is the network's: it lands
whatever becomes of its sender meanwhile, or later (a ghost), or never, and then nothing behind it does either.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.core.murmur2 import partition_of
from flowpilot.ports.log import Delivery, Fetched, LogUnavailable, Record
from tests.simulation.loop import BEGIN, PROCESS, Loop, Process

if TYPE_CHECKING:
    from tests.simulation.plan import Plan

Place = tuple[str, int]
DELIVERY_TIMEOUT = 4.0


@dataclass
class _Sending:
    """One `send`: what came of each record so far."""

    deliveries: list[Delivery | None]
    left: int
    done: asyncio.Future[None]


@dataclass
class _Chunk:
    sending: _Sending | None
    records: list[tuple[int, Record]]
    at: float
    withheld: bool = False


@dataclass
class _Lane:
    """What a producer has on its way to one partition."""

    place: Place
    chunks: deque[_Chunk] = field(default_factory=deque)
    free_at: float = 0.0


class Broker:
    """`on_landed(record, sender)` is called for each record that is appended."""

    def __init__(self, loop: Loop, plan: Plan, chance: random.Random) -> None:
        self.loop, self.plan, self.chance = loop, plan, chance
        self._stamp = 0
        self.log = MemoryLog(clock=lambda: self._stamp)
        self._stamps: dict[Place, int] = {}
        self._ahead: dict[Place, int] = {}
        self._down: dict[Place, float] = {}
        self._spread = 0
        self.on_landed: Callable[[Fetched, Process], None] = lambda record, sender: None
        self.on_sending: Callable[[Process, Place], None] = lambda sender, place: None
        self.on_fault: Callable[[str, str], None] = lambda kind, detail: None
        self.ghosts = 0
        """Chunks of dead or paused processes that are still on their way."""

    def now_ms(self) -> int:
        return int((BEGIN + self.loop.time()) * 1_000)

    def latency(self) -> float:
        slow = self.plan.slowness if self.chance.random() < 0.05 else 1.0
        return self.plan.latency * slow * (0.2 + self.chance.random())

    # ---- what happens to partitions

    def take_down(self, place: Place, seconds: float) -> None:
        """The partition has no leader for so long; the next one's clock may be ahead."""
        self._down[place] = max(self._down.get(place, 0.0), self.loop.time() + seconds)
        if self.plan.leader_clocks:
            self._ahead[place] = self.chance.randrange(0, 1_500)

    def up_at(self, place: Place) -> float:
        """When the partition answers, in the loop's time; not later than now if it does."""
        return self._down.get(place, 0.0)

    def is_down(self, place: Place) -> bool:
        return self.up_at(place) > self.loop.time()

    def append(self, record: Record, sender: Process) -> Delivery:
        """Write it now. The broker's time never goes back within a partition."""
        place = (record.topic, self.partition(record))
        self._stamp = max(self._stamps.get(place, 0), self.now_ms() + self._ahead.get(place, 0))
        delivery = self.log.append(record._replace(partition=place[1]))
        if delivery.error is None:
            self._stamps[place] = self._stamp
            landed = Fetched(*place, delivery.offset, self._stamp, record.key, record.value, tuple(record.headers))
            self.on_landed(landed, sender)
        return delivery

    def partition(self, record: Record) -> int:
        if record.partition is not None:
            return record.partition
        count = max(1, self.log.partitions(record.topic))
        if record.key is not None:
            return partition_of(record.key, count)
        self._spread += 1
        return self._spread % count


class SimProducer:
    """See `flowpilot.ports.log.Producer`. Made by the process that uses it."""

    def __init__(self, broker: Broker) -> None:
        self._broker, self._loop = broker, broker.loop
        self._process = PROCESS.get()
        self._lanes: dict[Place, _Lane] = {}
        self._process.on_silence.append(self._silenced)
        self._process.on_resumed.append(self._resumed)

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        """See the port."""
        if self._process.dead:
            await asyncio.Event().wait()
        if not records:
            return []
        broker, plan, chance = self._broker, self._broker.plan, self._broker.chance
        sending = _Sending([None] * len(records), len(records), self._loop.create_future())
        by_place: dict[Place, list[tuple[int, Record]]] = {}
        for index, record in enumerate(records):
            by_place.setdefault((record.topic, broker.partition(record)), []).append((index, record))
        unknown = chance.random() < plan.unknown_acks
        for place, items in by_place.items():
            lane = self._lanes.get(place)
            if lane is None:
                lane = self._lanes[place] = _Lane(place)
            self._put(lane, sending, items)
        if unknown:
            await self._not_acknowledged(sending, list(by_place))
        timeout = self._loop.call_later(DELIVERY_TIMEOUT, self._timed_out, sending, list(by_place))
        try:
            await sending.done
        finally:
            timeout.cancel()
        return [delivery for delivery in sending.deliveries if delivery is not None]

    def _put(self, lane: _Lane, sending: _Sending, items: list[tuple[int, Record]]) -> None:
        chance, plan = self._broker.chance, self._broker.plan
        while items:
            size = len(items)
            if size > 1 and chance.random() < plan.splits:
                size = chance.randint(1, size)
            part, items = items[:size], items[size:]
            part = [(index, record._replace(partition=lane.place[1])) for index, record in part]
            at = max(lane.free_at, self._loop.time() + self._broker.latency())
            lane.free_at = at
            chunk = _Chunk(sending, part, at)
            lane.chunks.append(chunk)
            self._loop.later(at - self._loop.time(), self._due, lane, chunk)
        self._broker.on_sending(self._process, lane.place)

    def _due(self, lane: _Lane, chunk: _Chunk) -> None:
        """The chunk is at the broker: it lands, unless the partition has no leader now."""
        if chunk.withheld or not lane.chunks or chunk not in lane.chunks:
            return
        up = self._broker.up_at(lane.place)
        if up > self._loop.time() or lane.chunks[0] is not chunk:
            # In the order of the lane: behind whatever is before it.
            at = max(up, self._loop.time()) + 0.001
            self._loop.later(at - self._loop.time(), self._due, lane, chunk)
            return
        lane.chunks.popleft()
        if self._process.dead:
            self._broker.ghosts -= 1
        sending = chunk.sending
        for index, record in chunk.records:
            delivery = self._broker.append(record, self._process)
            if sending is not None:
                sending.deliveries[index] = delivery
                sending.left -= 1
        if sending is not None and sending.left == 0 and not sending.done.done():
            self._loop.later(self._broker.latency() / 2, _resolve, sending.done)

    def _timed_out(self, sending: _Sending, places: Iterable[Place]) -> None:
        if not sending.done.done():
            self._broker.on_fault("delivery_timeout", f"{self._process}")
            self._give_up(sending, places)
            sending.done.set_exception(LogUnavailable("no answer within the delivery timeout"))

    async def _not_acknowledged(self, sending: _Sending, places: list[Place]) -> None:
        """All of it lands, a part, or nothing; and it may land after the error was raised."""
        chance = self._broker.chance
        way = chance.choice(("landed", "part", "late"))
        self._broker.on_fault("unknown_ack", f"{self._process}: {way}")
        if way == "part":
            await asyncio.sleep(self._broker.latency())
            self._give_up(sending, places)
        elif way == "late":
            for place in places:
                self._delay(self._lanes[place], chance.random())
        else:
            await sending.done
        raise LogUnavailable("the connection broke before the answer")

    def _give_up(self, sending: _Sending, places: Iterable[Place]) -> None:
        """Of what has not landed yet, chance says how much does."""
        for place in places:
            lane = self._lanes[place]
            mine = [chunk for chunk in lane.chunks if chunk.sending is sending]
            kept = self._broker.chance.randint(0, len(mine))
            for chunk in mine[kept:]:
                lane.chunks.remove(chunk)

    def _delay(self, lane: _Lane, seconds: float) -> None:
        lane.free_at = max(lane.free_at, self._loop.time()) + seconds
        for chunk in lane.chunks:
            chunk.withheld = True
        for chunk in list(lane.chunks):
            again = _Chunk(chunk.sending, chunk.records, lane.free_at)
            lane.chunks[lane.chunks.index(chunk)] = again
            self._loop.later(again.at - self._loop.time(), self._due, lane, again)

    # ---- the process dies or stands still

    def _silenced(self, dead: bool) -> None:
        chance, plan = self._broker.chance, self._broker.plan
        for lane in self._lanes.values():
            if not lane.chunks:
                continue
            if dead:  # what stood still within the process goes with it
                lane.chunks = deque(chunk for chunk in lane.chunks if not chunk.withheld)
            chunks = list(lane.chunks)
            sent = chance.randint(0, len(chunks)) if chance.random() < 0.4 else len(chunks)
            if dead:
                for chunk in chunks[sent:]:
                    lane.chunks.remove(chunk)
                self._broker.ghosts += len(lane.chunks)
                if plan.ghosts and lane.chunks and chance.random() < 0.8:
                    self._broker.on_fault("ghost", f"{self._process}: {lane.place[0]}/{lane.place[1]}")
                    self._delay(lane, plan.ghosts * plan.session * chance.random())
            else:
                for chunk in chunks[sent:]:
                    chunk.withheld = True

    def _resumed(self) -> None:
        for lane in self._lanes.values():
            if any(chunk.withheld for chunk in lane.chunks):
                self._delay(lane, self._broker.latency())


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class SimReader:
    """See `flowpilot.ports.log.Reader`. Made by the process that uses it."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def _ask(self, topic: str, partition: int) -> None:
        broker = self._broker
        await asyncio.sleep(broker.latency())
        down = broker.is_down((topic, partition))
        if down and broker.chance.random() < 0.5:
            await asyncio.sleep(min(1.0, broker.up_at((topic, partition)) - broker.loop.time()))
            down = broker.is_down((topic, partition))
        if down:
            raise LogUnavailable(f"{topic}/{partition} has no leader")

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """See the port."""
        await self._ask(topic, partition)
        found = self._broker.log.bounds(topic, partition)
        if self._broker.chance.random() < self._broker.plan.stale_answers:
            await asyncio.sleep(self._broker.latency() * 4)
        return found

    async def partitions(self, topic: str) -> int:
        """See the port."""
        await self._ask(topic, 0)
        return self._broker.log.partitions(topic)

    async def offset_at(self, topic: str, partition: int, timestamp: int) -> int:
        """See the port."""
        await self._ask(topic, partition)
        low, end = self._broker.log.bounds(topic, partition)
        found = self._broker.log.fetch((topic, partition), low, end - low)  # type: ignore[arg-type]
        return next((record.offset for record in found if record.timestamp >= timestamp), end)

    async def read(self, topic: str, partition: int, start: int, end: int) -> list[Fetched]:
        """See the port."""
        await self._ask(topic, partition)
        found = self._broker.log.fetch((topic, partition), start, max(0, end - start))  # type: ignore[arg-type]
        return [record for record in found if record.offset < end]


class SimCatalog:
    """See `flowpilot.ports.log.TopicCatalog`."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def topic_ids(self, names: Iterable[str]) -> dict[str, str]:
        """See the port."""
        await asyncio.sleep(self._broker.latency())
        log = self._broker.log
        return {name: log.topic_id(name) for name in sorted(names) if log.partitions(name)}
