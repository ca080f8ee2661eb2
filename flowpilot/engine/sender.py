"""Sending outputs (rule 5): all are acknowledged, or what can never be delivered becomes a fact of its own."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from flowpilot.engine.claim import EventsTopic
from flowpilot.engine.errors import EngineHalt
from flowpilot.engine.outputs import Output
from flowpilot.ports.log import Producer, Record
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import encode_message

log = structlog.get_logger()


class Sender:
    """Sends what the fold has to say, in order."""

    def __init__(self, events: EventsTopic, producer: Producer) -> None:
        self._events = events
        self._producer = producer

    async def send(self, outputs: Sequence[Output]) -> None:
        """Send and await all. What cannot be delivered, ever, becomes an event, a warning or `EngineHalt`."""
        deliveries = await self._producer.send([output.record for output in outputs])
        failed = [
            (output, delivery.error)
            for output, delivery in zip(outputs, deliveries, strict=True)
            if delivery.error is not None
        ]
        topics = self._events.topics
        undelivered: list[Output] = []
        for output, error in failed:
            if output.task_id is not None:
                undelivered.append(self._dispatch_failed(output.task_id, output.record, error))
            elif output.record.topic in (topics.events, topics.history, topics.control, topics.dead_letters):
                raise EngineHalt(f"{output.record.topic} refused a record: {error}; run `flowpilot setup`")
            else:
                log.warning("a reply could not be delivered", topic=output.record.topic, error=error)
        if undelivered:
            await self.send(undelivered)

    def _dispatch_failed(self, task_id: str, record: Record, error: str) -> Output:
        """An undeliverable step message fails its attempt, through the log like every other fact."""
        failed = m.StepFailed(
            task_id=task_id,
            error=m.StepError(kind="dispatch_failed", message=f"{record.topic}: {error}", retryable=False),
        )
        execution = task_id.partition("/")[0]
        key = execution.partition(".")[0].encode()
        home = self._events.home(execution)
        return Output(Record(self._events.topics.events, key, encode_message(failed), home))
