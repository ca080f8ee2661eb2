"""What messages are made of: their base, the types of their fields, and the places that they name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from flowpilot_schemas.limits import MAX_KEY

Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Text = Annotated[str, StringConstraints(max_length=1_000)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=MAX_KEY)]
RequestId = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Offset = Annotated[int, Field(ge=0, le=2**62)]
Partition = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Message(BaseModel):
    """What every message has: unknown fields are ignored, a `v` beyond 1 is refused."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    v: Literal[1] = 1


class Untyped(Message):
    """What every message has, whatever its type."""


class Origin(BaseModel):
    """The trigger record an execution comes from; `timestamp` is the record's own, in ms."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    topic: Text
    topic_id: Text
    partition: Partition
    offset: Offset
    timestamp: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None


class RecordHeader(BaseModel):
    """A header of a record; `value` is base64.

    A name that is not UTF-8 has U+FFFD in place of what is not, and its bytes as `name_base64`; of a name that the
    reader's client did not give there is only the U+FFFD.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    name_base64: str | None = None
    value: str


class ReplyTo(BaseModel):
    """Where the terminal event goes for a client that waits."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    topic: Text
    partition: Partition
    key: Text | None = None
