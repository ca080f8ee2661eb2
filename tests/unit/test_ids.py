"""Identifiers: functions of what they name, stable for ever, and strict when read."""

from __future__ import annotations

import pytest

from flowpilot_schemas.ids import (
    TaskId,
    is_execution_id,
    is_legal_name,
    is_legal_step_name,
    keyed_execution_id,
    record_execution_id,
    root_id,
)

EXECUTION = "0b8aa9a1-3f8e-5d0f-9a55-1c3c8f1f4f10"


def test_ids_never_change() -> None:
    """Records in logs and databases hold these: a release that computes others would start things twice."""
    assert keyed_execution_id("patient-onboarding", "p-17") == "e54d6969-e4d8-5f04-946a-49a0a3d3a1f4"
    assert (
        record_execution_id("patient-onboarding", "yMziYzY0QiqdVNuxcRtWYg", 3, 42)
        == "a9e95d33-55c9-586c-9865-a65426a68377"
    )


def test_what_differs_is_named_differently() -> None:
    ids = {
        keyed_execution_id("w", "k"),
        keyed_execution_id("w", "K"),
        keyed_execution_id("W", "k"),
        keyed_execution_id("wk", ""),
        keyed_execution_id("w", 'k","x'),
        keyed_execution_id('w","k', "x"),
        record_execution_id("w", "t", 1, 11),
        record_execution_id("w", "t", 11, 1),
        record_execution_id("w", "t2", 1, 11),
        record_execution_id("w2", "t", 1, 11),
    }
    assert len(ids) == 10
    assert all(is_execution_id(name) for name in ids)


@pytest.mark.parametrize("text", [EXECUTION, f"{EXECUTION}.1", f"{EXECUTION}.999999"])
def test_execution_ids(text: str) -> None:
    assert is_execution_id(text)
    assert root_id(text) == EXECUTION


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        EXECUTION.upper(),
        EXECUTION[:-1],
        f"{EXECUTION}0",
        f"{EXECUTION}\n",
        f" {EXECUTION}",
        f"{EXECUTION}.",
        f"{EXECUTION}.0",
        f"{EXECUTION}.01",
        f"{EXECUTION}.1.1",
        f"{EXECUTION}.1000000",
        f"{EXECUTION}.١",
        EXECUTION.replace("-", ""),
    ],
)
def test_what_is_no_execution_id(text: str) -> None:
    assert not is_execution_id(text)


@pytest.mark.parametrize("name", ["a", "7", "patient-onboarding", "A.b_c-1", "x" * 100])
def test_legal_names(name: str) -> None:
    assert is_legal_name(name)


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", ".a", "a.", "_a", "a b", "a/b", "a@b", "ä", "a\n", "x" * 101, "a\x00b", "..", "a:b"]
)
def test_illegal_names(name: str) -> None:
    assert not is_legal_name(name)


@pytest.mark.parametrize("name", ["a", "_a", "a_", "part-7", "create_patient", "x" * 100])
def test_legal_step_names(name: str) -> None:
    assert is_legal_step_name(name)


@pytest.mark.parametrize("name", ["", "7", "7a", "-a", "a-", "a.", "a/b", "a b", "a\n", "ä", "x" * 101])
def test_illegal_step_names(name: str) -> None:
    assert not is_legal_step_name(name)


def test_task_ids_are_read_as_they_are_written() -> None:
    task = TaskId(f"{EXECUTION}.2", 17, "send_otp", 3)
    assert str(task) == f"{EXECUTION}.2/17/send_otp/3"
    assert TaskId.parse(str(task)) == task
    assert task.idempotency_key == f"{EXECUTION}.2/17/send_otp"
    assert TaskId.parse(f"{EXECUTION}/{2**62 // 10}/a/1") is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "///",
        EXECUTION,
        f"{EXECUTION}/1/a",
        f"{EXECUTION}/1/a/1/1",
        f"{EXECUTION}/1/a/0",
        f"{EXECUTION}/1/a/-1",
        f"{EXECUTION}/-1/a/1",
        f"{EXECUTION}/1/a/1.0",
        f"{EXECUTION}/1/a/+1",
        f"{EXECUTION}/ 1/a/1",
        f"{EXECUTION}/1/a/¹",
        f"{EXECUTION}/١/a/1",
        f"{EXECUTION}/1/a/" + "9" * 10,
        f"{EXECUTION}/" + "9" * 1_000_000 + "/a/1",
        f"{EXECUTION}/1//1",
        f"{EXECUTION}/1/a b/1",
        f"{EXECUTION}/1/a/1\n",
        "not-a-uuid/1/a/1",
    ],
)
def test_what_is_no_task_id(text: str) -> None:
    assert TaskId.parse(text) is None
