"""The current outcome of a trigger record, in memory and on PostgreSQL: one a workflow, in any order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any

import pytest

from flowpilot.core.dead_letters import dead_letter
from flowpilot.core.outcomes import Fate
from flowpilot.ports.audit import HistoryEvent, Letter, Position
from flowpilot.ports.log import Fetched
from flowpilot_schemas.triggers import Filtered, TriggerFiltered
from tests.audit_history import Chain, events
from tests.contract.audits import MEMORY_AND_POSTGRES, PLACE, TOPIC_ID, Audit, open_audit

ORIGIN = {"topic": "orders", "topic_id": "id-1", "partition": 0, "offset": 5}


@pytest.fixture(params=MEMORY_AND_POSTGRES)
def audit(request: pytest.FixtureRequest) -> Iterator[Audit]:
    for found in open_audit(request.param, request):
        found.begin({PLACE: Position(TOPIC_ID, 0)})
        yield found


def begun(run: int, execution: str | None = None) -> Chain:
    chain = Chain(execution, run=run)
    chain.started(origin=ORIGIN)
    return chain


def refused(chain: Chain) -> Chain:
    """Its input was refused by a worker."""
    error = {"kind": "input_invalid", "message": "n: Input should be an integer"}
    chain("StepFailed", step="create", attempt=1, error=error)
    chain("ExecutionFailed", errors={"create": error}, reason="input_invalid", detail=error["message"])
    return chain


def letter(source: str, workflow: str | None, reason: str = "input_invalid", topic_id: str = "id-1") -> Letter:
    record = Fetched("orders", 0, 5, 1, None, b"{}")
    return Letter(dead_letter(record, reason, "it does not fit", source, workflow, topic_id), 1)


def filtered(workflow: str, topic_id: str = "id-1") -> TriggerFiltered:
    part = Filtered(workflow=workflow, reason="where", ranges=[(5, 5)])
    return TriggerFiltered(topic="orders", topic_id=topic_id, partition=0, filtered=[part])


def test_a_refusal_by_the_worker_supersedes_started(audit: Audit) -> None:
    chain = begun(1)
    audit.write(events(chain))
    [started] = audit.outcomes("orders", 0, 5)
    assert started == Fate("onboarding", "started", None, None, chain.execution, 1, "id-1")
    audit.write(events(refused(chain)))
    detail = "n: Input should be an integer"
    superseding = [Fate("onboarding", "dead_letter", "input_invalid", detail, chain.execution, 1, "id-1")]
    assert audit.outcomes("orders", 0, 5) == superseding
    audit.write(letters=[letter("worker", "onboarding")])  # the same, as a record of its own
    assert audit.outcomes("orders", 0, 5) == superseding
    assert audit.differences() == []


def test_an_ordinary_failure_supersedes_nothing(audit: Audit) -> None:
    chain = begun(1)
    chain("ExecutionFailed", errors={}, reason="timed_out")
    audit.write(events(chain))
    assert [fate.fate for fate in audit.outcomes("orders", 0, 5)] == ["started"]


def test_the_newest_run_that_a_record_began_counts(audit: Audit) -> None:
    """It was processed again: what came of it before is kept, and is not current."""
    first = refused(begun(1))
    again = begun(9, first.execution)
    audit.write(events(again, first))
    assert [(fate.fate, fate.run) for fate in audit.outcomes("orders", 0, 5)] == [("started", 9)]
    audit.write(events(refused(again)))
    assert [(fate.fate, fate.run) for fate in audit.outcomes("orders", 0, 5)] == [("dead_letter", 9)]


_WRITES: dict[str, dict[str, Any]] = {
    "filtered": {"filtered": [filtered("onboarding")]},
    "dead letter": {"letters": [letter("router", "onboarding")]},
    "run": {},
}


@pytest.mark.parametrize("order", list(permutations(_WRITES)))
def test_the_order_of_recording_decides_nothing(audit: Audit, order: tuple[str, ...]) -> None:
    """Two versions of the workflow, or a router that read the record twice, said different things of it."""
    chain = begun(3)
    for name in order:
        found: list[HistoryEvent] = events(chain) if name == "run" else []
        audit.write(found, **_WRITES[name])
    assert [(fate.workflow, fate.fate) for fate in audit.outcomes("orders", 0, 5)] == [("onboarding", "started")]


def test_a_duplicate_stands_over_a_dead_letter_of_the_router(audit: Audit) -> None:
    other = Chain(run=2)
    other.started(origin={**ORIGIN, "offset": 1})
    other("StartDeduplicated", origin=ORIGIN)
    audit.write(events(other), letters=[letter("router", "onboarding"), letter("router", "billing")])
    assert [(fate.workflow, fate.fate) for fate in audit.outcomes("orders", 0, 5)] == [
        ("billing", "dead_letter"),
        ("onboarding", "duplicate"),
    ]


def test_a_topic_that_was_made_again_has_other_records(audit: Audit) -> None:
    audit.write(events(begun(1)), letters=[letter("router", "onboarding", "not_json", topic_id="id-2")])
    found = [(fate.topic_id, fate.fate) for fate in audit.outcomes("orders", 0, 5)]
    assert found == [("id-1", "started"), ("id-2", "dead_letter")]
