"""From events to rows: what each event changes, and that a batch's borders change nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowpilot.audit.projection import project
from flowpilot.ports.audit import Changes, Head, HistoryEvent, Row, RunKey, TaskKey
from flowpilot_schemas.history import FIELDS
from tests.audit_history import Chain, completed, event, events, retry_of


def run_of(history: Chain) -> RunKey:
    return RunKey(history.execution, history.run)


def task_of(history: Chain, step: str) -> TaskKey:
    return TaskKey(history.execution, history.run, step)


def started(**fields: Any) -> Chain:
    history = Chain()
    history.started(**fields)
    return history


def rows(batches: list[list[HistoryEvent]]) -> tuple[dict[RunKey, Row], dict[TaskKey, Row]]:
    """The rows after some batches, each applied where its seq is newer, as the store does."""
    executions: dict[RunKey, Row] = {}
    tasks: dict[TaskKey, Row] = {}
    heads: dict[RunKey, Head] = {}
    for batch in batches:
        changes = project(batch, heads)
        for key, row in changes.executions.items():
            _newer(executions.setdefault(key, {"seq": 0}), row)
        for task, row in changes.tasks.items():
            _newer(tasks.setdefault(task, {"seq": 0, "attempt": changes.attempts[task]}), row)
        for found in batch:
            key = RunKey(found.execution, found.run)
            if key not in heads or found.seq > heads[key].seq:
                heads[key] = Head(found.seq, found.hash)
    return executions, tasks


def _newer(row: Row, change: Row) -> None:
    if change["seq"] > row["seq"]:
        row.update(change)


def test_a_completed_execution() -> None:
    history = completed(run=7)
    changes = project(events(history), {})
    row = changes.executions[run_of(history)]
    assert (row["status"], row["seq"], row["output"]) == ("completed", len(history.records), {"ok": True})
    assert (row["workflow_name"], row["workflow_version"], row["key"]) == ("onboarding", "1", "k-7")
    assert (row["origin_topic"], row["origin_topic_id"], row["origin_partition"], row["origin_offset"]) == (
        "u", "i", 0, 7,
    )  # fmt: skip
    assert row["started_at"] < row["finished_at"]
    task = changes.tasks[task_of(history, "otp")]
    assert (task["status"], task["attempt"], task["error"], task["retry_at"]) == ("completed", 2, None, None)
    assert (task["worker_id"], task["broker_task_id"]) == ("w-1", "steps/0/1")
    assert changes.divergences == []


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        (
            "StepStarted",
            {"started_at": "2026-01-01T01:00:00+01:00"},
            {"status": "running", "started_at": "2026-01-01T00:00:00+00:00"},
        ),
        ("StepStarted", {"started_at": "soon"}, {"status": "running"}),
        ("StepCompleted", {"output": None}, {"status": "completed"}),
        ("StepFailed", {"error": {"kind": "E"}}, {"status": "failed", "error": {"kind": "E"}}),
        (
            "StepRetryScheduled",
            {"retry_at": "2026-01-01T00:00:00.000Z", "error": {"kind": "E"}},
            {"status": "retrying", "retry_at": "2026-01-01T00:00:00+00:00", "error": {"kind": "E"}},
        ),
        ("StepCancelled", {}, {"status": "cancelled"}),
    ],
)
def test_what_a_step_event_changes(kind: str, fields: dict[str, Any], expected: Row) -> None:
    history = started()
    history("StepReady", step="create", attempt=1, queue="q")
    stored = events(history)
    record = history(kind, step="create", attempt=1, **fields)
    changes = project([event(record)], {run_of(history): Head(2, stored[-1].hash)})
    row = changes.tasks[task_of(history, "create")]
    moment = "started_at" if kind == "StepStarted" else "finished_at"
    assert row.items() >= expected.items()
    assert set(row) - set(expected) <= {"seq", moment}
    assert changes.executions == {}


def test_a_skipped_step_has_no_attempt() -> None:
    history = started()
    history("StepSkipped", step="otp", because_of="create")
    changes = project(events(history), {})
    task = task_of(history, "otp")
    assert changes.tasks[task]["status"] == "skipped"
    assert changes.attempts[task] == 0
    assert task in changes.born


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        (
            "ExecutionFailed",
            {"errors": {"create": {"kind": "E"}}},
            {"status": "failed", "errors": {"create": {"kind": "E"}}},
        ),
        ("ExecutionCancelled", {"actor": "me", "reason": "no need"}, {"status": "cancelled", "reason": "no need"}),
        ("ExecutionIncident", {"detail": "a bug"}, {"status": "incident", "reason": "a bug"}),
    ],
)
def test_how_an_execution_ends(kind: str, fields: dict[str, Any], expected: Row) -> None:
    history = started()
    head = events(history)[-1]
    changes = project([event(history(kind, **fields))], {run_of(history): Head(1, head.hash)})
    row = changes.executions[run_of(history)]
    assert row.items() >= expected.items()
    assert set(row) - set(expected) <= {"seq", "finished_at"}


def test_a_refused_start_is_an_execution_that_never_began() -> None:
    history = Chain()
    record = history(
        "StartRefused", workflow="x", version="1", definition="d", reason="unknown_definition", detail="no such"
    )
    row = project([event(record)], {}).executions[run_of(history)]
    assert (row["status"], row["reason"]) == ("refused", "unknown_definition: no such")


@pytest.mark.parametrize(
    "kind",
    [
        "StartDeduplicated",
        "KeyConflict",
        "CompletionIgnored",
        "CancelIgnored",
        "DispatchFailed",
        "StepTimedOut",
        "Later",
    ],
)
def test_what_changes_no_row(kind: str) -> None:
    history = started()
    head = events(history)[-1]
    record = history(kind, step="create", attempt=1)
    assert project([event(record)], {run_of(history): Head(1, head.hash)}) == Changes()


def test_every_event_of_the_schema_is_folded_or_known_to_change_nothing() -> None:
    history = started()
    for kind in FIELDS:
        history(kind, step="create", attempt=1, detail="", reason="", error={}, errors={})
    project(events(history), {})


def test_a_parent_is_named() -> None:
    first = started()
    retry = retry_of(first, 1, run=5)
    changes = project(events(first, retry), {})
    assert changes.parents == {run_of(retry): first.execution}
    row = changes.executions[run_of(retry)]
    assert (row["created_by"], row["retry_reason"]) == ("user:ann", "fixed")


def test_a_step_that_was_taken_over_is_completed_without_an_attempt() -> None:
    first = started()
    retry = retry_of(first, 1, run=5, taken={first.execution: ["create"]})
    changes = project(events(retry), {})
    [(key, row)] = changes.tasks.items()
    assert (key.step, changes.attempts[key], key in changes.born) == ("create", 0, True)
    assert row == {"seq": 1, "status": "completed", "taken_from": first.execution}


def test_events_up_to_the_head_change_nothing() -> None:
    history = completed()
    found = events(history)
    assert project(found, {run_of(history): Head(len(found), found[-1].hash)}) == Changes()


def test_a_replay_within_a_batch_moves_nothing_backwards() -> None:
    history = completed()
    found = events(history)
    assert project([*found[:3], *found[1:], *found], {}) == project(found, {})


def test_a_gap_is_a_divergence_and_the_rest_counts() -> None:
    history = completed()
    found = events(history)
    changes = project([*found[:3], *found[4:]], {})
    assert [(item.reason, item.seq) for item in changes.divergences] == [("gap", 5)]
    assert changes.executions[run_of(history)]["status"] == "completed"


def test_a_run_whose_beginning_is_missing() -> None:
    history = completed()
    changes = project(events(history)[4:6], {})
    assert [item.reason for item in changes.divergences] == ["gap"]
    assert changes.executions[run_of(history)]["status"] == "unknown"


def test_a_chain_that_does_not_continue_is_a_divergence() -> None:
    history = completed()
    found = events(history)
    forged = [*found[:2], found[2]._replace(prev=b"x" * 32), *found[3:]]
    assert [(item.reason, item.seq) for item in project(forged, {}).divergences] == [("broken_chain", 3)]
    assert [item.reason for item in project([found[0]._replace(prev=b"x" * 32)], {}).divergences] == [
        "broken_chain"
    ]


@given(
    borders=st.lists(st.integers(0, 20), max_size=6),
    again=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20))),
)
def test_batch_borders_and_redelivery_change_no_row(borders: list[int], again: list[tuple[int, int]]) -> None:
    found = events(completed(1), completed(2))
    cuts = sorted({0, *borders, len(found)})
    batches = [found[start:end] for start, end in pairwise(cuts)]
    for start, length in again:  # what was read already comes again, at the end of some batch
        place = start % len(batches)
        read = [item for batch in batches[: place + 1] for item in batch]
        batches[place] = [*batches[place], *read[start : start + length]]
    assert rows(batches) == rows([found])


@pytest.mark.parametrize("steps", [5, None, "create", [7], {"create": 1}])
def test_what_a_foreign_writer_calls_taken_over_changes_no_task(steps: Any) -> None:
    first = started()
    retry = retry_of(first, 1, run=5, taken={first.execution: steps})
    changes = project(events(retry), {})
    assert changes.executions[run_of(retry)]["status"] == "running"
    assert not changes.tasks
