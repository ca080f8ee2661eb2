"""Every span there is. Names and attributes are those of OpenTelemetry's conventions for messaging; FlowPilot's own
words stand under `flowpilot.`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from flowpilot.ports.log import Fetched
from flowpilot.ports.tracer import Span, SpanOf, Tracer
from flowpilot_schemas.ids import TaskId
from flowpilot_schemas.messages import StartExecution, StepReady

T = TypeVar("T")


def of_start(topic: str, start: StartExecution) -> SpanOf:
    """A start is sent to the events topic."""
    attributes: dict[str, str | int] = {
        **_conventional("send", topic),
        "flowpilot.workflow": start.workflow,
        "flowpilot.version": start.version,
        "flowpilot.execution": start.execution,
    }
    if start.origin is not None:
        origin = start.origin
        attributes["flowpilot.origin"] = f"{origin.topic}/{origin.partition}/{origin.offset}"
    return SpanOf("producer", f"send {topic}", attributes)


def of_attempt(record: Fetched, message: StepReady, task: TaskId) -> SpanOf:
    """The handler of the step message in `record` is called."""
    return SpanOf(
        "consumer",
        f"process {record.topic}",
        {
            **_conventional("process", record.topic),
            "messaging.destination.partition.id": str(record.partition),
            "messaging.kafka.offset": record.offset,
            "messaging.message.id": message.task_id,
            "flowpilot.workflow": message.workflow,
            "flowpilot.version": message.version,
            "flowpilot.execution": task.execution,
            "flowpilot.step": message.step,
            "flowpilot.attempt": task.attempt,
            "flowpilot.queue": record.topic.partition(".steps.")[2],
        },
    )


def _conventional(operation: str, topic: str) -> dict[str, str | int]:
    return {
        "messaging.system": "kafka",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
    }


@contextmanager
def sending(tracer: Tracer, topic: str, messages: Sequence[T]) -> Iterator[Sequence[T]]:
    """`messages` as they are to be sent: each start goes on from a span of its own, which is over with the block.

    Without a tracer they are as they were. What is sent again has other spans.
    """
    if not tracer.is_on:
        yield messages
        return
    spans: list[Span] = []
    told: list[T] = []
    for message in messages:
        if isinstance(message, StartExecution):
            spans.append(span := tracer.begin(of_start(topic, message), message.traceparent))
            message = message.model_copy(update={"traceparent": span.traceparent})
        told.append(message)
    error = None
    try:
        yield told
    except BaseException as failed:
        error = type(failed).__name__
        raise
    finally:
        for span in spans:
            span.end(error)
