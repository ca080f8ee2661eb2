"""When a failed attempt is tried again: exponential back-off with a cap and deterministic jitter."""

from __future__ import annotations

import hashlib

from flowpilot_schemas.definition import RetryPolicy
from flowpilot_schemas.messages import StepError

# A back-off is shortened by up to this share, never lengthened: the cap stays a cap.
JITTER = 0.2


def may_retry(policy: RetryPolicy, error: StepError, attempt: int) -> bool:
    """Whether attempt number `attempt` that ended with `error` is followed by another."""
    return error.retryable and error.kind not in policy.non_retryable and attempt < policy.max_attempts


def delay_ms(policy: RetryPolicy, error: StepError, attempt: int, task_id: str) -> int:
    """How long after the failure of attempt `attempt` the next one is sent, in ms."""
    if error.retry_after_ms is not None:
        return error.retry_after_ms
    return backoff_ms(policy, attempt, task_id)


def backoff_ms(policy: RetryPolicy, attempt: int, task_id: str) -> int:
    """`initial · backoff^(attempt-1)`, capped, then jittered by a hash of the task id: the same on every replay."""
    if policy.initial_ms == 0:
        return 0
    try:
        wanted = policy.initial_ms * policy.backoff ** (attempt - 1)
    except OverflowError:
        wanted = float("inf")
    share = int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:8], "big") / 2**64
    return round(min(wanted, policy.max_interval_ms) * (1 - JITTER * share))
