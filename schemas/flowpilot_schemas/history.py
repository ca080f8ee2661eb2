"""History events: facts the engine decided, in the past tense, one JSON object each on `flowpilot.history`.

A record's key is the execution id; its headers hold the hash chain: `fp-prev` and `fp-hash`, 32 bytes each,
with `fp-hash = sha256(fp-prev ‖ value)` and 32 zero bytes before the first. (execution, run, seq) names an
event; seq counts from 1 without gaps. The same event may come more than once, always with the same bytes.

Every event has `v, type, execution, run, seq, at` (broker time of its cause, ISO 8601) and `cause` (the
offset of the record on the events topic that it was decided on); the further fields are listed in `FIELDS`.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import lru_cache

GENESIS = bytes(32)
HEADER_PREV = "fp-prev"
HEADER_HASH = "fp-hash"
HEADER_HOPS = "fp-hops"

# type: the fields beside the common ones; `?` marks those that may be missing.
FIELDS: dict[str, tuple[str, ...]] = {
    "ExecutionStarted": (
        "workflow", "version", "definition", "key?", "input?", "origin?", "created_by?",
        "parent?", "parent_run?", "from_start?", "retry_reason?", "request?", "taken?", "traceparent?",
    ),
    "StartRefused": (
        "workflow", "version", "definition", "reason", "detail", "key?", "origin?", "created_by?",
        "parent?", "parent_run?", "from_start?", "retry_reason?", "request?", "traceparent?",
    ),
    "StartDeduplicated": ("origin?", "created_by?"),
    "KeyConflict": ("origin?", "created_by?", "input_hash"),
    "StepReady": ("step", "attempt", "queue", "last_heartbeat?"),
    "StepNotServed": ("step", "attempt", "detail", "worker_id?", "broker_task_id?"),
    "StepStarted": ("step", "attempt", "worker_id?", "broker_task_id?", "started_at?"),
    "StepCompleted": ("step", "attempt", "size", "output?", "worker_id?", "broker_task_id?", "started_at?"),
    "StepFailed": ("step", "attempt", "error", "worker_id?", "broker_task_id?", "started_at?"),
    "StepTimedOut": ("step", "attempt", "timeout", "outcome"),
    "StepRetryScheduled": ("step", "attempt", "next_attempt", "retry_at", "error", "worker_id?", "broker_task_id?"),
    "StepSkipped": ("step", "because_of"),
    "StepCancelled": ("step", "attempt"),
    "CompletionIgnored": ("step", "attempt", "answer", "reason", "worker_id?"),
    "DispatchFailed": ("step", "attempt", "detail"),
    "CancelIgnored": ("actor", "reason"),
    "RetryRefused": ("of", "actor", "reason", "request", "refusal", "detail", "running?"),
    "ExecutionCompleted": ("output?", "output_omitted?"),
    "ExecutionFailed": ("errors", "reason?", "detail?"),
    "ExecutionCancelled": ("actor", "reason"),
    "ExecutionIncident": ("detail",),
}  # fmt: skip

TERMINAL_EVENTS = frozenset({"ExecutionCompleted", "ExecutionFailed", "ExecutionCancelled", "StartRefused"})


def chain(previous: bytes, value: bytes) -> bytes:
    """The next link of an execution's hash chain: sha256(previous ‖ value), 32 bytes."""
    return hashlib.sha256(previous + value).digest()


def iso(ms: int) -> str:
    """Milliseconds since the epoch as ISO 8601 in UTC with milliseconds."""
    return f"{_second(ms // 1000)}.{ms % 1000:03d}Z"


# The times of a batch fall into few seconds, and strftime is slow.
@lru_cache(maxsize=256)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def from_iso(text: str) -> int:
    """The inverse of `iso`, in ms. Raises ValueError."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)
