"""The exploration within the time of a test; `make exhaustive` goes further."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.exhaustive.alphabet import events
from tests.exhaustive.dags import KNOWN, Subject, dags, subjects
from tests.exhaustive.explore import INVARIANTS, Bound, explore
from tests.exhaustive.world import Situation, beginning, fold, key_of, record_of

BOUNDS = [Bound(1, 6), Bound(2, 5, fewest=2), Bound(3, 4, fewest=3), Bound(4, 3, fewest=4)]
# Two equal steps, with the rare kinds of errors; two of three; and three of which none is another's equal.
SHAPES = [(2, frozenset()), (3, frozenset({(0, 1), (0, 2)})), (3, frozenset({(0, 1)}))]
SYMMETRIC = [subject for subject in subjects(3) if subject.shape in SHAPES and "=retry" in subject.name]


@pytest.mark.parametrize("steps", KNOWN)
def test_every_dag_is_there_once(steps: int) -> None:
    found = dags(steps)
    assert len(found) == KNOWN[steps]
    assert {frozenset((parent, child)) for edges in found for parent, child in edges if parent >= child} == set()


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: f"{bound.most} steps, {bound.length} records")
def test_every_transition_keeps_every_invariant(bound: Bound) -> None:
    report = explore(bound)
    assert not report.findings, "\n".join(map(str, report.findings))
    assert report.dags == KNOWN[bound.most]
    assert [name for name in INVARIANTS if not report.checks[name]] == []
    reached = {"running", "failed", "cancelled"}
    reached |= {"completed"} if bound.length > bound.most else set()
    reached |= {"incident"} if bound.most <= 2 else set()
    assert report.ways.keys() == reached


def test_situations_that_count_as_one_cannot_be_told_apart() -> None:
    """What the key leaves out is nothing: of two situations with one key, the same events lead to the same keys."""
    merged = 0
    for subject in SYMMETRIC:
        first: dict[tuple[Any, ...], Situation] = {}
        layer = [beginning()]
        for depth in range(4):
            layer, before = [], layer
            for here in before:
                for there in _next(subject, here):
                    key = key_of(subject, there.state, there.now)
                    if key not in first:
                        first[key] = there
                        layer.append(there)
                    elif there.state is not here.state:
                        merged += 1
                        if depth < 2 or merged % 12 == 0:
                            assert _onward(subject, there) == _onward(subject, first[key]), there.trace()
    assert merged > 500


def _next(subject: Subject, here: Situation) -> list[Situation]:
    found = []
    for event in events(subject, here):
        record = record_of(event, here.offset + 1)
        folded = fold(subject, here, record, is_defect=event.is_defect)
        now = here.now if event.is_early else event.at
        found.append(
            Situation(folded.state, now, record.offset, folded.stored, here, event, record, folded.outputs)
        )
    return found


def _onward(subject: Subject, here: Situation) -> Counter[Any]:
    """Where it can go from here, and what is sent on the way, without names and numbers.

    And without what is told once: whether it was told before is no part of a situation (see `again.check`).
    """
    return Counter(
        (
            key_of(subject, there.state, there.now),
            tuple(sorted(each.record.topic for each in there.outputs if not _is_told_once(each.record.value))),
        )
        for there in _next(subject, here)
    )


def _is_told_once(value: bytes | None) -> bool:
    return any(kind in (value or b"") for kind in (b'"CompletionIgnored"', b'"CancelIgnored"'))
