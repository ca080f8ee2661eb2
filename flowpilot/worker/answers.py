"""Answers to the engine: collected while a batch is on its way, then sent together, and sent until they are in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from flowpilot.ports.log import LogUnavailable, Producer, Record

_log = structlog.get_logger("flowpilot.worker")
Acknowledged = Callable[[str | None], None]
_LONGEST_PAUSE = 5.0  # seconds


class Answers:
    """One batch is under way at a time. Nothing is ever dropped: the log may be away for as long as it is."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._pending: list[tuple[Record, Acknowledged | None]] = []
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()

    def put(self, record: Record, acknowledged: Acknowledged | None = None) -> None:
        """Send `record`; then `acknowledged(None)`, or with the reason why it can never be taken."""
        self._pending.append((record, acknowledged))
        self._some.set()
        self._none.clear()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._some.wait()
            self._some.clear()
            batch, self._pending = self._pending, []
            await self._send(batch)
            if not self._pending:
                self._none.set()

    async def flush(self, timeout: float) -> bool:
        """Wait until all are acknowledged; False if they are not after `timeout` seconds."""
        try:
            await asyncio.wait_for(self._none.wait(), timeout)
        except TimeoutError:
            return False
        return True

    async def _send(self, batch: list[tuple[Record, Acknowledged | None]]) -> None:
        records, pause = [record for record, _ in batch], 0.1
        while True:
            try:
                deliveries = await self._producer.send(records)
                break
            except LogUnavailable as error:
                # Some may be in already; the engine takes an answer once.
                _log.warning("answers wait for the log", answers=len(records), error=str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
        for (_, acknowledged), delivery in zip(batch, deliveries, strict=True):
            if acknowledged is not None:
                acknowledged(delivery.error)
