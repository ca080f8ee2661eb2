"""Whether the log still goes on where the audit has stopped reading."""

from __future__ import annotations

from flowpilot.core.errors import FlowPilotError
from flowpilot.ports.audit import Position
from flowpilot.ports.log import TopicPartition


class AuditStopped(FlowPilotError):
    """The log is not the one that the stored positions belong to; the message says what to do."""


def check_position(partition: TopicPartition, position: Position, topic_id: str, low: int, end: int) -> None:
    """Compare what the store has with the log: its topic's id, its first offset `low`, its next offset `end`.

    Raises `AuditStopped` if it is another topic, or records were removed that are not stored, or were lost.
    """
    place = f"{partition.topic}/{partition.partition}"
    remedy = (
        "To accept that, delete the partition's row from consumer_offset: the audit then begins at the first "
        "record there is"
    )
    if topic_id != position.topic_id:
        raise AuditStopped(
            f"{place} is another topic than the one the audit has read so far (its id is {topic_id}, not "
            f"{position.topic_id}): point the audit at the right Kafka or database. {remedy}"
        )
    if low > position.next_offset:
        raise AuditStopped(
            f"{place} begins at offset {low}, but the audit has read up to {position.next_offset}: retention "
            f"removed records that were not stored. {remedy}"
        )
    if end < position.next_offset:
        raise AuditStopped(
            f"{place} ends at offset {end}, but the audit has read up to {position.next_offset}: the log lost "
            f"records. {remedy}"
        )
