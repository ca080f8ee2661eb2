"""What the engine says is over: cancelled runs and superseded attempts, read from the control topic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from flowpilot.ports.log import Fetched, LogUnavailable, Reader
from flowpilot.ports.meter import OFF
from flowpilot.worker.dropped import Dropped
from flowpilot_schemas.codec import BadRecord, decode_object, parse
from flowpilot_schemas.ids import TaskId
from flowpilot_schemas.mac import NO_SECRETS, StepSecrets
from flowpilot_schemas.messages import Cancelled, Superseded

_log = structlog.get_logger("flowpilot.worker")
_INTERVAL = 0.2  # seconds
_CHUNK = 5_000  # records
# A day's cancels of a busy system; the oldest are forgotten first, and what they concern is skipped by the engine.
_REMEMBERED = 200_000


class Control:
    """`over()` is called on the event loop when something new is known.

    With `secrets`, records that none of them signed are not followed: otherwise whoever can write to the topic
    could keep steps from being run. `dropped` is told of records that are not followed.
    """

    def __init__(
        self,
        reader: Reader,
        topic: str,
        over: Callable[[], None],
        *,
        secrets: StepSecrets = NO_SECRETS,
        dropped: Dropped | None = None,
    ) -> None:
        self._reader, self._topic, self._over = reader, topic, over
        self._secrets = secrets
        self._dropped = dropped or Dropped("", OFF)
        self._next = 0
        self._cancelled: dict[tuple[str, int], None] = {}
        self._superseded: dict[str, None] = {}

    def is_over(self, task: TaskId, task_id: str) -> bool:
        """Whether nobody wants this attempt any more."""
        return self.why_over(task, task_id) is not None

    def why_over(self, task: TaskId, task_id: str) -> str | None:
        """Why nobody wants this attempt any more: `cancelled` or `superseded`; None if it is wanted."""
        if (task.execution, task.run) in self._cancelled:
            return "cancelled"
        return "superseded" if task_id in self._superseded else None

    async def catch_up(self) -> None:
        """Read to the end of the topic. Raises `LogUnavailable`."""
        low, end = await self._reader.bounds(self._topic, 0)
        # Behind the retention, or on a topic that was made anew: all there is.
        position = low if not low <= self._next <= end else self._next
        news = False
        while position < end:
            upto = min(end, position + _CHUNK)
            for record in await self._reader.read(self._topic, 0, position, upto):
                news = self._take(record) or news
            position = self._next = upto
        self._next = position
        if news:
            self._over()

    async def run(self) -> None:
        """Read on until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL)
            try:
                await self.catch_up()
            except LogUnavailable as error:
                _log.warning("the control topic cannot be read", error=str(error))
                await asyncio.sleep(1.0)

    def _take(self, record: Fetched) -> bool:
        distrust = self._secrets.distrust(record.topic, record.value, record.headers)
        if distrust is not None:
            self._dropped.control(record, *distrust)
            return False
        try:
            value = decode_object(record.value)
            if value.get("type") == "execution.cancelled":
                cancelled = parse(Cancelled, value)
                _remember(self._cancelled, (cancelled.execution, cancelled.run))
            elif value.get("type") == "attempt.superseded":
                _remember(self._superseded, parse(Superseded, value).task_id)
            else:
                return False
        except BadRecord as error:
            self._dropped.control(record, error.reason, error.detail)
            return False
        return True


def _remember(memory: dict[object, None] | dict[tuple[str, int], None] | dict[str, None], key: object) -> None:
    known: dict[object, None] = memory  # type: ignore[assignment]
    known[key] = None
    if len(known) > _REMEMBERED:
        del known[next(iter(known))]
