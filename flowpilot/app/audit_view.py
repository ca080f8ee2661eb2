"""What a client asks of the audit record, by SQL: always from the exact bytes of the history events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection as SqlConnection
from sqlalchemy import Engine, func, or_, select
from sqlalchemy.exc import SQLAlchemyError

from flowpilot.adapters.postgres.models import AuditEvent
from flowpilot.client.connection import AuditUnavailable, Started, StartSeen
from flowpilot_schemas.codec import decode_object
from flowpilot_schemas.history import TERMINAL_EVENTS
from flowpilot_schemas.ids import retry_number, root_id
from flowpilot_schemas.messages import ExecutionEnded

Result = TypeVar("Result")

_DEDUPLICATED = ("StartDeduplicated", "KeyConflict")
_STATUS = {
    "ExecutionCompleted": "completed",
    "ExecutionFailed": "failed",
    "ExecutionCancelled": "cancelled",
    "StartRefused": "refused",
}


class PostgresAuditView:
    """See `flowpilot.client.connection.AuditView`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def start_seen(self, execution: str, cause: int) -> StartSeen | None:
        """See the protocol."""
        return await self._ask(lambda connection: _start_seen(connection, execution, cause))

    async def ended(self, execution: str, run: int | None) -> ExecutionEnded | None:
        """See the protocol."""
        return await self._ask(lambda connection: _ended(connection, execution, run))

    async def started(self, execution: str) -> Started | None:
        """See the protocol."""
        return await self._ask(lambda connection: _started(connection, execution))

    async def _ask(self, question: Callable[[SqlConnection], Result]) -> Result:
        def ask() -> Result:
            with self._engine.connect() as connection:
                return question(connection)

        try:
            return await asyncio.to_thread(ask)
        except SQLAlchemyError as error:
            raise AuditUnavailable(str(error).partition("\n")[0]) from None


def _start_seen(connection: SqlConnection, execution: str, cause: int) -> StartSeen | None:
    found = connection.execute(
        select(AuditEvent.type, AuditEvent.run, AuditEvent.body)
        .where(AuditEvent.execution_id == execution)
        .where(or_(AuditEvent.run == cause, AuditEvent.type.in_(_DEDUPLICATED)))
        .order_by(AuditEvent.run.desc(), AuditEvent.seq)
    )
    for kind, run, body in found:
        if run == cause:
            return StartSeen(run)
        if decode_object(body)["cause"] == cause:
            return StartSeen(run, existed=True, conflict=kind == "KeyConflict")
    return None


def _started(connection: SqlConnection, execution: str) -> Started | None:
    body = connection.execute(
        select(AuditEvent.body)
        .where(AuditEvent.execution_id == execution, AuditEvent.type == "ExecutionStarted")
        .order_by(AuditEvent.run.desc())
        .limit(1)
    ).scalar()
    if body is None:
        return None
    root = root_id(execution)
    retries = connection.execute(
        select(AuditEvent.execution_id)
        .where(AuditEvent.execution_id > f"{root}.", AuditEvent.execution_id < f"{root}/", AuditEvent.seq == 1)
        .distinct()
    ).scalars()
    fields = decode_object(body)
    return Started(
        fields["workflow"],
        fields["version"],
        fields["definition"],
        fields.get("input"),
        max(map(retry_number, retries), default=0),
        fields.get("traceparent"),
    )


def _ended(connection: SqlConnection, execution: str, run: int | None) -> ExecutionEnded | None:
    if run is None:
        newest = select(func.max(AuditEvent.run)).where(AuditEvent.execution_id == execution)
        run = connection.execute(newest).scalar()
    found = connection.execute(
        select(AuditEvent.type, AuditEvent.run, AuditEvent.body)
        .where(AuditEvent.execution_id == execution, AuditEvent.run == run)
        .where(AuditEvent.type.in_(TERMINAL_EVENTS))
        .order_by(AuditEvent.seq.desc())
        .limit(1)
    ).first()
    if found is None:
        return None
    body: dict[str, Any] = decode_object(found.body)
    refused = found.type == "StartRefused"
    return ExecutionEnded.model_validate(
        {
            "execution": execution,
            "run": found.run,
            "status": _STATUS[found.type],
            "output": body.get("output"),
            "output_omitted": body.get("output_omitted", False),
            "errors": body.get("errors", {}),
            "reason": body.get("detail" if refused else "reason"),
        }
    )
