"""What a decision is."""

from __future__ import annotations

from typing import NamedTuple

from flowpilot.core import events as e
from flowpilot.core.state import Execution


class Decision(NamedTuple):
    """The events, the state after them, and what has to be stored beside it."""

    state: Execution
    events: list[e.CoreEvent]
    output: tuple[str, bytes] | None = None  # (step, encoded output) of a step that completed
    ignored: str | None = None  # why the report was ignored, whether that is recorded or was before
