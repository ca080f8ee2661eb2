"""A step message for a partition that is not there; and timers that fire a little early."""

from __future__ import annotations

import asyncio

from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.core.murmur2 import partition_of
from flowpilot.engine.claim import EventsTopic
from flowpilot.engine.outputs import Output
from flowpilot.engine.sender import Sender
from flowpilot.ports.log import Record
from flowpilot_schemas.codec import decode_object
from flowpilot_schemas.topics import Topics

T = Topics()
TASK = "execution/7/step/1"


def sent(topic_exists: bool) -> MemoryLog:
    """The log after a step message was sent to partition 11 of a topic that has 4, or of none."""
    log = MemoryLog()
    log.create_topic(T.events, 2)
    if topic_exists:
        log.create_topic(T.steps("q"), 4)
    sender = Sender(EventsTopic(T, log.topic_id(T.events), 2), log.producer())
    asyncio.run(sender.send([Output(Record(T.steps("q"), TASK.encode(), b"{}", 11), TASK)]))
    return log


def test_missing_partition_is_replaced_by_that_of_the_key() -> None:
    log = sent(topic_exists=True)
    [record] = log.records(T.steps("q"))
    assert record.partition == partition_of(TASK.encode(), 4)
    assert log.records(T.events) == []


def test_missing_topic_fails_the_dispatch() -> None:
    [record] = sent(topic_exists=False).records(T.events)
    report = decode_object(record.value)
    assert (report["task_id"], report["error"]["kind"]) == (TASK, "dispatch_failed")
