"""How the topics that start executions are read, seen from outside: what `flowpilot doctor` says of them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from flowpilot.adapters.kafka.admin import KafkaAdmin
from flowpilot.adapters.kafka.catalog import KafkaTopicCatalog
from flowpilot.adapters.kafka.config import producer_properties, reader_properties
from flowpilot.adapters.kafka.groups import KafkaGroups
from flowpilot.adapters.kafka.offsets import KafkaTriggerReader
from flowpilot.adapters.kafka.producer import DeferredProducer
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.app.workflows import open_definitions
from flowpilot.ports.definitions import Definitions, Registration
from flowpilot.ports.log import LogUnavailable, TopicPartition
from flowpilot.router.beginning import TailLost
from flowpilot.router.positions import Positions
from flowpilot.router.routing import routes
from flowpilot.settings import Settings
from flowpilot_schemas.triggers import PositionKey, TriggerPosition

# Seconds between two looks: a router commits every second, and opens a partition in less.
BETWEEN = 4.0


class Trouble(NamedTuple):
    """What is wrong with a partition, or with a topic. `is_passing`: it may be of this moment only."""

    place: str
    detail: str
    remedy: str | None = None
    is_passing: bool = False
    is_grave: bool = True


@dataclass
class Sight:
    """What one look saw. `readers`: by topic, its workflows, each with the time of its registration; `bounds`: by
    partition its bounds, or why they are not known; `assigned`: None while no router runs; `read_to`: how far the
    group says that it read a topic of this id; `others`: how many positions are of no such partition."""

    readers: Mapping[str, Mapping[str, int]]
    ids: Mapping[str, str]
    bounds: Mapping[TopicPartition, tuple[int, int] | str]
    assigned: Collection[TopicPartition] | None
    positions: Mapping[PositionKey, list[TriggerPosition]]
    read_to: Mapping[TopicPartition, tuple[int, str]] = field(default_factory=dict)
    others: int = 0


def look(settings: Settings, timeout: float) -> Sight:
    """Look once. Raises `LogUnavailable`, `AdminError`."""
    return asyncio.run(_look(settings, timeout))


async def _look(settings: Settings, timeout: float) -> Sight:
    topics = settings.topics
    admin, groups = KafkaAdmin(settings, timeout=timeout), KafkaGroups(settings, timeout=timeout)
    producer = DeferredProducer(producer_properties(settings))
    reader = KafkaReader(reader_properties(settings), timeout=timeout)
    trigger_reader = KafkaTriggerReader(settings, reader_properties(settings))
    try:
        async with open_definitions(settings) as definitions:
            where = routes(definitions, topics, settings.limits)
            readers = {
                topic: {name: _registered(definitions, name) for name in names}
                for topic, names in where.readers.items()
            }
        ids = await KafkaTopicCatalog(settings).topic_ids(readers)
        positions = Positions(producer, reader, topics.positions)
        # Before the ends: an honest position is never beyond an end that is asked for later.
        await positions.refresh(frozenset((name, topic, ids[topic]) for topic in ids for name in readers[topic]))
        partitions = [
            TopicPartition(topic, number)
            for topic in sorted(ids)
            for number in range(await asyncio.to_thread(admin.partitions, topic))
        ]
        bounds = await asyncio.gather(*(_bounds(trigger_reader, each) for each in partitions))
        members = (await asyncio.to_thread(groups.members, [topics.router_group]))[topics.router_group]
        assigned = {TopicPartition(*each) for member in members for each in member.partitions}
        return Sight(
            readers=readers,
            ids=ids,
            bounds=dict(zip(partitions, bounds, strict=True)),
            assigned=assigned if members else None,
            positions={key: positions.of(key) for key in positions.known()},
            read_to=await asyncio.to_thread(groups.noted, topics.router_group),
            others=positions.others,
        )
    finally:
        producer.close()
        reader.close()
        trigger_reader.close()


def _registered(definitions: Definitions, name: str) -> int:
    return (definitions.registration(name) or Registration(0)).at


async def _bounds(reader: KafkaTriggerReader, partition: TopicPartition) -> tuple[int, int] | str:
    try:
        return await reader.bounds(*partition)
    except LogUnavailable as error:
        return str(error)


def troubles(now: Sight, before: Sight | None = None) -> Iterator[Trouble]:
    """What is wrong, the worst of each partition alone; with `before`, an earlier look, also what does not move."""
    for topic in sorted(now.readers.keys() - now.ids.keys()):
        who = ", ".join(sorted(now.readers[topic]))
        detail = f"{who} cannot be triggered: there is no topic {topic}, or it may not be described"
        yield Trouble(topic, detail, "create the topic, or let FlowPilot describe and read it", is_grave=False)
    for partition, bounds in now.bounds.items():
        found = list(_of_partition(now, before, partition, bounds))
        yield from sorted(found, key=lambda trouble: not trouble.is_grave)[:1]


def _of_partition(
    now: Sight, before: Sight | None, partition: TopicPartition, bounds: tuple[int, int] | str
) -> Iterator[Trouble]:
    place = f"{partition.topic}/{partition.partition}"
    if isinstance(bounds, str):
        yield Trouble(place, f"it cannot be read: {bounds}", "see to the topic's leaders and to FlowPilot's rights")
        return
    _, end = bounds
    topic_id = now.ids[partition.topic]
    read, of = now.read_to.get(partition, (0, topic_id))
    if now.assigned is not None and partition not in now.assigned:
        yield Trouble(place, "no router has it, though some run", "flowpilot router", is_passing=True)
    for workflow, registered in now.readers[partition.topic].items():
        key = PositionKey(workflow, *partition, topic_id)
        known = now.positions.get(key, [])
        true = [each for each in known if each.next_offset <= end and each.registered <= registered]
        beyond = [each for each in known if each.next_offset > end]
        if beyond and of == topic_id and read > end:
            lost = TailLost(partition, end, read)
            yield Trouble(
                place, str(lost), f"flowpilot trigger rewind {partition.topic} {partition.partition} {end}"
            )
        elif len(true) < len(known):
            wrong = next(each for each in known if each not in true)
            what = f"offset {wrong.next_offset}, of {end}" if wrong in beyond else "a registration to come"
            yield Trouble(
                place,
                f"somebody wrote a position of {workflow} that cannot be true ({what}); it is ignored",
                f"let only routers write to the positions topic; a router that runs writes its own over {place}",
                is_grave=False,
            )
        if now.assigned is None or partition not in now.assigned:
            continue
        if not true:
            yield Trouble(
                place,
                f"a router has it and has not opened it for {workflow}",
                "see why in the router's log",
                is_passing=True,
            )
        elif before is not None and true[0].next_offset < end and _stands_still(before, partition, key, true[0]):
            yield Trouble(
                place,
                f"{workflow} stands still at offset {true[0].next_offset} of {end}",
                "see why in the router's log",
                is_passing=True,
            )


def _stands_still(before: Sight, partition: TopicPartition, key: PositionKey, position: TriggerPosition) -> bool:
    bounds = before.bounds.get(partition)
    waited = isinstance(bounds, tuple) and bounds[1] > position.next_offset
    return waited and position in before.positions.get(key, []) and partition in (before.assigned or ())


def lags(now: Sight) -> bool:
    """Whether some workflow has records to read."""
    ends = {partition: bounds[1] for partition, bounds in now.bounds.items() if isinstance(bounds, tuple)}
    return any(
        known and known[0].next_offset < ends.get(TopicPartition(key.topic, key.partition), 0)
        for key, known in now.positions.items()
    )
