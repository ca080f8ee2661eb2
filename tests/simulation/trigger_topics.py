"""Users' topics come, go and grow while the router reads them, and somebody writes positions."""

from __future__ import annotations

import random

from flowpilot.ports.log import Record
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.triggers import PositionKey, TriggerPosition
from tests.simulation.loop import WORLD
from tests.simulation.workflows import TOPICS
from tests.simulation.world import World

MOST = 4  # partitions of a topic
NOTICED_WITHIN = 3.0  # seconds: how often members look at the partitions that there are


class TriggerTopics:
    """Each method is one fault; whether there was any."""

    def __init__(self, world: World) -> None:
        self._world = world

    def recreated(self, chance: random.Random) -> bool:
        """Deleted and created again at once, with fewer partitions or more; members notice it later."""
        world, topic, count = self._world, chance.choice(TOPICS), chance.randint(1, 3)
        world.fault("recreated_topic", f"{topic}: {count} instead of {world.log.partitions(topic)} partitions")
        world.log.recreate_topic(topic, count)
        self._noticed(chance)
        return True

    def grown(self, chance: random.Random) -> bool:
        """It has a partition more."""
        world, topic = self._world, chance.choice(TOPICS)
        count = world.log.partitions(topic) + 1
        if count > MOST:
            return False
        world.fault("grown_topic", f"{topic} has {count} partitions")
        world.log.add_partitions(topic, count)
        return True

    def retention(self, chance: random.Random) -> bool:
        """It passes some records of a partition, whoever has read them."""
        world, topic = self._world, chance.choice(TOPICS)
        partition = chance.randrange(world.log.partitions(topic))
        low, end = world.log.bounds(topic, partition)
        if low == end:
            return False
        before = chance.randint(low + 1, end)
        world.fault("retention", f"{topic}/{partition} before {before}")
        world.log.delete_before(topic, partition, before)
        return True

    def forged_position(self, chance: random.Random) -> bool:
        """One that cannot be true: beyond the end, of a registration to come, of another topic, of no partition."""
        world, topic = self._world, chance.choice((*TOPICS, self._world.topics.triggers))
        partition = chance.randrange(world.log.partitions(topic))
        _, end = world.log.bounds(topic, partition)
        name = "*" if topic == world.topics.triggers else chance.choice(world.workflows).name
        registration = world.versions.known.registration(name)
        at = registration.at if registration is not None else 0
        topic_id = world.log.topic_id(topic)
        kind = chance.choice(("beyond", "beyond", "registration", "other id", "no partition"))
        if kind == "beyond":  # by far: one that the log grows past cannot be told from a true one
            position = TriggerPosition(next_offset=end + chance.choice((10**6, 2**61)), registered=at)
        elif kind == "registration":
            # Later than any there will be: the workflow may be registered again meanwhile.
            position = TriggerPosition(next_offset=chance.randint(0, end), registered=2**61)
        else:
            position = TriggerPosition(next_offset=end + 1, registered=at)
            topic_id = "other" if kind == "other id" else topic_id
            partition = 99 if kind == "no partition" else partition
        world.fault("forged_position", f"{kind}: {name} on {topic}/{partition}")
        key = PositionKey(name, topic, partition, topic_id).encode()
        world.broker.append(Record(world.topics.positions, key, encode_message(position), 0), WORLD)
        return True

    def _noticed(self, chance: random.Random) -> None:
        self._world.loop.later(NOTICED_WITHIN * chance.random(), self._world.log.notice)
