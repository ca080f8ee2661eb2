"""Identifiers are functions of what they name, so that a record read twice names the same thing."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

from flowpilot_schemas.codec import canonical

# A fixed namespace of FlowPilot's own for version 5 UUIDs (RFC 9562).
_NAMESPACE = uuid.UUID("6f0d9c3a-58b1-5e0e-9a3e-2f7f4c1f0b11")

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?\Z")
_STEP_NAME = re.compile(r"[A-Za-z_](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_])?\Z")
# The highest n of an `R.n`.
MAX_RETRY = 999_999

_EXECUTION = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?:\.[1-9][0-9]{0,5})?\Z")


def is_legal_name(name: str) -> bool:
    """Workflow and queue names: 1–100 of `A–Z a–z 0–9 . _ -`, a letter or digit at both ends."""
    return bool(_NAME.match(name))


def is_legal_step_name(name: str) -> bool:
    """Step names: as workflow names, but they may begin and end with an underscore and not begin with a digit."""
    return bool(_STEP_NAME.match(name))


def is_execution_id(value: str) -> bool:
    """`<uuid>` or, for the n-th retry, `<uuid>.n`."""
    return bool(_EXECUTION.match(value))


def keyed_execution_id(workflow: str, key: str) -> str:
    """The execution started for `key`: the same key, the same execution."""
    return _uuid5([workflow, key])


def record_execution_id(workflow: str, topic_id: str, partition: int, offset: int) -> str:
    """The execution started by one record without a key. The topic's id (KIP-516) outlives its name."""
    return _uuid5([workflow, topic_id, partition, offset])


def event_execution_id(workflow: str, source: str, event: str) -> str:
    """The execution started by a CloudEvent without a key: `source` and `id` name an event for good."""
    return _uuid5([workflow, source, event])


def _uuid5(parts: list[str | int]) -> str:
    return str(uuid.uuid5(_NAMESPACE, canonical(parts).decode()))


def root_id(execution: str) -> str:
    """`R` for `R` and for its retries `R.n`: what the home partition is chosen by."""
    return execution.partition(".")[0]


def retry_number(execution: str) -> int:
    """The n of `R.n`; 0 for a root."""
    return int(execution.partition(".")[2] or 0)


def retry_id(root: str, number: int) -> str:
    """The inverse: `R.n`, and `R` itself for 0."""
    return f"{root}.{number}" if number else root


@dataclass(frozen=True, slots=True)
class TaskId:
    """`<execution>/<run>/<step>/<attempt>`: one attempt of one step; fences its completion."""

    execution: str
    run: int
    step: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.execution}/{self.run}/{self.step}/{self.attempt}"

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt: `<execution>/<run>/<step>`."""
        return f"{self.execution}/{self.run}/{self.step}"

    @classmethod
    def parse(cls, text: str) -> TaskId | None:
        """The task id in `text`, or None if it is not one."""
        parts = text.split("/")
        if len(parts) != 4 or not is_execution_id(parts[0]) or not is_legal_step_name(parts[2]):
            return None
        run, attempt = parts[1], parts[3]
        if not (run.isascii() and run.isdigit() and attempt.isascii() and attempt.isdigit()):
            return None
        if len(run) > 18 or len(attempt) > 9 or int(attempt) < 1:
            return None
        return cls(parts[0], int(run), parts[2], int(attempt))
