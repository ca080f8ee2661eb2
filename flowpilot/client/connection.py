"""What a client needs of the world; `flowpilot.app` makes it from the settings, tests from memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from flowpilot.ports.definitions import Definitions
from flowpilot.ports.log import Producer, Reader
from flowpilot.ports.tracer import OFF, Tracer
from flowpilot_schemas.limits import Limits
from flowpilot_schemas.messages import ExecutionEnded
from flowpilot_schemas.topics import Topics


@dataclass(frozen=True, slots=True)
class StartSeen:
    """What became of one start: the run that answers it, and whether that run was there before."""

    run: int
    existed: bool = False
    conflict: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """What a run was started with, and the highest number of its root's retries."""

    workflow: str
    version: str
    definition: str
    input: Any
    retries: int
    traceparent: str | None = None


class AuditView(Protocol):
    """What a client asks of the audit record. It lags behind the log; all raise `AuditUnavailable`."""

    async def start_seen(self, execution: str, cause: int) -> StartSeen | None:
        """What became of the StartExecution at offset `cause` of the home partition; None: not there yet."""
        ...

    async def ended(self, execution: str, run: int | None) -> ExecutionEnded | None:
        """How the run (None: the newest one) ended; None: it has not, or the audit does not know it yet."""
        ...

    async def started(self, execution: str) -> Started | None:
        """What the newest run of `execution` was started with; None: the audit does not know it."""
        ...


class AuditUnavailable(Exception):
    """PostgreSQL did not answer."""


@dataclass(frozen=True, slots=True)
class Connection:
    """The ports of one client. Without `audit`, results come through the replies topic only.

    `patience`: seconds until the log's silence is an error; None: as long as the ports wait.
    """

    topics: Topics
    limits: Limits
    producer: Producer
    reader: Reader
    definitions: Definitions
    audit: AuditView | None = None
    patience: float | None = None
    tracer: Tracer = OFF
