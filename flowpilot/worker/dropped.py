"""Step messages that a worker does not run, and control records that it does not follow: each is counted, and
logged in lines that a flood cannot multiply.

Whoever can write to a topic can send a million records in a minute. Each adds one to a counter; the log has at most
one line a reason and second, with the number of records that it stands for and the last of them by name.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import structlog

from flowpilot.ports import metrics
from flowpilot.ports.log import Fetched
from flowpilot.ports.meter import Meter

_log = structlog.get_logger("flowpilot.worker")
_PAUSE = 1.0  # seconds between two lines about one reason
_LONGEST_TASK, _LONGEST_DETAIL = 300, 300  # characters that are logged


@dataclass
class _Reason:
    said_at: float
    unsaid: int = 0
    what: str = ""
    last: dict[str, Any] = field(default_factory=dict)


class Dropped:
    """Called on the event loop. Reasons are few: words of this program, never of a record."""

    def __init__(self, worker_id: str, meter: Meter) -> None:
        self._worker_id, self._meter = worker_id, meter
        self._reasons: dict[str, _Reason] = {}

    def step(self, record: Fetched, reason: str, task_id: str | None, detail: str | None = None) -> None:
        """The step message in `record` is not run: `task_id` is the attempt, where the record names one."""
        self._meter.add(metrics.WORKER_DROPPED, 1, reason)
        self._note("a step message is not run", record, reason, task_id, detail)

    def control(self, record: Fetched, reason: str, detail: str) -> None:
        """The control record is not followed."""
        self._meter.add(metrics.WORKER_CONTROL_IGNORED, 1, reason)
        self._note("a control record is not followed", record, reason, None, detail)

    def _note(self, what: str, record: Fetched, reason: str, task_id: str | None, detail: str | None) -> None:
        key = f"{what}: {reason}"
        if key not in self._reasons:
            self._reasons[key] = _Reason(-_PAUSE, what=what)
        found = self._reasons[key]
        found.unsaid += 1
        place = f"{record.topic}/{record.partition}/{record.offset}"
        found.last = {"worker": self._worker_id, "reason": reason, "record": place}
        if task_id is not None:
            found.last["task"] = task_id[:_LONGEST_TASK]
        if detail is not None:
            found.last["detail"] = detail[:_LONGEST_DETAIL]
        self._say(found, time.monotonic())

    def flush(self, now: float) -> None:
        """Log what is due by `now`, of the monotonic clock; called again and again."""
        for reason in self._reasons.values():
            self._say(reason, now)

    def _say(self, reason: _Reason, now: float) -> None:
        if reason.unsaid and now - reason.said_at >= _PAUSE:
            _log.warning(reason.what, **reason.last, records=reason.unsaid)
            reason.said_at, reason.unsaid = now, 0
