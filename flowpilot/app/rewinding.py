"""Letting the router go on with a partition whose log has lost its tail."""

from __future__ import annotations

from flowpilot.adapters.kafka.catalog import KafkaTopicCatalog
from flowpilot.adapters.kafka.config import producer_properties, reader_properties
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.app.triggers import TopicMissing
from flowpilot.app.workflows import open_definitions
from flowpilot.core.errors import FlowPilotError
from flowpilot.ports.definitions import Definitions, Registration
from flowpilot.router.positions import Positions, rank
from flowpilot.settings import Settings
from flowpilot_schemas.triggers import TriggerPosition


class NothingBeyond(FlowPilotError):
    """No position is beyond the offset."""


async def rewind(settings: Settings, topic: str, partition: int, offset: int) -> list[str]:
    """Move every position on the partition that is beyond `offset` back to it; the workflows (`*`: on
    `<namespace>.triggers`) that they are of. Raises `TopicMissing`, `NothingBeyond`, `LogUnavailable`."""
    ids = await KafkaTopicCatalog(settings).topic_ids([topic])
    if topic not in ids:
        raise TopicMissing(topic)
    producer = KafkaProducer(producer_properties(settings))
    reader = KafkaReader(reader_properties(settings))
    try:
        async with open_definitions(settings) as definitions:
            positions = Positions(producer, reader, settings.topics.positions)
            found = await move_back(positions, definitions, topic, ids[topic], partition, offset)
    finally:
        producer.close()
        reader.close()
    if not found:
        raise NothingBeyond(f"no position on {topic}/{partition} is beyond offset {offset}; nothing was changed")
    return found


async def move_back(
    positions: Positions, definitions: Definitions, topic: str, topic_id: str, partition: int, offset: int
) -> list[str]:
    """As `rewind`; [] if no position is beyond `offset`."""
    await positions.refresh()
    moved = {}
    for key in positions.known():
        if key[1:] != (topic, partition, topic_id):
            continue
        at = (definitions.registration(key.workflow) or Registration(0)).at
        known = [each for each in positions.of(key) if each.registered <= at]
        if any(each.next_offset > offset for each in known):
            registered = max(known, key=rank).registered
            moved[key] = TriggerPosition(next_offset=offset, registered=registered)
    await positions.write(moved, list(moved))
    return sorted(key.workflow for key in moved)
