"""What must hold of every transition: one record, folded where the execution stood.

The checks know the rules, not the code: what is told is folded here once more, by a model that is a page long, and
state, messages and deadlines must be what it says. `Checker.counts` tells how often each was in force.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from flowpilot.core import decide as d
from flowpilot.core.state import Execution, StepState
from flowpilot.core.status import (
    EXECUTION_TRANSITIONS,
    IN_FLIGHT,
    STEP_TRANSITIONS,
    TERMINAL_EXECUTION,
    TERMINAL_STEP,
    ExecutionStatus,
    StepStatus,
)
from flowpilot_schemas import messages as m
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.history import GENESIS, HEADER_HASH, HEADER_PREV, TERMINAL_EVENTS, chain
from tests.exhaustive import again
from tests.exhaustive.dags import ATTEMPTS, Subject
from tests.exhaustive.model import Model
from tests.exhaustive.seen import TELLS, Sent, Violation, same, shown
from tests.exhaustive.world import EXECUTION, TOPICS, Event, Folded, Situation

_ANSWERS = (m.StepCompleted, m.StepFailed, m.StepStarted, m.StepHeartbeat)


class Checker:
    """The invariants of one subject's transitions."""

    def __init__(self, subject: Subject, counts: Counter[str]) -> None:
        self.subject = subject
        self.definition: WorkflowDefinition = subject.definition
        self.counts = counts

    def check(self, here: Situation, event: Event, folded: Folded) -> Iterator[Violation]:
        """Everything that does not hold of this transition."""
        before, after, sent = here.state, folded.state, Sent.of(folded)
        still = same(before, after)
        begins = after is not None and (before is None or before.run != after.run)
        run_before = None if begins else before
        yield from self._s2(run_before, after, sent)
        if sent.steps:
            yield from self._s4(run_before, sent)
        if event.is_defect:
            yield from self._defect(before, after, folded, sent)
        elif event.message is None or _is_to_nobody(before, event.message):
            yield from self._s11(event, folded, sent)
        elif before is not None and isinstance(event.message, _ANSWERS):
            yield from self._s5(before, event.message, after, still, sent)
        elif before is not None and isinstance(event.message, m.TimerFired):
            yield from self._s10(before, event, after, still)
        yield from self._s1(before, event, after, sent)
        yield from self._attempts(run_before, sent)
        if not still and after is not None:
            yield from self._branches(after, sent)
        yield from self._s6(run_before, after, sent)
        yield from self._s3(run_before, after, event, sent)
        if folded.decision is not None:
            yield from self._evolved(before, event, folded, begins=begins)
        yield from again.check(self.subject, here, event, folded, self.counts)

    def _s1(
        self, before: Execution | None, event: Event, after: Execution | None, sent: Sent
    ) -> Iterator[Violation]:
        """A refused input is one dead letter of its record, and frees the key; that record begins no run again."""
        ends = [value for value, _, _ in sent.history if value["type"] == "ExecutionFailed"]
        if any(value.get("reason") == "input_invalid" for value in ends):
            self.counts["S1"] += 1
            origin = before.origin if before is not None else None
            place = ("t", origin["offset"]) if origin else (TOPICS.events, after.run if after else -1)
            if sent.letters != [("input_invalid", *place)] or after is None or not after.released:
                yield Violation("S1", f"a refused input made {sent.letters} instead of one letter of {place}")
        if before is None or before.forgotten or not isinstance(event.message, m.StartExecution):
            return
        self.counts["S1"] += 1
        record = event.message.origin
        known = {place[2] for place in before.refused_origins} | {(before.origin or {}).get("offset")}
        is_again = record is not None and record.offset in known
        begins = after is not None and after.run != before.run
        if begins != (before.released and not is_again) or (is_again and sent.history):
            how = "begins" if begins else "does not begin"
            yield Violation("S1", f"{event.label} {how} a run; released: {before.released}, known: {known}")

    # -- one invariant each ---------------------------------------------------------------------------------

    def _s2(self, before: Execution | None, after: Execution | None, sent: Sent) -> Iterator[Violation]:
        """One terminal transition a run; after it nothing moves and only what changes nothing is told."""
        if after is None:
            return
        self.counts["S2"] += 1
        was = before is not None and before.status in TERMINAL_EXECUTION
        ends = [value["type"] for value, _, _ in sent.history if value["type"] in TERMINAL_EVENTS]
        if len(ends) != (after.status in TERMINAL_EXECUTION and not was):
            yield Violation("S2", f"{before.status if before else None} → {after.status} told {ends}")
        if before is None or not was:
            return
        if after.status is not before.status or (after.steps != before.steps and not after.forgotten):
            yield Violation("S2", f"something moved after the end: {before.status} → {after.status}")
        more = [value["type"] for value, _, _ in sent.history if value["type"] not in TELLS]
        if more or sent.steps:
            yield Violation("S2", f"after the end came {more} and {len(sent.steps)} step messages")

    def _s3(
        self, before: Execution | None, after: Execution | None, event: Event, sent: Sent
    ) -> Iterator[Violation]:
        """The state is the fold of what was told, and what was sent follows from what was told."""
        self.counts["S3"] += 1
        model = Model.of(self.definition, before, event.at)
        for value, _, _ in sent.history:
            model.apply(value)
        model.heard(event.message, before, after)
        if after is not None and not after.forgotten and (wrong := model.differs(after)):
            yield Violation("S3", f"by what was told, {wrong}")
        if sorted([(step["step"], step["attempt"]) for step in sent.steps]) != sorted(model.sent):
            yield Violation("S3", f"told ready {model.sent}, but sent {[s['task_id'] for s in sent.steps]}")
        if len(sent.control) != model.controls:
            yield Violation("S3", f"{len(sent.control)} control records; {model.controls} follow from the history")

    def _evolved(
        self, before: Execution | None, event: Event, folded: Folded, *, begins: bool
    ) -> Iterator[Violation]:
        """The events of the decision, folded one by one, give its state; every move is in the tables."""
        decision, state = folded.decision, before
        assert decision is not None
        if begins:
            if not isinstance(event.message, m.StartExecution):
                return
            state = d.opened(event.message, folded.record.offset)
        if state is None:
            return
        self.counts["legal moves"] += 1
        for each in decision.events:
            moved = d.evolve(self.definition, state, each, event.at)
            if moved.status is not state.status and moved.status not in EXECUTION_TRANSITIONS[state.status]:
                yield Violation("legal moves", f"execution {state.status} → {moved.status} by {each}")
            for one, other in zip(state.steps, moved.steps, strict=False):
                if one.status is not other.status and other.status not in STEP_TRANSITIONS[one.status]:
                    yield Violation("legal moves", f"step {one.status} → {other.status} by {each}")
            state = moved
        if begins:  # what a retry left behind is no part of the run
            state = state._replace(
                retries=decision.state.retries,
                last_retry=decision.state.last_retry,
                refused_origins=decision.state.refused_origins,
                forget_at=decision.state.forget_at,
            )
        if state != decision.state:
            yield Violation("S3", f"the events give {shown(state)}, the decision has {shown(decision.state)}")

    def _s4(self, before: Execution | None, sent: Sent) -> Iterator[Violation]:
        """A step is sent only when all that it depends on has completed, and with their outputs."""
        model = Model.of(self.definition, before, 0)
        for value, _, _ in sent.history:
            model.apply(value)
            if value["type"] != "StepReady":
                continue
            self.counts["S4"] += 1
            step = self.definition.steps[self.definition.index[value["step"]]]
            for parent in step.depends_on:
                if model.step(parent).status is not StepStatus.COMPLETED:
                    yield Violation("S4", f"{step.name} is sent while {parent} is {model.step(parent).status}")
        for message in sent.steps:
            step = self.definition.steps[self.definition.index[message["step"]]]
            for parent in step.takes:
                attempt = model.step(parent).attempt
                if message["parents"].get(parent) != [parent, attempt]:
                    yield Violation("S4", f"{step.name} is given {message['parents']}, not {parent}/{attempt}'s")
            if message["definition"] != self.definition.hash:
                yield Violation("S4", f"{step.name} is sent under {message['definition']}")

    def _s5(
        self, before: Execution, message: Any, after: Execution | None, still: bool, sent: Sent
    ) -> Iterator[Violation]:
        """Only the current attempt's answer is applied, to its step alone; attempts go 1, 2, up to the limit."""
        self.counts["S5"] += 1
        _, run, name, attempt = message.task_id.split("/")
        order = self.definition.index.get(name, -1)
        step = before.steps[order] if order >= 0 and before.status is ExecutionStatus.RUNNING else None
        current = (
            step is not None
            and int(run) == before.run
            and step.status in IN_FLIGHT
            and int(attempt) == step.attempt
        )
        told = [value["type"] for value, _, _ in sent.history]
        if isinstance(message, m.StepFailed) and message.error.kind == m.NOT_SERVED:
            yield from self._not_served(step if current else None, message, still, told)
            return
        if not current:
            expected = [] if isinstance(message, m.StepHeartbeat) else ["CompletionIgnored"]
            # Told once: then the state remembers it, and the same again is told no more.
            grown = len(after.ignored) - len(before.ignored) if after is not None else 0
            known = told == [] and grown == 0 and before.ignored != ()
            if not still or not (known or (told == expected and grown == len(expected))):
                how = "changed the state" if not still else f"told {told}, {grown} more remembered"
                yield Violation("S5", f"{message.type} of {name}/{attempt}, which is not current, {how}")
            return
        if "CompletionIgnored" in told:
            yield Violation("S5", f"{message.type} of {name}/{attempt}, which is current, was ignored")
        for value, _, _ in sent.history:
            if value["type"] in ("StepCompleted", "StepFailed", "StepStarted") and value["step"] != name:
                yield Violation("S5", f"an answer of {name} made {value['step']} {value['type']}")
        if message.type == "step.completed" and after is not None and after.steps:
            status = after.steps[order].status
            if status is not StepStatus.COMPLETED:
                yield Violation("S5", f"{name} completed, and is {status}")

    def _not_served(
        self, step: StepState | None, message: m.StepFailed, still: bool, told: list[str]
    ) -> Iterator[Violation]:
        """Only the dispatch under way is followed by another; the first report of an attempt is told, no other."""
        self.counts["S5 not served"] += 1
        waits = step is not None and step.status is StepStatus.READY and step.resend_at is None
        counts = waits and step is not None and message.dispatch == step.dispatch
        expected = ["StepNotServed"] if counts and message.dispatch == 1 else []
        if still == counts or told != expected:
            detail = f"{'changed nothing' if still else 'moved'} and told {told}; expected {expected}"
            yield Violation("S5", f"not_served of dispatch {message.dispatch} of {message.task_id} {detail}")

    def _attempts(self, before: Execution | None, sent: Sent) -> Iterator[Violation]:
        """Part of S5: attempts are contiguous and within the limit."""
        for value, _, _ in sent.history:
            if value["type"] not in ("StepReady", "StepRetryScheduled"):
                continue
            step = before.steps[self.definition.index[value["step"]]] if before and before.steps else StepState()
            attempt = value["attempt" if value["type"] == "StepReady" else "next_attempt"]
            expected = step.attempt + 1
            if attempt != expected or attempt > ATTEMPTS:
                yield Violation(
                    "S5", f"attempt {attempt} of {value['step']} after {step.attempt}; limit {ATTEMPTS}"
                )

    def _s6(self, before: Execution | None, after: Execution | None, sent: Sent) -> Iterator[Violation]:
        """One record a (run, seq), without gaps, each chained to the one before it."""
        if after is None:
            return
        self.counts["S6"] += 1
        seq, head = (before.seq, before.head) if before is not None else (0, GENESIS)
        for value, headers, data in sent.history:
            seq += 1
            if (value["execution"], value["run"], value["seq"]) != (EXECUTION, after.run, seq):
                yield Violation("S6", f"seq {value['seq']} of run {value['run']}; {seq} of {after.run} was next")
            if headers[HEADER_PREV] != head:
                yield Violation("S6", f"seq {seq} does not name the hash before it")
            head = chain(head, data)
            if headers[HEADER_HASH] != head:
                yield Violation("S6", f"seq {seq} has another hash than its bytes")
        if (after.seq, after.head) != (seq, head):
            yield Violation("S6", f"the state's seq is {after.seq} and its head another than that of seq {seq}")

    def _s10(self, before: Execution, event: Event, after: Execution | None, still: bool) -> Iterator[Violation]:
        """A timer applies what has passed by the broker's time, all of it, and nothing else."""
        self.counts["S10"] += 1
        deadlines = [before.deadline, *[time for step in before.steps for time in _deadlines(step)]]
        running = before.status is ExecutionStatus.RUNNING and event.message.run == before.run  # type: ignore[union-attr]
        passed = running and any(time is not None and time <= event.at for time in deadlines)
        if still == passed:
            how = "changed something early" if not passed else "changed nothing though a deadline had passed"
            yield Violation("S10", f"{event.label} {how}")
        if still or after is None or (before.deadline is not None and before.deadline <= event.at):
            return
        for name, one, other in zip(self.definition.index, before.steps, after.steps, strict=False):
            was_due = any(time is not None and time <= event.at for time in _deadlines(one))
            if one != other and not was_due and other.status is not StepStatus.SKIPPED:
                yield Violation("S10", f"{event.label} moved {name}, none of whose deadlines had passed")
            if was_due and one == other:
                yield Violation("S10", f"{event.label} left {name} as it was, though its deadline had passed")

    def _s11(self, event: Event, folded: Folded, sent: Sent) -> Iterator[Violation]:
        """A record that cannot be taken makes one dead letter and changes nothing else; a timer or a heartbeat of
        what is no more makes none."""
        self.counts["S11"] += 1
        expected = 0 if isinstance(event.message, m.TimerFired | m.StepHeartbeat) else 1
        letters = sent.dead_letters
        if isinstance(event.message, m.StepFailed) and event.message.error.kind == "dispatch_failed":
            expected, letters = len(folded.outputs), letters or -1  # that alone is a reason for one too
        if folded.changed or not len(folded.outputs) == letters == expected:
            detail = f"{letters} dead letters of {len(folded.outputs)} records, changed: {folded.changed}"
            yield Violation("S11", f"{event.label}: {detail}")

    def _defect(
        self, before: Execution | None, after: Execution | None, folded: Folded, sent: Sent
    ) -> Iterator[Violation]:
        """A defect makes one dead letter, and an execution that runs stands still."""
        self.counts["S11"] += 1
        runs = before is not None and before.status is ExecutionStatus.RUNNING
        expected = ExecutionStatus.INCIDENT if runs else before.status if before else None
        if sent.dead_letters != 1 or folded.changed != runs or (after.status if after else None) is not expected:
            yield Violation("S11", f"a defect made {sent.dead_letters} dead letters and {shown(after)}")

    def _branches(self, after: Execution, sent: Sent) -> Iterator[Violation]:
        """A failed step makes those below it skipped; the execution ends when every branch has, as they did."""
        if after.forgotten:
            return
        self.counts["branches"] += 1
        statuses = [step.status for step in after.steps]
        failed = {StepStatus.FAILED, StepStatus.SKIPPED}
        for definition, status in zip(self.definition.steps, statuses, strict=False):
            above = {statuses[self.definition.index[parent]] for parent in definition.depends_on}
            if bool(above & failed) != (status is StepStatus.SKIPPED):
                yield Violation("branches", f"{definition.name} is {status} below {sorted(above)}")
        over = all(status in TERMINAL_STEP for status in statuses)
        if over != (after.status in TERMINAL_EXECUTION):
            yield Violation("branches", f"the execution is {after.status}, its steps {[*map(str, statuses)]}")
        for value, _, _ in sent.history:
            if value["type"] == "ExecutionFailed":
                names = {
                    name for name, status in zip(self.definition.index, statuses, strict=True) if status in failed
                }
                told = set(value["errors"])
                really = {n for n in names if statuses[self.definition.index[n]] is StepStatus.FAILED}
                if told != really or (not really and value.get("reason") is None):
                    yield Violation("branches", f"failed for {sorted(told)}; what failed is {sorted(really)}")


def _is_to_nobody(before: Execution | None, message: m.Event) -> bool:
    """Whether it speaks to an execution that is not there, or no more."""
    return (before is None or before.forgotten) and isinstance(
        message, (*_ANSWERS, m.CancelExecution, m.TimerFired)
    )


def _deadlines(step: StepState) -> tuple[int | None, ...]:
    return step.deadline, step.heartbeat_deadline, step.resend_at
