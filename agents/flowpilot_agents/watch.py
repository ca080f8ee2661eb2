"""Doubt ends the process: nothing more is written or acknowledged, and the next start finds all in the log."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

import structlog

from flowpilot.ports.log import Delivery, Producer, Record

EXIT_DOUBT = 70
PULSE_SECONDS = 0.1

log = structlog.get_logger("flowpilot.engine")


def end_process(sentence: str, error: BaseException | None = None) -> NoReturn:
    """Say why and end at once with exit code 70, past every handler that would still commit something."""
    reason = f"{sentence}: {type(error).__name__}: {error}" if error is not None else sentence
    log.critical(f"The engine ends: {reason}", exc_info=error if log.is_enabled_for(logging.DEBUG) else None)
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(EXIT_DOUBT)


def _clock() -> float:
    # Counts on while the machine sleeps, which the monotonic clock of Linux does not.
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Pulse:
    """Knows when the event loop last ran. After `limit` seconds without, the group may have another owner."""

    def __init__(self, limit: float, clock: Callable[[], float] = _clock) -> None:
        self.limit = limit
        self._clock = clock
        self._last: float | None = None

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            self.check()
            self._last = self._clock()
            await asyncio.sleep(PULSE_SECONDS)

    def check(self) -> None:
        """End the process if the loop stood still for longer than the limit."""
        if self._last is not None and (still := self._clock() - self._last) > self.limit:
            end_process(f"it stood still for {still:.1f} s, so its partitions may have another owner by now")


class GuardedProducer:
    """A producer that writes nothing after a standstill (see `flowpilot.ports.log.Producer`)."""

    def __init__(self, producer: Producer, pulse: Pulse) -> None:
        self._producer = producer
        self._pulse = pulse

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        """See the port."""
        self._pulse.check()
        return await self._producer.send(records)
