"""What a handler may ask for beside its data: a parameter annotated `StepContext`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from flowpilot.authoring.results import NotSerialisable, to_json
from flowpilot_schemas.ids import TaskId
from flowpilot_schemas.limits import MAX_HEARTBEAT_DETAILS


def _ignore(_: bytes) -> None:
    """Nobody listens: a handler called by a test."""


class StepContext:
    """One attempt, as its handler sees it. Usable from the handler's thread and from the event loop.

        @importing.step
        def load(input: Batch, ctx: StepContext) -> None:
            for row in range(ctx.last_heartbeat or 0, input.rows):
                insert(input.file, row, once=f"{ctx.idempotency_key}/{row}")
                ctx.heartbeat(row + 1)  # where another attempt goes on

    `execution` (its id), `workflow` and `step` (their names) and `attempt`, from 1, say which one it is. A unit
    test makes its own: `StepContext(TaskId(execution, run, step, attempt))`, `TaskId` of `flowpilot_schemas.ids`.
    """

    __slots__ = (
        "_beat",
        "_cancelled",
        "_log",
        "_task",
        "attempt",
        "execution",
        "last_heartbeat",
        "step",
        "traceparent",
        "workflow",
    )

    def __init__(
        self,
        task: TaskId,
        *,
        workflow: str = "",
        last_heartbeat: Any = None,
        beat: Callable[[bytes], None] = _ignore,
        traceparent: str | None = None,
    ) -> None:
        self.execution = task.execution
        self.step = task.step
        self.attempt = task.attempt
        self.workflow = workflow
        self.last_heartbeat = last_heartbeat
        """The details of the last heartbeat of an earlier attempt, or None."""
        self.traceparent = traceparent
        """W3C Trace Context for calls that the handler makes, or None: that of this attempt's span while the worker
        is traced, else the one that the execution was started with."""
        self._task = task
        self._beat = beat
        self._cancelled = False
        self._log: Any = None

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this step: give it to whatever must not happen twice."""
        return self._task.idempotency_key

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the result any more. Async handlers are cancelled as well; others look here."""
        return self._cancelled

    def heartbeat(self, details: Any = None) -> None:
        """Tell the engine how far the attempt is. Heartbeats without details are automatic.

        `details` is JSON of at most 4 KiB; the next attempt finds the latest as `last_heartbeat`. Raises
        ValueError if it is not.
        """
        try:
            data = to_json(details)
        except NotSerialisable as error:
            raise ValueError(f"the details of a heartbeat must be JSON: {error}") from None
        if len(data) > MAX_HEARTBEAT_DETAILS:
            raise ValueError(
                f"the details of a heartbeat have {len(data)} bytes; {MAX_HEARTBEAT_DETAILS} are taken"
            )
        self._beat(data)

    @property
    def log(self) -> Any:
        """A structlog logger bound to execution, step and attempt."""
        if self._log is None:
            self._log = structlog.get_logger("flowpilot.handler").bind(
                execution=self.execution, step=self.step, attempt=self.attempt
            )
        return self._log

    def cancel(self) -> None:
        """Set `cancelled`; called by the worker, or by a test."""
        self._cancelled = True
