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
from flowpilot_schemas.mac import NO_SECRETS, StepSecrets

log = structlog.get_logger()


class Sender:
    """Sends what the fold has to say, in order."""

    def __init__(self, events: EventsTopic, producer: Producer, secrets: StepSecrets = NO_SECRETS) -> None:
        self._events = events
        self._producer = producer
        self._secrets = secrets

    async def send(self, outputs: Sequence[Output]) -> None:
        """Send and await all. What cannot be delivered, ever, becomes an event, a warning or `EngineHalt`."""
        deliveries = await self._producer.send([self._signed(output) for output in outputs])
        failed = [
            (output, delivery.error)
            for output, delivery in zip(outputs, deliveries, strict=True)
            if delivery.error is not None
        ]
        topics = self._events.topics
        undelivered: list[Output] = []  # or not to the partition that was meant
        for output, error in failed:
            if output.task_id is not None and output.record.partition is not None:
                # The topic has fewer partitions than a worker reported: the key finds one that there is.
                undelivered.append(output._replace(record=output.record._replace(partition=None)))
            elif output.task_id is not None:
                undelivered.append(self._dispatch_failed(output.task_id, output.record, error))
            elif output.record.topic in (topics.events, topics.history, topics.control, topics.dead_letters):
                raise EngineHalt(f"{output.record.topic} refused a record: {error}; run `flowpilot setup`")
            else:
                log.warning("a reply could not be delivered", topic=output.record.topic, error=error)
        if undelivered:
            await self.send(undelivered)

    def _signed(self, output: Output) -> Record:
        """Signed here and not where it is rendered: what is sent again has the secret of its own time."""
        record = output.record
        if not self._secrets or record.value is None:
            return record
        if output.task_id is None and record.topic != self._events.topics.control:
            return record
        headers = (*record.headers, *self._secrets.header(record.topic, record.value))
        return record._replace(headers=headers)

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
