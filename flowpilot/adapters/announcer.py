"""One process's announcement on the members topic (see `flowpilot_schemas.members`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from flowpilot.ports.log import LogUnavailable, Producer, Record
from flowpilot.ports.members import Announced
from flowpilot_schemas.codec import encode_message

_log = structlog.get_logger("flowpilot.members")

# Seconds.
_LEAVE = 1.0
_AFTER_ERROR = 5.0


class LogAnnouncer:
    """See `flowpilot.ports.members.Announcer`. `topic` has one partition and is compacted.

    `producer` should be of its own: what it cannot deliver must not hold up anything else.
    """

    def __init__(self, producer: Producer, topic: str) -> None:
        self._producer, self._topic = producer, topic
        self._changed = asyncio.Event()
        self._key: bytes | None = None  # of what was announced
        self._has_left = False
        self._fails = False

    async def run(self, what: Callable[[], Announced]) -> None:
        """See the port."""
        while not self._has_left:
            self._changed.clear()
            pause = _AFTER_ERROR
            try:
                announced = what()
                pause = announced.session_ms / 3_000
                await self._write(announced.key, encode_message(announced))
                self._key = announced.key
                self._fails = False
            except Exception as error:  # noqa: BLE001 - an announcement is worth no process
                self._warn(error)
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def changed(self) -> None:
        """See the port."""
        self._changed.set()

    async def leave(self) -> None:
        """See the port. Without it, as after `kill -9`, the session runs out."""
        self._has_left = True
        self._changed.set()
        if self._key is None:
            return
        try:
            async with asyncio.timeout(_LEAVE):
                await self._write(self._key, None)
        except Exception as error:  # noqa: BLE001 - see above
            _log.warning("the announcement is not taken back; it expires", error=_text(error))

    async def _write(self, key: bytes, value: bytes | None) -> None:
        [delivery] = await self._producer.send([Record(self._topic, key, value, partition=0)])
        if delivery.error is not None:
            raise LogUnavailable(f"{self._topic} does not take the record: {delivery.error}")

    def _warn(self, error: Exception) -> None:
        if not self._fails:  # once, until it succeeds again
            _log.warning("what this process serves cannot be announced; it goes on", error=_text(error))
        self._fails = True


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
