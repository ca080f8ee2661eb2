"""What FlowPilot says to itself on `flowpilot.events`: timers, and roots and retries among each other.

`flowpilot_schemas.messages` has all of it too.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from flowpilot_schemas.wire import Message, Name, Offset, RequestId, Text


class RetryOf(BaseModel):
    """Which execution a start retries, and what it shares with it: places are (execution, run), never copies.

    `shares`: where outputs of completed steps lie, the nearest first. `input_of`: where the input lies; without
    it, the start's own `input` is meant. `asked_at` (ms): the broker's time of the request.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    execution: Text
    run: Offset | None = None
    request: RequestId
    actor: Text
    reason: Text = ""
    from_start: bool = False
    shares: list[tuple[Text, Offset]] = []
    input_of: tuple[Text, Offset] | None = None
    asked_at: Annotated[int, Field(ge=0, le=2**62)] | None = None


class TimerFired(Message):
    """A deadline of this execution may have passed; the record's broker time decides."""

    type: Literal["timer.fired"] = "timer.fired"
    execution: Text
    run: Offset


class Forget(Message):
    """Finished executions of this partition whose window ended before `before` (ms) may be forgotten."""

    type: Literal["partition.forget"] = "partition.forget"
    before: Annotated[int, Field(ge=0, le=2**62)]


class RulesPermitted(Message):
    """From this record on, starts on its partition may ask for the rule set `rules`, one above the last permitted.

    `flowpilot setup` writes one to each partition, under the key `rules`, when all engines have that set: an engine
    that does not have it stops there.
    """

    type: Literal["rules.permitted"] = "rules.permitted"
    rules: Annotated[int, Field(ge=1, le=2**31 - 1)]


class RetryEnded(Message):
    """The engine to itself: the retry `retry` of the root `execution` is over; it is kept until `until` (ms)."""

    type: Literal["retry.ended"] = "retry.ended"
    execution: Text
    retry: Text
    run: Offset
    request: RequestId
    status: Literal["completed", "failed", "cancelled", "refused"]
    until: Annotated[int, Field(ge=0, le=2**62)]


class RetryCheck(Message):
    """The engine to itself: the root of `execution` waits for its end. If it has ended it says so again; if it
    never began, its start was lost, and it never will. `retry` and the others are those of that start.
    """

    type: Literal["retry.check"] = "retry.check"
    execution: Text
    workflow: Name
    version: Text
    definition: Text
    retry: RetryOf


class RetryForget(Message):
    """The engine to itself: the root of `execution` was forgotten, and this run of the retry with it."""

    type: Literal["retry.forget"] = "retry.forget"
    execution: Text
    run: Offset
