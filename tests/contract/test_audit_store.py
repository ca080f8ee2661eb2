"""The audit store, in memory and on PostgreSQL: events, the rows that they make, and what contradicts them.

What only SQL can ask or do (relations, append only, columns that a statement sets) is in
tests/integration/test_audit_store.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from flowpilot.audit.projection import project
from flowpilot.ports.audit import (
    Advance,
    Batch,
    Divergence,
    HistoryEvent,
    Position,
)
from tests.audit_history import Chain, completed, event, events, retry_of
from tests.contract.audits import MEMORY_AND_POSTGRES, PLACE, TOPIC_ID, Audit, open_audit


@pytest.fixture(params=MEMORY_AND_POSTGRES)
def audit(request: pytest.FixtureRequest) -> Iterator[Audit]:
    for found in open_audit(request.param, request):
        found.begin({PLACE: Position(TOPIC_ID, 0)})
        yield found


# Events and rows


def test_a_history_is_stored_byte_by_byte_with_its_rows(audit: Audit) -> None:
    history = completed(run=3)
    assert audit.write(events(history)) == []
    [run] = audit.runs()
    assert [each.body for each in run.events] == [record.value for record in history.records]
    assert run.key == (history.execution, 3)
    row = run.execution
    assert row is not None
    assert (row["status"], row["seq"], row["output"], row["origin_offset"], row["key"]) == (
        "completed", len(history.records), {"ok": True}, 3, "k-3",
    )  # fmt: skip
    assert {step: (task["status"], task["attempt"]) for step, task in run.tasks.items()} == {
        "create": ("completed", 1), "otp": ("completed", 2), "mail": ("completed", 1), "activate": ("completed", 1),
    }  # fmt: skip
    assert audit.differences() == []


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_batches_of_any_size_lead_to_the_same_rows(audit: Audit, size: int) -> None:
    found = events(completed(1), completed(2))
    for start in range(0, len(found), size):
        assert audit.write(found[max(0, start - 2) : start + size]) == []  # the last two come again each time
    assert audit.events() == len(found)
    assert [run.execution and run.execution["status"] for run in audit.runs()] == ["completed"] * 2
    assert audit.divergences() == audit.differences() == []


def test_all_of_it_may_come_again(audit: Audit) -> None:
    first = completed(run=1)
    found = events(first, retry_of(first, 1, run=40))
    audit.write(found)
    before = audit.runs()
    audit.write(found)
    assert audit.runs() == before
    assert audit.divergences() == audit.differences() == []


def test_rows_never_go_backwards(audit: Audit) -> None:
    """Also if what was read before came as news, the rows compare its seq with theirs."""
    found = events(completed())
    audit.write(found)
    advance = Advance(PLACE, TOPIC_ID, 1, 2)
    asyncio.run(audit.store.write(Batch([advance], found[:2]), lambda batch, _heads: project(batch, {})))
    assert audit.differences() == []


def test_a_batch_is_projected_onto_the_newest_stored_events(audit: Audit) -> None:
    history, other = completed(1), completed(2)
    audit.write(events(history)[:3])
    told: list[Any] = []

    def look(batch: Sequence[HistoryEvent], heads: Any) -> Any:
        told.append({key: tuple(head) for key, head in heads.items()})
        return project(batch, heads)

    batch = Batch([Advance(PLACE, TOPIC_ID, 1, 2)], events(history)[3:] + events(other))
    asyncio.run(audit.store.write(batch, look))
    assert told == [{(history.execution, 1): (3, events(history)[2].hash)}]
    assert audit.differences() == []


def test_every_kind_of_end_agrees_with_its_events(audit: Audit) -> None:
    failed, cancelled, refused = Chain(run=1), Chain(run=2), Chain(run=3)
    failed.started()
    failed("StepFailed", step="create", attempt=1, error={"kind": "input_too_large", "message": "x"})
    failed("StepSkipped", step="otp", because_of="create")
    failed("ExecutionFailed", errors={"create": {"kind": "input_too_large"}}, reason="no")
    cancelled.started(key="a\0b", created_by='quo"te\\{},NULL')
    cancelled("StepReady", step="create", attempt=1, queue="q")
    cancelled("StepStarted", step="create", attempt=1, started_at="2026-01-01T00:00:00+02:00")
    cancelled("StepCancelled", step="create", attempt=1)
    cancelled("ExecutionCancelled", actor="me", reason="␀\0'%s")
    refused("StartRefused", workflow="w", version="9", definition="d", reason="unknown_definition", detail="none")
    for found in events(failed, cancelled, refused):
        audit.write([found])
    rows = {run.key.run: run.execution or {} for run in audit.runs()}
    assert [rows[number]["status"] for number in (1, 2, 3)] == ["failed", "cancelled", "refused"]
    assert [rows[2][name] for name in ("key", "created_by", "reason")] == ["a␀b", 'quo"te\\{},NULL', "␀␀'%s"]
    tasks = {(run.key.run, step): task for run in audit.runs() for step, task in run.tasks.items()}
    assert {key: (task["status"], task["attempt"]) for key, task in tasks.items()} == {
        (1, "create"): ("failed", 1), (1, "otp"): ("skipped", 0), (2, "create"): ("cancelled", 1),
    }  # fmt: skip
    assert audit.differences() == []


@pytest.mark.parametrize(
    "output",
    [{"a": "\0", "\0": 1}, 1e300, -0.0, 2**63 - 1, "\ud7ff\uffff𝄞", '\\"{},NULL', [[["\\u0000"]]], False, ""],
)
def test_outputs_of_all_sorts(audit: Audit, output: object) -> None:
    history = Chain()
    history.started()
    history.step("create", output=output)
    history("ExecutionCompleted", output=output)
    audit.write(events(history))
    assert audit.differences() == []


def test_events_of_a_deleted_execution_do_not_bring_it_back(audit: Audit) -> None:
    found = events(completed())
    audit.write(found[:3])
    audit.delete_rows()
    audit.write(found[3:])
    assert audit.events() == len(found)
    [run] = audit.runs()
    assert (run.execution, run.tasks) == (None, {})
    assert [item.what for item in audit.differences()] == ["there is no row"]


@pytest.mark.parametrize("size", [1, 100])
def test_a_parent_is_named_whatever_is_known_of_it(audit: Audit, size: int) -> None:
    """Nothing; its run; or only a run of later, since the log no longer has the first."""
    first, forgotten, unknown = completed(run=1), completed(run=2), Chain()
    anew = completed(run=60, execution=forgotten.execution)
    retries = [retry_of(each, 1, run=40) for each in (first, forgotten, unknown)]
    found = events(first, *retries, anew)
    for start in range(0, len(found), size):
        audit.write(found[start : start + size])
    parents = {run.key.execution: run.parent for run in audit.runs() if run.key.run == 40}
    assert parents == {f"{each.execution}.1": each.execution for each in (first, forgotten, unknown)}
    assert audit.differences() == []


def test_the_archive_shows_one_run_or_all_as_they_were(audit: Audit) -> None:
    history, other = completed(1), completed(2)
    audit.write(events(history, other)[:-1])
    assert [run.key for run in audit.archive.runs(history.execution)] == [(history.execution, 1)]
    assert list(audit.archive.runs("nobody")) == []
    runs = audit.archive.runs()
    seen = [next(runs)]
    audit.write(events(other)[-1:])
    seen += runs
    [before] = [run for run in seen if run.key.run == 2]
    assert before.execution is not None
    assert before.execution["status"] == "running"
    assert len(before.events) == len(events(other)) - 1


# Divergences


def test_the_same_event_with_other_bytes_is_a_divergence_and_changes_nothing(audit: Audit) -> None:
    history = completed()
    audit.write(events(history))
    before = audit.runs()
    forged = Chain(history.execution)
    forged.started(created_by="somebody else")
    forgery = event(forged.records[0])
    told = audit.write([forgery])
    place = (forgery.topic, forgery.partition, forgery.offset)
    detail = "the same (execution, run, seq) is stored with other bytes"
    assert told == [Divergence("conflict", detail, *place, history.execution, 0, 1, body=forged.records[0].value)]
    assert audit.divergences() == told
    assert audit.runs() == before
    assert audit.differences() == []


@pytest.mark.parametrize("change", [{"hash": b"x" * 32}, {"body": b"{}"}])
def test_another_hash_alone_or_other_bytes_alone_are_a_divergence(audit: Audit, change: dict[str, bytes]) -> None:
    [started] = events(completed())[:1]
    audit.write([started])
    assert [each.reason for each in audit.write([started._replace(**change)])] == ["conflict"]
    assert audit.differences() == []


def test_two_versions_of_an_event_in_one_batch(audit: Audit) -> None:
    history, forged = Chain(), Chain()
    forged.execution = history.execution
    history.started()
    forged.started(created_by="somebody else")
    audit.write([*events(history), *events(forged)])
    assert [item.reason for item in audit.divergences()] == ["conflict"]
    assert audit.differences() == []


def test_gaps_and_broken_chains_are_divergences(audit: Audit) -> None:
    history, other = completed(1), completed(2)
    audit.write(events(history)[:3])
    audit.write(events(history)[4:])
    audit.write(events(other)[:1])
    audit.write([events(other)[1]._replace(prev=b"x" * 32)])
    assert [(item.reason, item.run, item.seq) for item in audit.divergences()] == [
        ("gap", 1, 5), ("broken_chain", 2, 2),
    ]  # fmt: skip
    assert {(item.run, item.seq) for item in audit.differences() if item.seq} == {(1, 5), (2, 2)}


def test_a_history_without_its_beginning_is_kept_as_unknown(audit: Audit) -> None:
    audit.write(events(completed(1))[3:5])
    [run] = audit.runs()
    assert run.execution is not None
    assert run.execution["status"] == "unknown"
    assert [item.reason for item in audit.divergences()] == ["gap"]


def test_the_chain_is_checked_against_the_stored_bytes(audit: Audit) -> None:
    history = completed(1)
    forged = events(history)
    forged[2] = forged[2]._replace(body=forged[2].body.replace(b'"step"', b'"stop"', 1))
    audit.write(forged)
    assert [(item.seq, item.what.partition(":")[0]) for item in audit.differences() if item.seq == 3] == [
        (3, "hash_mismatch"), (3, "its columns are not what its bytes say"),
    ]  # fmt: skip


def test_a_divergence_is_stored_once(audit: Audit) -> None:
    divergence = Divergence("not_json", "no", "t", 0, 1, key=b"\0", body=b"\xff\0")
    assert audit.write(divergences=[divergence]) == [divergence]
    assert audit.write(divergences=[divergence, divergence._replace(detail="another")]) != []
    assert audit.divergences() == [divergence]
