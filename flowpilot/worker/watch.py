"""Time, for attempts that run: of the long ones it is said that they began and live, the late ones are given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from flowpilot.worker.answers import Answers
from flowpilot.worker.attempt import Attempt, State
from flowpilot.worker.attempts import Attempts
from flowpilot.worker.dropped import Dropped
from flowpilot.worker.observed import Observed

_log = structlog.get_logger("flowpilot.worker")

_TICK = 0.05  # seconds
_LONG = 1.0  # seconds after which a running handler is said to have started
_GRACE_GIVEN_UP = 1.0  # a handler given up that ends within so many seconds did not hang


class Watch:
    """Looks at `attempts`, on the event loop.

    `on_exhausted` is called once, when as many handlers hang as run at once (`concurrency`); `exhausted` has
    their number then.
    """

    def __init__(
        self,
        attempts: Attempts,
        answers: Answers,
        *,
        concurrency: int,
        on_exhausted: Callable[[], None],
        observed: Observed,
        dropped: Dropped,
    ) -> None:
        self._attempts, self._answers, self._observed = attempts, answers, observed
        self._dropped = dropped
        self._concurrency, self._on_exhausted = concurrency, on_exhausted
        self.exhausted: int | None = None

    async def run(self) -> None:
        """Until cancelled."""
        running, given_up = self._attempts.running, self._attempts.given_up
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            for attempt in list(running):
                if attempt.state in (State.RUNNING, State.CANCELLED):
                    self._look_at(attempt, now)
                elif attempt.state is State.SUSPECT and attempt.tells:
                    self._beat(attempt, now)
            self._observed.places(len(running), len(given_up))
            self._dropped.flush(now)
            hanging = sum(now - since > _GRACE_GIVEN_UP for since in given_up.values())
            if hanging >= self._concurrency and self.exhausted is None:
                self.exhausted = hanging
                _log.error("too many handlers hang; the worker drains", given_up=hanging)
                self._on_exhausted()

    def _look_at(self, attempt: Attempt, now: float) -> None:
        ran = now - attempt.began
        if ran * 1_000 >= attempt.message.start_to_close_ms:
            self._attempts.give_up(attempt, now)
        elif attempt.state is State.RUNNING:
            if ran >= _LONG or attempt.wants_start:
                self._attempts.tell_started(attempt)
            if attempt.tells:
                self._beat(attempt, now)

    def _beat(self, attempt: Attempt, now: float) -> None:
        # Three times within the time that the engine waits, since one may come late.
        due = (now - attempt.beat_at) * 3_000 >= attempt.message.heartbeat_ms
        if due or attempt.details is not None:
            self._answers.put(attempt.heartbeat(now))
