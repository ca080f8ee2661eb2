"""The state machines, as tables. What is terminal is derived from them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from flowpilot.core.errors import FlowPilotError


class StepStatus(StrEnum):
    """Where a task execution stands."""

    PENDING = "pending"
    READY = "ready"
    RUNNING = "running"
    RETRYING = "retrying"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class ExecutionStatus(StrEnum):
    """Where an execution stands."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INCIDENT = "incident"


_S = StepStatus
STEP_TRANSITIONS: Mapping[StepStatus, frozenset[StepStatus]] = {
    # FAILED without READY: what the step would be given is larger than the limit.
    _S.PENDING: frozenset({_S.READY, _S.FAILED, _S.SKIPPED, _S.CANCELLED}),
    _S.READY: frozenset({_S.RUNNING, _S.COMPLETED, _S.FAILED, _S.RETRYING, _S.CANCELLED}),
    _S.RUNNING: frozenset({_S.COMPLETED, _S.FAILED, _S.RETRYING, _S.CANCELLED}),
    _S.RETRYING: frozenset({_S.READY, _S.CANCELLED}),
    _S.COMPLETED: frozenset(),
    _S.FAILED: frozenset(),
    _S.SKIPPED: frozenset(),
    _S.CANCELLED: frozenset(),
}

_E = ExecutionStatus
EXECUTION_TRANSITIONS: Mapping[ExecutionStatus, frozenset[ExecutionStatus]] = {
    _E.PENDING: frozenset({_E.RUNNING, _E.FAILED}),
    _E.RUNNING: frozenset({_E.COMPLETED, _E.FAILED, _E.CANCELLED, _E.INCIDENT}),
    _E.INCIDENT: frozenset({_E.CANCELLED}),
    _E.COMPLETED: frozenset(),
    _E.FAILED: frozenset(),
    _E.CANCELLED: frozenset(),
}

TERMINAL_STEP = frozenset(status for status, onward in STEP_TRANSITIONS.items() if not onward)
TERMINAL_EXECUTION = frozenset(status for status, onward in EXECUTION_TRANSITIONS.items() if not onward)
IN_FLIGHT = frozenset({StepStatus.READY, StepStatus.RUNNING})

_Status = TypeVar("_Status", StepStatus, ExecutionStatus)


class IllegalTransition(FlowPilotError):
    """A move that the table does not have; it names both ends."""


def check_step(before: StepStatus, after: StepStatus) -> StepStatus:
    """`after`, if the table has that move."""
    return _check(STEP_TRANSITIONS, before, after)


def check_execution(before: ExecutionStatus, after: ExecutionStatus) -> ExecutionStatus:
    """`after`, if the table has that move."""
    return _check(EXECUTION_TRANSITIONS, before, after)


def _check(table: Mapping[_Status, frozenset[_Status]], before: _Status, after: _Status) -> _Status:
    if after not in table[before]:
        raise IllegalTransition(f"{type(before).__name__}: no move from {before} to {after}")
    return after
