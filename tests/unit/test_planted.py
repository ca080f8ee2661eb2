"""The check for printed secrets finds them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import pytest_runtest_makereport
from tests.planted import MARK, PASSWORD, TOKEN, printed_in, with_password


def test_a_planted_secret_in_any_output_is_found() -> None:
    assert printed_in([("stdout", "fine\nalso fine"), ("log", "")]) == []
    assert printed_in([("stdout", f"fine\nhas {TOKEN} in it")]) == [f"stdout: has {TOKEN} in it"]
    assert MARK in PASSWORD


def test_a_password_is_planted_where_there_is_none() -> None:
    assert with_password("postgresql://me@h:1/db?a=b") == f"postgresql://me:{PASSWORD}@h:1/db?a=b"
    for kept in ("postgresql://me:own@h/db", "postgresql://h/db", "postgresql:///db"):
        assert with_password(kept) == kept


@pytest.mark.parametrize(("outcome", "printed", "becomes"), [
    ("passed", f"has {TOKEN}", "failed"), ("passed", "nothing", "passed"), ("failed", f"has {TOKEN}", "failed"),
])  # fmt: skip
def test_a_test_that_prints_a_secret_fails(outcome: Any, printed: str, becomes: str) -> None:
    made = pytest.TestReport("it", ("it", 1, "it"), {}, outcome, None, "call", sections=[("Captured log", printed)])
    hook = pytest_runtest_makereport()
    next(hook)
    with pytest.raises(StopIteration) as done:
        hook.send(made)
    assert done.value.value.outcome == becomes
    assert (TOKEN in str(made.longrepr)) == (outcome != becomes)
