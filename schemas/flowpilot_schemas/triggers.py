"""What the router keeps about the topics it reads: how far, and what it left out.

`flowpilot.positions` is compacted. A record's key is `<workflow>/<topic>/<partition>/<topic id>`, with `*` for the
workflow on `flowpilot.triggers`, whose records name theirs. Of several records of a key the one with the greatest
(registered, next_offset) counts, not the last.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from flowpilot_schemas.codec import BadRecord

ANY_WORKFLOW = "*"

Offset = Annotated[int, Field(ge=0, le=2**62)]
FilterReason = Literal["tombstone", "where", "before_start", "expired"]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    v: Literal[1] = 1


class PositionKey(NamedTuple):
    """Whose position it is. `topic_id`: a topic made again under its name is another one."""

    workflow: str
    topic: str
    partition: int
    topic_id: str

    def encode(self) -> bytes:
        """The record's key."""
        return "/".join(str(part) for part in self).encode()

    @classmethod
    def decode(cls, key: bytes | None) -> PositionKey:
        """The inverse of `encode`. Raises `BadRecord`."""
        try:
            workflow, topic, partition, topic_id = (key or b"").decode().split("/", 3)
            return cls(workflow, topic, int(partition), topic_id)
        except ValueError:
            raise BadRecord("wrong_key", f"the key {(key or b'')[:100]!r} is none of a position's") from None


class TriggerPosition(_Message):
    """On `flowpilot.positions`: the fate of every record before `next_offset` is decided for this workflow.

    `registered` is the broker's time, in ms, of the registration it belongs to: a workflow that was deleted and
    registered again begins anew.
    """

    type: Literal["trigger.position"] = "trigger.position"
    next_offset: Offset
    registered: Offset = 0


class Filtered(BaseModel):
    """Records that started nothing and are no dead letters, as ranges [first, last] of offsets.

    `tombstone`: no value. `where`: the trigger's expression is not true. `before_start`: older than the trigger's
    start. `expired`: retention removed them before they were read.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    workflow: str | None = None
    reason: FilterReason
    ranges: list[tuple[Offset, Offset]]


class TriggerFiltered(_Message):
    """On `flowpilot.trigger-fates`: what was left out of one partition, workflow by workflow."""

    type: Literal["trigger.filtered"] = "trigger.filtered"
    topic: str
    topic_id: str
    partition: Annotated[int, Field(ge=0, le=2**31 - 1)]
    filtered: list[Filtered]
