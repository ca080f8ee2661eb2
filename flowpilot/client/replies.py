"""The replies topic as one client reads it: from its own start on, and only while somebody waits."""

from __future__ import annotations

import asyncio
import time
import weakref
from zlib import crc32

import structlog

from flowpilot.ports.log import Fetched, LogUnavailable, Reader
from flowpilot_schemas.codec import BadRecord, decode_object, parse
from flowpilot_schemas.messages import ExecutionEnded, ReplyTo, RetryAnswered
from flowpilot_schemas.topics import Topics

# Seconds between looks while a result is awaited, and while there are only handles that might be asked.
EAGER, IDLE = 0.005, 0.25

_log = structlog.get_logger("flowpilot.client")


class Inbox:
    """The terminal events of one execution that came so far. Kept alive by its handles alone."""

    def __init__(self, execution: str) -> None:
        self.execution = execution
        self.ended: dict[int, ExecutionEnded] = {}
        self.changed = asyncio.Event()
        # A request for a retry has an inbox of its own, under the request's id.
        self.answer: RetryAnswered | None = None
        self.retry: Inbox | None = None


class Replies:
    """Reads the client's partition of the replies topic and sorts what is addressed to `client` into inboxes."""

    def __init__(self, reader: Reader, topics: Topics, client: str) -> None:
        declared = next(topic.partitions for topic in topics.core() if topic.name == topics.replies)
        self.address = ReplyTo(topic=topics.replies, partition=crc32(client.encode()) % (declared or 1), key=client)
        self._reader = reader
        self._key = client.encode()
        self._inboxes: weakref.WeakValueDictionary[str, Inbox] = weakref.WeakValueDictionary()
        self._position: int | None = None
        self._waiting = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Fix where reading starts: called before the first start is sent. Raises `LogUnavailable`."""
        if self._position is None:
            _, self._position = await self._reader.bounds(self.address.topic, self.address.partition)
        if self._task is None:
            self._task = asyncio.create_task(self._read())

    def inbox(self, execution: str) -> Inbox:
        """The inbox of `execution`; the same one as long as somebody holds it."""
        found = self._inboxes.get(execution)
        if found is None:
            found = self._inboxes[execution] = Inbox(execution)
        self._wake.set()
        return found

    @property
    def waiting(self) -> int:
        """How many wait at present."""
        return self._waiting

    async def wait(self, inbox: Inbox, timeout: float) -> None:
        """Until the inbox changes, at most `timeout` seconds."""
        self._waiting += 1
        self._wake.set()
        try:
            async with asyncio.timeout(timeout):
                await inbox.changed.wait()
            inbox.changed.clear()
        except TimeoutError:
            pass
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        looked = 0.0
        while True:
            self._wake.clear()
            # Who starts without waiting is not held up by reading what nobody asked for yet.
            pause = EAGER if self._waiting else IDLE if self._inboxes else None
            left = None if pause is None else looked + pause - time.monotonic()
            if left is None or left > 0:
                try:
                    # Not wait_for: before Python 3.12 it may take a cancellation for a wake-up.
                    async with asyncio.timeout(left):
                        await self._wake.wait()
                    continue
                except TimeoutError:
                    pass
            if self._inboxes:
                try:
                    await self._look()
                except LogUnavailable as error:
                    _log.debug("replies cannot be read at present", error=str(error))
            looked = time.monotonic()

    async def _look(self) -> None:
        assert self._position is not None
        low, end = await self._reader.bounds(self.address.topic, self.address.partition)
        start = max(self._position, low)
        if start >= end:
            return
        for record in await self._reader.read(self.address.topic, self.address.partition, start, end):
            self._sort(record)
        self._position = end

    def _sort(self, record: Fetched) -> None:
        if record.key != self._key:
            return
        try:
            value = decode_object(record.value)
            if value.get("type") == "retry.answered":
                self._answered(parse(RetryAnswered, value))
                return
            ended = parse(ExecutionEnded, value)
        except BadRecord as bad:
            _log.warning("a reply cannot be read", reason=bad.reason, detail=bad.detail, offset=record.offset)
            return
        inbox = self._inboxes.get(ended.execution)
        if inbox is not None:
            inbox.ended[ended.run] = ended
            inbox.changed.set()

    def _answered(self, answer: RetryAnswered) -> None:
        """The first answer counts: a request read again later may be answered otherwise."""
        inbox = self._inboxes.get(answer.request)
        if inbox is None or inbox.answer is not None:
            return
        inbox.answer = answer
        if answer.retry is not None:
            inbox.retry = self.inbox(answer.retry)  # now: its end may be the next record
        inbox.changed.set()
