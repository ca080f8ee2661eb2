"""The keys of a partition's table. Each begins with what it belongs to, so that no two kinds meet."""

from __future__ import annotations

from typing import NamedTuple

from flowpilot.engine.table import WATERMARK_KEY

_DEFINITION = b"def/"
RULES_KEY = b"rules"
_OF_THE_PARTITION = (WATERMARK_KEY, RULES_KEY)


def state_key(execution: str) -> bytes:
    """Where an execution's state lies."""
    return execution.encode()


def input_key(execution: str, run: int) -> bytes:
    """Where a run's input lies."""
    return f"{execution}/{run}".encode()


def output_key(execution: str, run: int, step: str) -> bytes:
    """Where a step's output lies."""
    return f"{execution}/{run}/{step}".encode()


def definition_key(definition_hash: str) -> bytes:
    """Where the partition's own copy of a definition lies."""
    return _DEFINITION + definition_hash.encode()


class Payload(NamedTuple):
    """The run that an input or output belongs to."""

    execution: str
    run: int


def payload_of(key: bytes) -> Payload | None:
    """The run whose input or output lies under `key`; None for every other kind of key."""
    if key.startswith(_DEFINITION) or b"/" not in key:
        return None
    execution, run = key.split(b"/")[:2]
    return Payload(execution.decode(), int(run))


def is_state(key: bytes) -> bool:
    """Whether an execution's state lies under `key`."""
    return b"/" not in key and key not in _OF_THE_PARTITION
