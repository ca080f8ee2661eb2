"""The client: starts executions, waits for their results, cancels and retries them."""

from __future__ import annotations

import asyncio
import getpass
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, Self

from flowpilot.authoring.errors import InputInvalid
from flowpilot.client.connection import Connection
from flowpilot.client.errors import (
    ExecutionExists,
    NotSent,
    RetryRefused,
    RetryUnanswered,
    StartUnconfirmed,
)
from flowpilot.client.handle import FIRST_LOOK, LONGEST_LOOK, Handle
from flowpilot.client.replies import Replies
from flowpilot.client.retries import Retries
from flowpilot.client.workflows import Defined, Workflows
from flowpilot.ports.log import LogUnavailable, Record
from flowpilot.ports.spans import sending
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.ids import is_execution_id, is_legal_name, keyed_execution_id, root_id
from flowpilot_schemas.limits import MAX_KEY
from flowpilot_schemas.messages import CancelExecution, RetryExecution, StartExecution
from flowpilot_schemas.tracing import as_traceparent

# Characters of a reason; the rest is cut off.
_REASON_KEPT = 1_000

# Seconds that `if_exists="fail"` waits for the audit record.
_DECIDED_WITHIN = 30.0

IfExists = Literal["return", "fail"]


class ConnectedClient:
    """A client over given ports, used on one event loop. `actor` stands in the audit as who asked
    (unless given, the user's name)."""

    def __init__(self, connection: Connection, *, actor: str | None = None) -> None:
        self._connection = connection
        self._actor = actor or default_actor()
        self._workflows = Workflows(connection.definitions, connection.limits.input)
        self._replies = Replies(connection.reader, connection.topics, f"client-{uuid.uuid4()}")
        self._retries = Retries(self._workflows, self._replies, connection.audit, self._send)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop reading replies. Executions go on."""
        await self._replies.close()

    @property
    def connection(self) -> Connection:
        """The ports it stands on."""
        return self._connection

    async def start(
        self,
        workflow: Defined | str,
        input: Any = None,
        *,
        key: str | None = None,
        version: str | None = None,
        if_exists: IfExists = "return",
        actor: str | None = None,
        traceparent: str | None = None,
    ) -> Handle:
        """Start an execution and return its handle as soon as the log has taken it.

        A `Workflow` object starts its own version, registered if need be; a name the current version, or
        `version`. `input`: of the workflow's input type, or what validates as it; with a name, what is JSON.
        With `key`, the execution that this key names: if it exists already the handle is to that one, or, with
        `if_exists="fail"`, `ExecutionExists` is raised (this asks the audit record, and raises `ResultTimeout` if
        that does not tell within 30 seconds). `actor` stands in the audit record in the client's place.
        `traceparent` (W3C Trace Context) goes with every step; unless given, it is that of OpenTelemetry's current
        span, if there is one.

        Raises `UnknownWorkflow`, `WorkflowDeleted` (of an object, within ten seconds), `VersionConflict` if the
        object's version is registered with other content, `InputInvalid`, `NotSent`, `StartUnconfirmed` (a
        `LogUnavailable`).
        """
        name = workflow if isinstance(workflow, str) else workflow.definition.name
        execution = _execution_id(name, key)
        sent = False
        try:
            async with self._patiently():
                definition = await self._workflows.definition(workflow, version)
                value = self._workflows.input_of(workflow, definition, input)
                await self._replies.begin()
            start = StartExecution(
                execution=execution,
                workflow=definition.name,
                version=definition.version,
                definition=definition.hash,
                limits=self._connection.limits,
                key=key,
                input=value,
                created_by=actor or self._actor,
                reply=self._replies.address,
                traceparent=as_traceparent(traceparent) or self._connection.tracer.current(),
            )
            # Before it is sent, so that not even the fastest reply finds no inbox.
            inbox = self._replies.inbox(execution)
            sent = True
            with sending(self._connection.tracer, self._connection.topics.events, [start]) as (told,):
                offset = await self._send(execution, told)
        except LogUnavailable as error:
            raise StartUnconfirmed(execution, sent, str(error)) from None
        # Only a key may name an execution that has ended already, of which no reply tells.
        handle = self._handle(execution, offset, first_look=LONGEST_LOOK if key is None else FIRST_LOOK)
        del inbox
        if if_exists == "fail" and key is not None:
            seen = await handle.decided(_DECIDED_WITHIN)
            if seen.existed:
                raise ExecutionExists(execution, key, conflict=seen.conflict)
        return handle

    async def handle(self, execution: str) -> Handle:
        """A handle to an execution started elsewhere, by its id; its result comes through the audit record.

        Raises `LogUnavailable`.
        """
        await self._replies.begin()
        return self._handle(execution, None)

    async def cancel(self, execution: str, reason: str = "", *, actor: str | None = None) -> None:
        """Ask for `execution` (its id) to be cancelled; its result tells whether it was.

        `reason`: its first 1,000 characters stand in the audit record. Raises `InputInvalid` if that is no
        execution id, `NotSent`, `LogUnavailable`.
        """
        self._check_id(execution, reason)
        message = CancelExecution(execution=execution, actor=actor or self._actor, reason=reason[:_REASON_KEPT])
        await self._send(execution, message)

    async def retry(
        self,
        execution: str,
        reason: str = "",
        *,
        from_start: bool = False,
        version: str | None = None,
        actor: str | None = None,
        timeout: float = 30.0,
    ) -> Handle:
        """Retry an execution that failed or was cancelled, as a new execution `R.n`; the handle is to that one.

        Steps that completed are not run again, their results are taken over. With `from_start` all steps run
        again, in the retried execution's version of the workflow or in `version`; then one that completed, or
        that the engine no longer holds, can be retried too, with its input from the audit record.
        Raises `RetryRefused` with the engine's reason, `RetryUnanswered` after `timeout` seconds, `InputInvalid`,
        `UnknownWorkflow`, `UnknownExecution` (with `version`, where the audit record does not tell), `NotSent`,
        `LogUnavailable`.
        """
        self._check_id(execution, reason)
        if version is not None and not from_start:
            raise InputInvalid("another version can only be retried from the start: from_start=True (--from-start)")
        async with self._patiently():
            await self._replies.begin()
            anew = await self._retries.anew(execution, version)
        asked = RetryExecution(
            execution=execution,
            request=str(uuid.uuid4()),
            actor=actor or self._actor,
            reason=reason[:_REASON_KEPT],
            from_start=from_start,
            limits=self._connection.limits,
            reply=self._replies.address,
            **(anew if from_start else {"known": anew.get("known", 0)}),
        )
        inbox = await self._retries.ask(asked, timeout)
        answer = inbox.answer
        if answer is None:
            raise RetryUnanswered(execution, timeout)
        if answer.retry is None:
            raise RetryRefused(execution, answer.refused or "refused", answer.detail or "")
        return self._handle(answer.retry, None, is_retry=True)

    async def register(self, workflow: Defined, *, move_pointer: bool = False) -> bool:
        """Register a workflow's definition; False if it was there. With `move_pointer` it becomes current.

        Raises `VersionConflict` if the version has another content already; without `move_pointer`,
        `WorkflowDeleted`; `LogUnavailable`.
        """
        await self._connection.definitions.refresh()
        return await self._connection.definitions.register(workflow.definition, move_pointer=move_pointer)

    @staticmethod
    def _check_id(execution: str, reason: str) -> None:
        if not is_execution_id(execution):
            raise InputInvalid(f"{execution!r} is not an execution id")
        if not _is_text(reason):
            raise InputInvalid("the reason has a lone surrogate, which no UTF-8 text can hold")

    def _handle(
        self, execution: str, start: int | None, *, is_retry: bool = False, first_look: float = 0.0
    ) -> Handle:
        return Handle(
            *(execution, start, self._replies, self._connection.audit, self.cancel),
            is_retry=is_retry,
            first_look=first_look,
        )

    async def _send(self, execution: str, message: StartExecution | CancelExecution | RetryExecution) -> int:
        topic = self._connection.topics.events
        record = Record(topic, root_id(execution).encode(), encode_message(message))
        async with self._patiently():
            (delivery,) = await self._connection.producer.send([record])
        if delivery.error is not None:
            raise NotSent(f"the topic {topic} refused the record: {delivery.error}; has `flowpilot setup` run?")
        return delivery.offset

    @asynccontextmanager
    async def _patiently(self) -> AsyncIterator[None]:
        patience = self._connection.patience
        try:
            async with asyncio.timeout(patience):
                yield
        except TimeoutError:
            raise LogUnavailable(f"no answer within {patience:g} s") from None


def _execution_id(workflow: str, key: str | None) -> str:
    if key is None:
        return str(uuid.uuid4())
    if not 1 <= len(key) <= MAX_KEY:
        raise InputInvalid(f"a key has 1 to {MAX_KEY} characters, not {len(key)}")
    if not _is_text(key):
        raise InputInvalid("the key has a lone surrogate, which no UTF-8 text can hold")
    # A name that no workflow can have is told by `UnknownWorkflow`.
    return keyed_execution_id(workflow, key) if is_legal_name(workflow) else str(uuid.uuid4())


def _is_text(value: str) -> bool:
    """Whether `value` can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def default_actor() -> str:
    """Who asks, where nobody is named: the user that runs this process."""
    try:
        return f"user:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user id without a name
        return "user:unknown"
