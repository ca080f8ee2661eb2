"""A handle to one execution: its id, and its result when there is one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from flowpilot.client.connection import AuditUnavailable, AuditView, StartSeen
from flowpilot.client.errors import (
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionRefused,
    ResultOmitted,
    ResultTimeout,
)
from flowpilot.client.replies import Replies
from flowpilot_schemas.messages import ExecutionEnded

# Seconds between looks into the audit, which is the second way: the replies topic is the first.
FIRST_LOOK, LONGEST_LOOK = 0.5, 2.0
# However many wait in a process, together they look a hundred times a second at most.
SHARE = 0.01


class Handle:
    """An execution that was started, retried or named: its `id`, and its result when there is one.

    `start` is the offset of its StartExecution, if it was started; of a retry whatever end comes by the replies is
    its own. The audit is asked after `first_look` seconds at the earliest: a look costs a connection, and the first
    one SQLAlchemy's imports.
    """

    def __init__(
        self,
        execution: str,
        start: int | None,
        replies: Replies,
        audit: AuditView | None,
        cancel: Callable[[str, str], Any],
        *,
        is_retry: bool = False,
        first_look: float = 0.0,
    ) -> None:
        self.id = execution
        self.start = start
        self._replies, self._audit = replies, audit
        self._inbox = replies.inbox(execution)
        self._seen: StartSeen | None = None
        self._cancel = cancel
        self._is_retry = is_retry
        self._first_look = first_look

    def __repr__(self) -> str:
        return f"Handle({self.id!r})"

    async def cancel(self, reason: str = "") -> None:
        """Ask for the execution to be cancelled; `result` tells whether it was. Raises as `Client.cancel`."""
        await self._cancel(self.id, reason)

    async def result(self, timeout: float | None = None) -> Any:
        """The execution's output: of the step marked as output, else of the only leaf, else a dict of the leaves.

        Raises `ExecutionFailed`, `ExecutionCancelled`, `ExecutionRefused`, `ResultOmitted` if that dict is too
        large, or `ResultTimeout` after `timeout` seconds (None: waits as long as it takes).
        """
        ended = await self.ended(timeout)
        if ended.output_omitted:
            raise ResultOmitted(self.id)
        if ended.status == "completed":
            return ended.output
        if ended.status == "failed":
            raise ExecutionFailed(self.id, ended.errors, ended.reason)
        if ended.status == "cancelled":
            raise ExecutionCancelled(self.id, ended.reason)
        raise ExecutionRefused(self.id, ended.reason)

    async def ended(self, timeout: float | None = None) -> ExecutionEnded:
        """How it ended, whatever way: `status` is `completed`, `failed`, `cancelled` or `refused`.

        Raises `ResultTimeout` after `timeout` seconds (None: waits as long as it takes).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        look, pause = time.monotonic() + self._first_look, FIRST_LOOK
        while True:
            own = self._inbox.ended.get(self.start) if self.start is not None else None
            if self._is_retry and self._inbox.ended:
                own = self._inbox.ended[max(self._inbox.ended)]
            if own is not None:
                return own
            now = time.monotonic()
            is_late = deadline is not None and now >= deadline
            if now >= look or is_late or self._inbox.ended:
                found = await self._second_way()
                if found is not None:
                    return found
                now = time.monotonic()
                look = now + max(pause, self._replies.waiting * SHARE)
                pause = min(pause * 1.5, LONGEST_LOOK)
            if is_late:
                raise ResultTimeout(self.id, timeout or 0.0)
            await self._replies.wait(self._inbox, min(look, deadline or look) - now)

    async def _second_way(self) -> ExecutionEnded | None:
        """From the audit; and a reply for an earlier run, which answers this start if that run was there before.

        A key used again after its window makes a new run, so that the end of an earlier run is not taken for
        the answer unless the audit says so, or there is no audit to ask.
        """
        earlier = max(self._inbox.ended.items(), default=None)
        if self._audit is None:
            return earlier[1] if earlier else None
        try:
            if self.start is None:
                return await self._audit.ended(self.id, None)
            if self._seen is None:
                self._seen = await self._audit.start_seen(self.id, self.start)
            if self._seen is None:
                return None
            return self._inbox.ended.get(self._seen.run) or await self._audit.ended(self.id, self._seen.run)
        except AuditUnavailable:
            return earlier[1] if earlier else None

    @property
    def seen(self) -> StartSeen | None:
        """What is known by now of what became of the start; None also where it made the execution that ended."""
        return self._seen

    async def decided(self, timeout: float) -> StartSeen:
        """What became of the start, by the audit record. Raises `ResultTimeout`."""
        deadline = time.monotonic() + timeout
        while self._seen is None:
            if self._audit is not None and self.start is not None:
                try:
                    self._seen = await self._audit.start_seen(self.id, self.start)
                except AuditUnavailable:
                    pass
            if self._seen is None:
                if time.monotonic() >= deadline:
                    raise ResultTimeout(self.id, timeout)
                await asyncio.sleep(0.05)
        return self._seen
