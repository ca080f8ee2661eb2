"""What can be seen of one fold: what it sent, and whether anything moved."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from flowpilot.core.state import Execution
from tests.exhaustive.world import TOPICS, Folded

Told = list[tuple[dict[str, Any], dict[str, bytes], bytes]]
# What may be told without anything having moved.
TELLS = {"CompletionIgnored", "CancelIgnored", "StartDeduplicated", "KeyConflict", "RetryRefused"}


class Violation(NamedTuple):
    """An invariant that does not hold, and how."""

    invariant: str
    detail: str


class Sent(NamedTuple):
    """What a record caused, by topic, decoded."""

    history: Told
    steps: list[dict[str, Any]]
    control: list[dict[str, Any]]
    letters: list[tuple[str, str, int]]
    """(reason, topic, offset) of each dead letter."""

    @property
    def dead_letters(self) -> int:
        return len(self.letters)

    @classmethod
    def of(cls, folded: Folded) -> Sent:
        """Sort and decode."""
        sent = cls([], [], [], [])
        for record, task in folded.outputs:
            value = record.value or b""
            if task is not None:
                sent.steps.append(orjson.loads(value))
            elif record.topic == TOPICS.history:
                sent.history.append((orjson.loads(value), dict(record.headers), value))
            elif record.topic == TOPICS.control:
                sent.control.append(orjson.loads(value))
            elif record.topic == TOPICS.dead_letters:
                letter = orjson.loads(value)
                sent.letters.append((letter["reason"], letter["topic"], letter["offset"]))
        return sent


def same(before: Execution | None, after: Execution | None) -> bool:
    """Whether nothing moved: what only numbers and tells may differ, and which of those the history has."""
    if before is None or after is None or before is after:
        return before is after
    if before.steps is not after.steps and before.steps != after.steps:
        return False
    return before == after._replace(
        src=before.src, seq=before.seq, head=before.head, outbox=before.outbox, ignored=before.ignored
    )


def shown(state: Execution | None) -> str:
    """A state in a line."""
    if state is None:
        return "nothing"
    steps = " ".join(f"{step.status}/{step.attempt}" for step in state.steps)
    return f"{state.status} [{steps}] open {state.open}"
