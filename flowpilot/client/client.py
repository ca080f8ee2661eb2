"""The client: starts executions, waits for their results, cancels them."""

from __future__ import annotations

import getpass
import time
import uuid
from typing import Any, Literal, Protocol, Self

from flowpilot.authoring.errors import InputInvalid
from flowpilot.authoring.results import NotSerialisable, to_json
from flowpilot.client.connection import Connection
from flowpilot.client.errors import ExecutionExists, NotSent, UnknownWorkflow
from flowpilot.client.handle import Handle
from flowpilot.client.replies import Replies
from flowpilot.core.inputs import check_input
from flowpilot.ports.definitions import WorkflowDeleted
from flowpilot.ports.log import Record
from flowpilot_schemas.codec import BadRecord, decode, encode_message
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.ids import is_execution_id, keyed_execution_id, root_id
from flowpilot_schemas.limits import MAX_KEY
from flowpilot_schemas.messages import CancelExecution, StartExecution

# For so many seconds a client that starts an object does not ask again whether its workflow was deleted.
REGISTERED_FOR = 10.0

IfExists = Literal["return", "fail"]


class Defined(Protocol):
    """A `Workflow` object, as far as a client cares."""

    @property
    def definition(self) -> WorkflowDefinition: ...

    def input_json(self, value: Any) -> Any: ...


class ConnectedClient:
    """A client over given ports, used on one event loop. `actor` stands in the audit as who asked
    (unless given, the user's name)."""

    def __init__(self, connection: Connection, *, actor: str | None = None) -> None:
        self._connection = connection
        self._actor = actor or _user()
        self._registered: dict[str, float] = {}  # definition hash to when to look again
        self._replies = Replies(connection.reader, connection.topics, f"client-{uuid.uuid4()}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop reading replies. Executions go on."""
        await self._replies.close()

    async def start(
        self,
        workflow: Defined | str,
        input: Any = None,
        *,
        key: str | None = None,
        version: str | None = None,
        if_exists: IfExists = "return",
    ) -> Handle:
        """Start an execution and return its handle as soon as the log has taken it.

        A `Workflow` object starts its own version, registered if need be; a name the current version, or
        `version`. With `key`, the execution that this key names: if it exists already the handle is to that one,
        or, with `if_exists="fail"`, `ExecutionExists` is raised (this asks the audit record, so it must be
        running). Raises `UnknownWorkflow`, `WorkflowDeleted` (of an object, within ten seconds), `VersionConflict`
        if the object's version is registered with other content, `InputInvalid`, `NotSent`, `LogUnavailable`.
        """
        definition = await self._definition(workflow, version)
        value = self._checked(workflow, definition, input, key)
        execution = str(uuid.uuid4()) if key is None else keyed_execution_id(definition.name, key)
        await self._replies.begin()
        start = StartExecution(
            execution=execution,
            workflow=definition.name,
            version=definition.version,
            definition=definition.hash,
            limits=self._connection.limits,
            key=key,
            input=value,
            created_by=self._actor,
            reply=self._replies.address,
        )
        # Before it is sent, so that not even the fastest reply finds no inbox.
        inbox = self._replies.inbox(execution)
        offset = await self._send(execution, start)
        handle = self._handle(execution, offset)
        del inbox
        if if_exists == "fail" and key is not None:
            seen = await handle.decided(timeout=30.0)
            if seen.existed:
                raise ExecutionExists(execution, key, conflict=seen.conflict)
        return handle

    async def handle(self, execution: str) -> Handle:
        """A handle to an execution started elsewhere; its result comes through the audit record."""
        await self._replies.begin()
        return self._handle(execution, None)

    async def cancel(self, execution: str, reason: str = "", *, actor: str | None = None) -> None:
        """Ask for `execution` to be cancelled. Raises `InputInvalid` if that is no execution id."""
        if not is_execution_id(execution):
            raise InputInvalid(f"{execution!r} is not an execution id")
        if not is_text(reason):
            raise InputInvalid("the reason has a lone surrogate, which no UTF-8 text can hold")
        message = CancelExecution(execution=execution, actor=actor or self._actor, reason=reason[:1_000])
        await self._send(execution, message)

    async def register(self, workflow: Defined, *, move_pointer: bool = False) -> bool:
        """Register a workflow's definition; False if it was there. With `move_pointer` it becomes current.

        Raises `VersionConflict` if the version has another content already; without `move_pointer`,
        `WorkflowDeleted`.
        """
        await self._connection.definitions.refresh()
        return await self._connection.definitions.register(workflow.definition, move_pointer=move_pointer)

    def _handle(self, execution: str, start: int | None) -> Handle:
        return Handle(execution, start, self._replies, self._connection.audit, self.cancel)

    async def _definition(self, workflow: Defined | str, version: str | None) -> WorkflowDefinition:
        definitions = self._connection.definitions
        if not isinstance(workflow, str):
            definition = workflow.definition
            if version is not None and version != definition.version:
                raise UnknownWorkflow(definition.name, version, [])
            if self._registered.get(definition.hash, 0.0) < time.monotonic():
                await definitions.register(definition)
                self._registered[definition.hash] = time.monotonic() + REGISTERED_FOR
            return definitions.registered(definition)
        await definitions.refresh()
        current = definitions.current(workflow)
        found = current if version is None else definitions.version(workflow, version)
        if found is None and definitions.is_deleted(workflow):
            raise WorkflowDeleted(workflow)
        if found is None:
            wrong_version = version if current is not None else None
            raise UnknownWorkflow(workflow, wrong_version, definitions.workflows())
        return found

    def _checked(self, workflow: Defined | str, definition: WorkflowDefinition, input: Any, key: str | None) -> Any:
        if key is not None and not 1 <= len(key) <= MAX_KEY:
            raise InputInvalid(f"a key has 1 to {MAX_KEY} characters, not {len(key)}")
        if key is not None and not is_text(key):
            raise InputInvalid("the key has a lone surrogate, which no UTF-8 text can hold")
        try:
            value = decode(to_json(input)) if isinstance(workflow, str) else workflow.input_json(input)
            check_input(definition, value, self._connection.limits.input)
        except NotSerialisable as error:
            raise InputInvalid(f"the input is not JSON: {error}") from None
        except BadRecord as bad:
            raise InputInvalid(bad.detail) from None
        return value

    async def _send(self, execution: str, message: StartExecution | CancelExecution) -> int:
        topic = self._connection.topics.events
        record = Record(topic, root_id(execution).encode(), encode_message(message))
        (delivery,) = await self._connection.producer.send([record])
        if delivery.error is not None:
            raise NotSent(f"the topic {topic} refused the record: {delivery.error}; has `flowpilot setup` run?")
        return delivery.offset


def is_text(value: str) -> bool:
    """Whether `value` can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _user() -> str:
    try:
        return f"user:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user id without a name
        return "user:unknown"
