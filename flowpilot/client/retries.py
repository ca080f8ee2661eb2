"""How a client asks the engine for a retry: what it tells of the execution, and how long it goes on asking."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from flowpilot.client.connection import AuditUnavailable, AuditView
from flowpilot.client.errors import UnknownExecution
from flowpilot.client.replies import Inbox, Replies
from flowpilot.client.workflows import Workflows
from flowpilot_schemas.messages import GivenInput, RetryExecution

# A retry is asked for again so often, with a pause in seconds.
_ASK_AGAIN, _PAUSE = 10, 0.2


class Retries:
    """The requests of one client: they go out by `send`, answers come by `replies`."""

    def __init__(
        self,
        workflows: Workflows,
        replies: Replies,
        audit: AuditView | None,
        send: Callable[[str, RetryExecution], Awaitable[int]],
    ) -> None:
        self._workflows, self._replies, self._audit, self._send = workflows, replies, audit, send

    async def anew(self, execution: str, version: str | None) -> dict[str, Any]:
        """What a retry from the start needs where the engine no longer holds the execution, as far as the audit
        record tells; and the numbers that are taken, also by retries that the engine has forgotten.

        With `version`, in that version of the workflow. Raises `UnknownExecution` if the audit record, which then
        has to, does not tell; `InputInvalid`, `UnknownWorkflow`.
        """
        try:
            started = await self._audit.started(execution) if self._audit is not None else None
        except AuditUnavailable:
            started = None
        if started is None:
            if version is not None:
                raise UnknownExecution(execution)
            return {}
        definition, named = started.definition, started.version
        if version is not None:
            chosen = await self._workflows.definition(started.workflow, version)
            self._workflows.input_of(started.workflow, chosen, started.input)
            definition, named = chosen.hash, chosen.version
        return {
            "workflow": started.workflow,
            "version": named,
            "definition": definition,
            "input": GivenInput(value=started.input),
            "known": started.retries,
            "traceparent": started.traceparent,
        }

    async def ask(self, asked: RetryExecution, timeout: float) -> Inbox:
        """The request's inbox, with the engine's answer if one came within `timeout` seconds."""
        inbox = await self._ask_once(asked, timeout)
        for _ in range(_ASK_AGAIN):
            # A retry may have ended already, and its end still be on the way to the root of the family.
            running = inbox.answer.running if inbox.answer else None
            if running is None or not await self._has_ended(running):
                break
            await asyncio.sleep(_PAUSE)
            inbox = await self._ask_once(asked.model_copy(update={"request": str(uuid.uuid4())}), timeout)
        return inbox

    async def _ask_once(self, asked: RetryExecution, timeout: float) -> Inbox:
        deadline = time.monotonic() + timeout
        inbox = self._replies.inbox(asked.request)
        await self._send(asked.execution, asked)
        while inbox.answer is None and (left := deadline - time.monotonic()) > 0:
            await self._replies.wait(inbox, left)
        return inbox

    async def _has_ended(self, execution: str) -> bool:
        if self._replies.inbox(execution).ended:
            return True
        try:
            return self._audit is not None and await self._audit.ended(execution, None) is not None
        except AuditUnavailable:
            return False
