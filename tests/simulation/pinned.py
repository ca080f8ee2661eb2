"""What is checked of definitions when all is quiet: what runs are pinned to, and the rows that mirror the topic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import orjson

from flowpilot.ports.log import TopicPartition
from flowpilot_schemas.definition import WorkflowDefinition

if TYPE_CHECKING:
    from tests.simulation.checks import Evidence, Run


def not_as_pinned(e: Evidence, run: Run, started: dict[str, Any], definition: WorkflowDefinition) -> Iterator[str]:
    """The definition of a run is the one that its start names, whatever was current then or later."""
    if (definition.name, definition.version) != (started["workflow"], started["version"]):
        yield f"{run}: it is {started['workflow']}@{started['version']} by the definition of {definition.version}"
    home = e.reference.home(run[0])
    for record in e.log.fetch(TopicPartition(e.topics.events, home), started["cause"], 1):
        named = _named(record.value)
        if named is not None and named != started["definition"]:
            yield f"{run}: started with {started['definition']} instead of the pinned {named}"
    parent = started.get("parent")
    if parent is not None and not started.get("from_start"):
        of_parent = {value["definition"] for value in _starts(e, parent)}
        if of_parent and started["definition"] not in of_parent:
            yield f"{run}: retries {parent} under another definition"


def _named(value: bytes | None) -> str | None:
    """The definition's hash in a start; None of other records."""
    if b'"type":"execution.start"' not in (value or b""):
        return None
    found: str = orjson.loads(value or b"")["definition"]
    return found


def _starts(e: Evidence, execution: str) -> Iterator[dict[str, Any]]:
    for run in e.history:
        if run[0] == execution:
            yield from (value for value in e.values(run)[:1] if value["type"] == "ExecutionStarted")


def wrong_workflow_rows(e: Evidence) -> Iterator[str]:
    """The rows of workflows are the versions that the definitions topic has."""
    known, found = e.versions.known, dict(e.tables.workflows)
    for name in known.workflows():
        current = known.current(name)
        for definition in known.versions(name):
            row = found.pop((name, definition.version), None)
            if row != (definition.hash, definition == current):
                yield f"the row of {name}@{definition.version} is {row}"
    for (name, version), row in found.items():
        current = known.current(name)
        if row.is_current and current is not None and row.definition == current.hash:
            # Two who apply it after a deletion: one took back the other's version, and died. The next worker that
            # starts registers it again.
            continue
        # A definition has its row as soon as it is on the topic, though its version may never be registered.
        if row.is_current or not e.versions.is_of_now(name, row.definition):
            yield f"there is a row of {name}@{version}, which is not registered"
