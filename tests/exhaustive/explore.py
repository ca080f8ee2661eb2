"""Breadth first through everything that can happen to one execution, up to a number of records.

`explore` visits, for every workflow of a bound, every situation once and folds every record that may come there;
each transition is checked. A violation is told with the shortest sequence of records that leads to it.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flowpilot.core.status import TERMINAL_EXECUTION, ExecutionStatus
from tests.exhaustive.alphabet import answer, cancel, events, timer
from tests.exhaustive.dags import Edges, Subject, subjects
from tests.exhaustive.invariants import Checker
from tests.exhaustive.seen import shown
from tests.exhaustive.world import T0, Event, Situation, beginning, fold, key_of, record_of

INVARIANTS = ("S1", "S2", "S3", "S4", "S5", "S6", "S9", "S10", "S11", "legal moves", "branches", "ends")
_LONGEST_END = 60


class Bound(NamedTuple):
    """DAGs of `fewest` to `most` steps, `length` records, the start among them."""

    most: int
    length: int
    fewest: int = 1


FULL = Bound(4, 7)
QUICK = Bound(3, 4)
"""What still takes seconds: for `make mutants` and the planted defects."""


class Finding(NamedTuple):
    """A violation, with the records that lead to it."""

    invariant: str
    detail: str
    subject: str
    trace: tuple[Event, ...]

    def __str__(self) -> str:
        lines = [f"{self.invariant} does not hold: {self.detail}", f"  workflow: {self.subject}"]
        lines += [f"  {number}. at {event.at - T0} ms: {event.label}" for number, event in enumerate(self.trace, 1)]
        return "\n".join(lines)


@dataclass
class Report:
    """What an exploration saw. `checks` counts by invariant how often it was in force."""

    dags: int = 0
    subjects: int = 0
    states: int = 0
    transitions: int = 0
    cpu_s: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    checks: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    """How often an execution came to each status."""


def explore(
    bound: Bound = FULL,
    *,
    most_findings: int = 1,
    progress: Callable[[str, Report], None] | None = None,
    report: Report | None = None,
) -> Report:
    """Explore every workflow of `bound`, until `most_findings` invariants are found broken, each told of once.

    `progress` is told of each workflow; `report` is what is added to. With `QUICK` it takes some three seconds
    where nothing is wrong.
    """
    report = report or Report()
    began = time.process_time()
    shapes: set[tuple[int, Edges]] = set()
    for subject in subjects(bound.most):
        if len(subject.definition.steps) < bound.fewest:
            continue
        gc.disable()  # situations are many and never in a circle
        try:
            _Exploration(subject, report, most_findings).run(bound.length)
        finally:
            gc.enable()
        report.subjects += 1
        shapes.add(subject.shape)
        report.dags = len(shapes)
        report.cpu_s = time.process_time() - began
        if progress is not None:
            progress(subject.name, report)
        if len(report.findings) >= most_findings:
            break
    return report


class _Exploration:
    def __init__(self, subject: Subject, report: Report, most_findings: int) -> None:
        self.subject = subject
        self.report = report
        self.most_findings = most_findings
        self.checker = Checker(subject, report.checks)
        self.seen: set[tuple[Any, ...]] = set()
        self.ending: set[tuple[Any, ...]] = set()

    def run(self, length: int) -> None:
        first = beginning()
        self.seen.add(key_of(self.subject, None, T0))
        layer, found = [first], [first]
        for _ in range(length):
            layer = [there for here in layer for there in self._from(here)]
            found += layer
        self.report.states += len(found)
        for situation in reversed(found):  # the late ones end first, and the others by way of them
            self._ends(situation)

    def _from(self, here: Situation) -> list[Situation]:
        """The situations that come next and were not seen before."""
        new = []
        for event in events(self.subject, here):
            if self._is_enough():
                break
            there = self._transition(here, event)
            if there is not None:
                new.append(there)
        return new

    def _transition(self, here: Situation, event: Event) -> Situation | None:
        self.report.transitions += 1
        record = record_of(event, here.offset + 1)
        try:
            folded = fold(self.subject, here, record, is_defect=event.is_defect)
            violations = list(self.checker.check(here, event, folded))
        except Exception as error:  # noqa: BLE001 - the fold is total: whatever it raises is a defect
            self._tell("total", f"{type(error).__name__}: {error}", here, event)
            return None
        if violations:
            self._tell(*violations[0], here, event)
            return None
        state = folded.state
        now = here.now if event.is_early else event.at
        if state is here.state and now == here.now:
            return None
        key = key_of(self.subject, state, now)
        if key in self.seen:
            return None
        self.seen.add(key)
        if state is not None:
            self.report.ways[str(state.status)] += 1
        return Situation(state, now, record.offset, folded.stored, here, event, record, folded.outputs)

    def _is_enough(self) -> bool:
        return len(self.report.findings) >= self.most_findings

    def _tell(self, invariant: str, detail: str, here: Situation, *more: Event) -> None:
        known = {finding.invariant for finding in self.report.findings}
        if not self._is_enough() and invariant not in known:
            self.report.findings.append(Finding(invariant, detail, self.subject.name, (*here.trace(), *more)))

    def _ends(self, situation: Situation) -> None:
        """Some continuation ends it: whoever is asked answers, and what is due is done; nobody cancels
        (but what a defect stopped), and the execution's own time-out is not needed."""
        passed = []
        here = situation
        for _ in range(_LONGEST_END):
            if self._is_enough():
                return
            state = here.state
            key = key_of(self.subject, state, here.now)
            passed.append(key)
            if state is None or state.forgotten or state.status in TERMINAL_EXECUTION or key in self.ending:
                self.report.checks["ends"] += 1
                self.ending.update(passed)
                return
            event = self._next(here)
            if event is None:
                break
            here = self._done(here, event)
        self._tell("ends", f"no answer and no timer ends it: {shown(situation.state)}", situation)

    def _next(self, here: Situation) -> Event | None:
        state = here.state
        assert state is not None
        if state.status is ExecutionStatus.INCIDENT:
            return Event("cancel", cancel(), here.now)
        for step, now in zip(self.subject.definition.steps, state.steps, strict=True):
            if now.status in ("ready", "running"):
                name, attempt = step.name, now.attempt
                return Event(f"completed {name}", answer(state.run, name, attempt, "completed"), here.now)
        due = min([due for step in state.steps if (due := step.due) is not None], default=None)
        return Event("timer", timer(state.run), max(here.now, due)) if due is not None else None

    def _done(self, here: Situation, event: Event) -> Situation:
        record = record_of(event, here.offset + 1)
        folded = fold(self.subject, here, record)
        return Situation(folded.state, event.at, record.offset, folded.stored, here, event, record, folded.outputs)
