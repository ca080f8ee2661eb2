"""That the exploration would notice: each defect, planted, is found, by the invariant that is about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flowpilot.core import attempts, decide, draft, render
from flowpilot.core import events as e
from flowpilot.core.decision import Decision
from flowpilot.core.draft import Draft
from flowpilot.core.state import Execution
from flowpilot.core.status import IN_FLIGHT, StepStatus
from flowpilot.engine.fold import Fold
from flowpilot_schemas.ids import TaskId
from tests.exhaustive.explore import QUICK, explore
from tests.mutants.core import (
    key_of_a_refused_input_is_held,
    refused_input_has_no_dead_letter,
    refused_record_begins_a_run_again,
)

Patch = pytest.MonkeyPatch


def stale_completion_applied(patch: Patch) -> None:
    whole = decide._why_ignored

    def why_ignored(definition: Any, state: Execution, task: TaskId) -> str | None:
        reason = whole(definition, state, task)
        if reason == "stale_attempt" and state.steps[definition.index[task.step]].status in IN_FLIGHT:
            return None
        return reason

    patch.setattr(decide, "_why_ignored", why_ignored)


def dependency_check_dropped(patch: Patch) -> None:
    def complete(draft: Draft, order: int, message: Any, size: int) -> None:
        draft.emit(e.StepCompleted(draft.name(order), draft.steps[order].attempt, size, None, None, None))
        for dependent in draft.definition.dependents[order]:
            if draft.steps[dependent].status is StepStatus.PENDING:
                attempts.make_ready(draft, dependent)

    patch.setattr(attempts, "complete", complete)


def double_terminal(patch: Patch) -> None:
    """A cancel is taken by an execution that is over, and the table is not asked."""
    patch.setattr(draft, "check_execution", lambda before, after: after)
    patch.setattr(decide, "TERMINAL_EXECUTION", frozenset())


def timer_applied_early(patch: Patch) -> None:
    whole = decide._timer
    patch.setattr(
        decide,
        "_timer",
        lambda definition, state, message, at: whole(definition, state, message, max(at, state.due or at)),
    )


def attempts_beyond_the_limit(patch: Patch) -> None:
    patch.setattr(attempts, "may_retry", lambda policy, error, attempt: error.retryable)


def dependents_not_skipped(patch: Patch) -> None:
    def fail_for_good(draft: Draft, order: int, error: Any, message: Any) -> None:
        shown = {"kind": error.kind, "message": ""}
        draft.emit(e.StepFailed(draft.name(order), draft.steps[order].attempt, shown, None, None, None))

    patch.setattr(attempts, "_fail_for_good", fail_for_good)


def failed_before_all_branches_ended(patch: Patch) -> None:
    def end(draft: Draft) -> Decision:
        failed = [step for step in draft.steps if step.status is StepStatus.FAILED]
        if draft.status == "running" and (failed or draft.open == 0):
            draft.emit(e.ExecutionFailed(decide._errors(draft), None) if failed else e.ExecutionCompleted())
        return Decision(draft.state(), draft.events)

    patch.setattr(decide, "_end", end)


def heartbeats_move_nothing(patch: Patch) -> None:
    patch.setitem(draft._MOVES, e.HeartbeatTaken, lambda self, event: None)


def a_retry_keeps_its_first_deadline(patch: Patch) -> None:
    whole = Draft._step_ready

    def step_ready(self: Draft, event: e.StepReady) -> None:
        due = self.steps[self.definition.index[event.step]].deadline
        whole(self, event)
        order = self.definition.index[event.step]
        if due is not None:
            self.steps[order] = self.steps[order]._replace(deadline=due)

    patch.setitem(draft._MOVES, e.StepReady, step_ready)


def history_not_chained(patch: Patch) -> None:
    patch.setattr(render, "chain", lambda previous, value: previous)


def another_run_is_answered(patch: Patch) -> None:
    whole = decide._why_ignored

    def why_ignored(definition: Any, state: Execution, task: TaskId) -> str | None:
        return whole(definition, state, TaskId(task.execution, state.run, task.step, task.attempt))

    patch.setattr(decide, "_why_ignored", why_ignored)


def outbox_overwritten(patch: Patch) -> None:
    patch.setattr(Fold, "_kept", lambda self, before, begins: ())


def folded_on_every_delivery(patch: Patch) -> None:
    whole = Fold._for_execution

    def for_execution(self: Any, record: Any, execution: str, message: Any) -> None:
        state = self._overlay.state(execution)
        if state is not None and record.offset <= state.src and not hasattr(message, "workflow"):
            record = record._replace(offset=state.src + 1)
        whole(self, record, execution, message)

    patch.setattr(Fold, "_for_execution", for_execution)


# The invariant that must be among the first so many that are found broken.
DEFECTS: list[tuple[Callable[[Patch], None], str, int]] = [
    (stale_completion_applied, "S5", 1),
    (dependency_check_dropped, "S4", 1),
    (double_terminal, "S2", 3),
    (timer_applied_early, "S10", 2),
    (attempts_beyond_the_limit, "S5", 1),
    (dependents_not_skipped, "branches", 1),
    (failed_before_all_branches_ended, "branches", 1),
    (heartbeats_move_nothing, "S3", 1),
    (a_retry_keeps_its_first_deadline, "S3", 1),
    (history_not_chained, "S6", 1),
    (another_run_is_answered, "S5", 1),
    (outbox_overwritten, "S9", 1),
    (folded_on_every_delivery, "S9", 1),
    (key_of_a_refused_input_is_held, "S1", 1),
    (refused_record_begins_a_run_again, "S1", 1),
    (refused_input_has_no_dead_letter, "S1", 1),
]


@pytest.mark.parametrize(("defect", "invariant", "most"), DEFECTS, ids=[defect.__name__ for defect, *_ in DEFECTS])
def test_a_planted_defect_is_found(
    defect: Callable[[Patch], None], invariant: str, most: int, monkeypatch: Patch
) -> None:
    defect(monkeypatch)
    findings = explore(QUICK, most_findings=most).findings
    assert invariant in {finding.invariant for finding in findings}, "\n".join(map(str, findings))
    assert all(1 <= len(finding.trace) <= QUICK.length for finding in findings)


def test_a_finding_reads_as_the_shortest_way_to_it(monkeypatch: Patch) -> None:
    attempts_beyond_the_limit(monkeypatch)
    [finding] = explore(QUICK).findings
    assert str(finding) == "\n".join(
        [
            "S5 does not hold: attempt 3 of a after 2; limit 2",
            "  workflow: 1 step, no edges, on_schedule_to_start=retry",
            "  1. at 0 ms: start",
            "  2. at 0 ms: failed a/1 (current)",
            "  3. at 2 ms: timer +2 ms",
            "  4. at 2 ms: failed a/2 (current)",
        ]
    )
