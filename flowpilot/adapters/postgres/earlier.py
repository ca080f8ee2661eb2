"""Whether the audit record knows an execution already, asked without SQLAlchemy: a start should not wait for it to
load."""

from __future__ import annotations

import re
from contextlib import closing
from typing import Any, NamedTuple

import orjson
import psycopg2

from flowpilot_schemas.messages import INPUT_INVALID

_PATIENCE = 2  # seconds; the least that libpq knows

_NEWEST = """
    SELECT e.run, w.status, w.finished_at IS NOT NULL, e.body, w.reason
    FROM audit_event e JOIN workflow_execution w ON w.execution_id = e.execution_id AND w.run = e.run
    WHERE e.execution_id = %s AND e.type = 'ExecutionStarted'
    ORDER BY e.run DESC LIMIT 1
"""


class Earlier(NamedTuple):
    """The newest run of an execution: how it stands, and what it was started with."""

    run: int
    status: str
    has_ended: bool
    input: Any


def earlier(database_url: str, execution: str) -> Earlier | None:
    """The newest run that the audit record knows; None: it knows none, or a worker refused that run's input, so
    that the key is free. Raises `psycopg2.Error`."""
    libpq = re.sub(r"\A(postgres(?:ql)?)\+\w+://", r"\1://", database_url)
    options = f"-c statement_timeout={_PATIENCE}s"
    with (
        closing(
            psycopg2.connect(libpq, connect_timeout=_PATIENCE, options=options, application_name="flowpilot-cli")
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(_NEWEST, (execution,))
        found = cursor.fetchone()
    if found is None:
        return None
    run, status, has_ended, body, reason = found
    if (status, reason) == ("failed", INPUT_INVALID):
        return None
    return Earlier(run, status, has_ended, orjson.loads(bytes(body)).get("input"))
