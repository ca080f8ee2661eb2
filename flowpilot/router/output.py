"""What the router writes: starts and dead letters at once, what was left out and the positions at a commit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import structlog

from flowpilot.core.dead_letters import dead_letter_key
from flowpilot.ports.log import Fetched, Producer, Record
from flowpilot.ports.spans import sending
from flowpilot.ports.tracer import Tracer
from flowpilot.router.errors import RouterStopped
from flowpilot.router.fates import Omissions
from flowpilot.router.positions import Positions
from flowpilot.router.reading import Reading, Served
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.ids import root_id
from flowpilot_schemas.messages import DeadLetter, StartExecution
from flowpilot_schemas.topics import Topics

_log = structlog.get_logger("flowpilot.router")


class Output:
    """Everything is awaited. Raises `LogUnavailable`, and `RouterStopped` if a record is refused for good."""

    def __init__(self, producer: Producer, topics: Topics, positions: Positions, tracer: Tracer) -> None:
        self._producer, self._topics, self._positions = producer, topics, positions
        self._tracer = tracer

    async def produce(self, batch: Iterable[Served]) -> None:
        """The starts and dead letters of what was served."""
        outcomes = [outcome for served in batch for outcome in served.outcomes]
        with sending(self._tracer, self._topics.events, [outcome for _, outcome in outcomes]) as told:
            records = [record for record, _ in outcomes]
            await self._send(list(map(self._record_of, records, told)))

    async def commit(self, readings: Iterable[Reading]) -> None:
        """First what was left out: a position says that the fate of all before it is recorded."""
        readings = list(readings)
        await self._send([each.omissions_as(self._topics.fates) for each in readings if each.omissions.size])
        for reading in readings:
            reading.omissions = Omissions()
        unsaved = [(reading, reading.unsaved()) for reading in readings]
        await self._positions.write(
            {reading.key(name): position for reading, found in unsaved for name, position in found.items()},
            [reading.key(name) for reading, found in unsaved for name in found if name in reading.disputed],
        )
        for reading, found in unsaved:
            reading.saved |= found
            reading.disputed -= found.keys()

    async def _send(self, records: Sequence[Record]) -> None:
        deliveries = await self._producer.send(records) if records else []
        for sent, delivery in zip(records, deliveries, strict=True):
            if delivery.error is not None:
                raise RouterStopped(f"the topic {sent.topic} refused a record for good: {delivery.error}")

    def _record_of(self, record: Fetched, outcome: StartExecution | DeadLetter) -> Record:
        if isinstance(outcome, StartExecution):
            key = root_id(outcome.execution).encode()
            return Record(self._topics.events, key, encode_message(outcome))
        _log.warning(
            "dead letter",
            reason=outcome.reason,
            detail=outcome.detail,
            topic=outcome.topic,
            partition=outcome.partition,
            offset=outcome.offset,
        )
        return Record(self._topics.dead_letters, dead_letter_key(record), encode_message(outcome))
