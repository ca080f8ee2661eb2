"""The outcomes of trigger records in the audit record: one a workflow, also where a worker refused the input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import orjson

from flowpilot.core.outcomes import Fate
from tests.simulation.workflows import TOPICS

if TYPE_CHECKING:
    from tests.simulation.checks import Evidence


def wrong_outcomes(e: Evidence) -> Iterator[str]:
    """Of every record at most one outcome a workflow is current, and a refused input is a dead letter by then."""
    newest: dict[tuple[str, str, int, int, str], tuple[int, dict[str, Any]]] = {}
    for run in e.history:
        values = e.values(run)
        first, last = values[0], values[-1]
        origin = first.get("origin")
        if origin is None or first["type"] not in ("ExecutionStarted", "StartRefused"):
            continue
        ended = next((value for value in values if value["type"] == "ExecutionFailed"), last)
        at = (origin["topic"], origin["partition"], origin["offset"], origin["topic_id"])
        place = (first["workflow"], *at)
        if run[1] >= newest.get(place, (-1, {}))[0]:
            newest[place] = (run[1], ended)
    for topic in (*TOPICS, e.topics.triggers):
        topic_id = e.log.topic_id(topic)
        for record in e.log.records(topic):
            found: dict[str | None, list[Fate]] = {}
            for fate in e.tables.fates(topic, record.partition, record.offset):
                if fate.topic_id == topic_id:  # an earlier topic of that name had another record there
                    found.setdefault(fate.workflow, []).append(fate)
            for workflow, fates in found.items():
                place = (workflow or "", topic, record.partition, record.offset, topic_id)
                # Read twice, under two versions with different keys, it began two executions.
                if len(fates) > 1 and not (e.versions.changed and len({fate.execution for fate in fates}) > 1):
                    yield f"{place} has {len(fates)} current outcomes: {fates}"
                if len(fates) > 1:
                    continue
                run, ended = newest.get(place, (-1, {}))
                is_refused = ended.get("reason") == "input_invalid"
                shown = (fates[0].fate, fates[0].reason, fates[0].run)
                if is_refused != (shown == ("dead_letter", "input_invalid", run)):
                    yield f"the outcome of {place} is {shown}; its run {run} ended with {ended}"


def wrong_letters(e: Evidence) -> Iterator[str]:
    """Each run whose input was refused has one dead letter, the same however often it was sent."""
    told = {record.value for record in e.log.records(e.topics.dead_letters)}
    letters = Counter(
        (value["workflow"], value["topic"], value["partition"], value["offset"])
        for value in map(orjson.loads, filter(None, told))
        if (value["source"], value["reason"]) == ("worker", "input_invalid")
    )
    for run in refused_runs(e):
        first = e.values(run)[0]
        home = {"topic": e.topics.events, "partition": e.reference.home(run[0]), "offset": run[1]}
        origin = first.get("origin") or home
        place = (first["workflow"], origin["topic"], origin["partition"], origin["offset"])
        # A record that is read again after its execution was forgotten is refused again, with a letter of its own.
        if place not in letters:
            yield f"the input of {run} was refused, and {place} has no dead letter"


def refused_runs(e: Evidence) -> list[tuple[str, int]]:
    """Those that a worker's type refused."""
    return [run for run in e.history if any(_is_refusal(value) for value in e.values(run))]


def _is_refusal(value: dict[str, Any]) -> bool:
    return value["type"] == "ExecutionFailed" and value.get("reason") == "input_invalid"
