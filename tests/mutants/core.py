"""Defects of what is decided: the core, and the fold around it."""

from __future__ import annotations

import random
import time
from hashlib import sha256
from typing import Any

from flowpilot.core import attempts, decide, dispatch, render, retry, status
from flowpilot.core import events as e
from flowpilot.core.draft import Draft
from flowpilot.core.state import Execution, OutboxEntry, StepState
from flowpilot.core.status import TERMINAL_EXECUTION, ExecutionStatus, StepStatus
from flowpilot.engine import fold
from flowpilot.engine.fold import Fold
from flowpilot_schemas.history import GENESIS
from tests.mutants.catalogue import Catalogue, Patch

planted = Catalogue("core")


@planted("S5", "unit", "laws", "exhaustive")
def stale_completion_applied(patch: Patch) -> None:
    """An answer to an earlier attempt counts as one to the current attempt."""
    whole = decide._why_ignored

    def why_ignored(definition: Any, state: Execution, task: Any) -> str | None:
        order = definition.index.get(task.step)
        if order is not None and state.steps and task.attempt < state.steps[order].attempt:
            task = type(task)(task.execution, task.run, task.step, state.steps[order].attempt)
        return whole(definition, state, task)

    patch.setattr(decide, "_why_ignored", why_ignored)


@planted("S5", "unit", "laws", "exhaustive")
def another_runs_completion_applied(patch: Patch) -> None:
    """An answer to another run of the same key counts for this one."""
    whole = decide._why_ignored

    def why_ignored(definition: Any, state: Execution, task: Any) -> str | None:
        return whole(definition, state, type(task)(task.execution, state.run, task.step, task.attempt))

    patch.setattr(decide, "_why_ignored", why_ignored)


@planted("S4", "unit", "laws", "exhaustive", "simulation")
def dependency_check_dropped(patch: Patch) -> None:
    """A step is sent as soon as one of its dependencies is completed."""
    whole = Draft._unblock

    def unblock(self: Draft, order: int) -> None:
        whole(self, order)
        for dependent in self.definition.dependents[order]:
            self.steps[dependent] = self.steps[dependent]._replace(waiting=0)

    patch.setattr(Draft, "_unblock", unblock)


@planted("S4", "unit", "laws", "exhaustive", "simulation")
def steps_below_a_failed_one_are_sent(patch: Patch) -> None:
    """A step that failed unblocks its dependents as one that completed does."""
    whole = attempts._fail_for_good

    def fail_for_good(draft_: Draft, order: int, error: Any, message: Any) -> None:
        below = draft_.definition.dependents[order]
        if not below:
            whole(draft_, order, error, message)
            return
        name = draft_.name(order)
        draft_.emit(e.StepFailed(name, draft_.steps[order].attempt, attempts._shown(error), None, None, None))
        draft_._unblock(order)
        for dependent in below:
            if draft_.steps[dependent].waiting == 0 and draft_.steps[dependent].status is StepStatus.PENDING:
                attempts.make_ready(draft_, dependent)

    patch.setattr(attempts, "_fail_for_good", fail_for_good)


@planted("L1", "unit", "laws", "exhaustive", "simulation")
def failed_steps_skip_nobody(patch: Patch) -> None:
    """What waits for a step that failed goes on waiting: its execution never ends."""

    def fail_for_good(draft_: Draft, order: int, error: Any, message: Any) -> None:
        shown = attempts._shown(error)
        draft_.emit(e.StepFailed(draft_.name(order), draft_.steps[order].attempt, shown, *attempts._who(message)))

    patch.setattr(attempts, "_fail_for_good", fail_for_good)


@planted("S2", "unit", "laws", "exhaustive", "simulation")
def double_terminal(patch: Patch) -> None:
    """A cancel ends an execution that has failed once more."""
    moves = dict(status.EXECUTION_TRANSITIONS)
    moves[ExecutionStatus.FAILED] = frozenset({ExecutionStatus.CANCELLED})

    def cancel(definition: Any, state: Execution, message: Any, at: int) -> Any:
        if state.status is ExecutionStatus.FAILED and not state.refused:
            ended = Draft(definition, state, at)
            ended.emit(e.ExecutionCancelled(message.actor, message.reason))
            return decide.Decision(ended.state(), ended.events)
        return whole(definition, state, message, at)

    whole = decide._cancel
    patch.setattr(status, "EXECUTION_TRANSITIONS", moves)
    patch.setattr(decide, "_cancel", cancel)


@planted("S2", "unit", "laws", "exhaustive")
def cancel_ignored(patch: Patch) -> None:
    """A cancel is recorded as one that came too late, whenever it comes."""

    def cancel(definition: Any, state: Execution, message: Any, at: int) -> Any:
        return decide.Decision(state, [e.CancelIgnored(message.actor, "the execution is over")])

    patch.setattr(decide, "_cancel", cancel)


@planted("S2", "unit", "laws", "exhaustive")
def cancelled_steps_stay_open(patch: Patch) -> None:
    """The execution is cancelled, its steps are not."""
    patch.setattr(decide, "_cancel_open_steps", lambda draft: None)


@planted("S5", "unit", "laws", "exhaustive", "simulation")
def retries_beyond_the_limit(patch: Patch) -> None:
    """An attempt that failed is followed by another, also after the last that the policy allows."""

    def may_retry(policy: Any, error: Any, attempt: int) -> bool:
        return bool(error.retryable and error.kind not in policy.non_retryable and attempt <= policy.max_attempts)

    patch.setattr(retry, "may_retry", may_retry)
    patch.setattr(attempts, "may_retry", may_retry)


@planted("S5", "unit", "laws", "exhaustive", "simulation")
def attempts_with_a_gap(patch: Patch) -> None:
    """The number of an attempt after a failure is two more than that of the one before."""
    whole = attempts.make_ready

    def make_ready(draft_: Draft, order: int) -> None:
        step = draft_.steps[order]
        if step.status is StepStatus.RETRYING:
            draft_.steps[order] = step._replace(attempt=step.attempt + 1)
        whole(draft_, order)

    patch.setattr(attempts, "make_ready", make_ready)


@planted("L1", "unit")
def the_same_partition_again(patch: Patch) -> None:
    """A step that a worker does not serve comes to that worker's partition again."""
    patch.setattr(dispatch, "next_partition", lambda partition, partitions: partition)


@planted("S5", "unit", "exhaustive")
def every_report_is_of_the_last_dispatch(patch: Patch) -> None:
    """A stale report that a step is not served begins a second chain of dispatches."""

    def is_current(step: StepState, number: Any, partition: Any) -> bool:
        return step.status is StepStatus.READY

    patch.setattr(dispatch, "is_current", is_current)


@planted("S3", "unit", "laws", "storm", "simulation")
def jitter_by_chance(patch: Patch) -> None:
    """The delay before a retry is drawn anew whenever its failure is folded."""
    whole = retry.backoff_ms

    def backoff_ms(policy: Any, attempt: int, task_id: str) -> int:
        return whole(policy, attempt, f"{task_id}/{random.random()}")

    patch.setattr(retry, "backoff_ms", backoff_ms)


@planted("S10", "unit", "laws", "exhaustive")
def timers_are_believed(patch: Patch) -> None:
    """Whoever's clock says that a deadline has passed is right: a timer applies whenever it comes."""
    whole = decide._timer

    def timer(definition: Any, state: Execution, message: Any, at: int) -> Any:
        return whole(definition, state, message, at if state.due is None else max(at, state.due))

    patch.setattr(decide, "_timer", timer)


@planted("S10", "unit", "storm", "exhaustive", "simulation")
def wall_clock_timers(patch: Patch) -> None:
    """Deadlines count from this machine's clock, and are compared with it, not with the broker's time."""
    whole = decide.decide

    def by_the_wall(definition: Any, state: Execution, message: Any, at: int) -> Any:
        return whole(definition, state, message, time.time_ns() // 1_000_000)

    patch.setattr(decide, "decide", by_the_wall)


@planted("S1", "unit", "storm")
def dedupe_window_ignored(patch: Patch) -> None:
    """A start whose execution has ended begins another run, though its window has not passed."""
    whole = fold.holds

    def holds(state: Execution, message: Any) -> bool:
        return whole(state, message) and state.status not in TERMINAL_EXECUTION

    patch.setattr(fold, "holds", holds)


@planted("S1", "unit", "exhaustive")
def key_of_a_refused_input_is_held(patch: Patch) -> None:
    """A worker refused the input of an execution, and its key stays held until the retry window has passed."""
    whole = fold.holds

    def holds(state: Execution, message: Any) -> bool:
        return whole(state, message) or (state.released and not state.forgotten)

    patch.setattr(fold, "holds", holds)


@planted("S1", "unit", "exhaustive")
def refused_record_begins_a_run_again(patch: Patch) -> None:
    """The trigger record whose input a worker refused, read again, begins another run."""
    patch.setattr(Execution, "has_refused", lambda self, origin: False)


@planted("S1", "unit", "exhaustive", "simulation")
def refused_input_has_no_dead_letter(patch: Patch) -> None:
    """An execution whose input a worker refused fails like any other: its record becomes no dead letter."""
    whole = render._Run.consequences

    def consequences(self: Any, event: Any) -> Any:
        return [message for message in whole(self, event) if message.kind != "dead_letter"]

    patch.setattr(render._Run, "consequences", consequences)


@planted("S1", "unit")
def other_input_of_a_key_is_the_same(patch: Patch) -> None:
    """The same key with another input counts as a duplicate: the conflict is told to nobody."""
    whole = decide.decide_again

    def decide_again(state: Execution, message: Any) -> Any:
        decision = whole(state, message)
        told = [
            e.StartDeduplicated(event.origin, event.created_by) if isinstance(event, e.KeyConflict) else event
            for event in decision.events
        ]
        return decision._replace(events=told)

    patch.setattr(decide, "decide_again", decide_again)


@planted("S6", "laws", "storm", "exhaustive", "simulation")
def hash_chain_not_linked(patch: Patch) -> None:
    """The hash of a history record is that of its value alone."""
    patch.setattr(render, "chain", lambda previous, value: sha256(value).digest())


@planted("S6", "storm", "exhaustive", "simulation")
def every_decision_begins_a_chain(patch: Patch) -> None:
    """The first record of each decision has no predecessor."""

    def entry(cause: int, at: int, first_seq: int, previous: bytes, *more: Any) -> OutboxEntry:
        return OutboxEntry(cause, at, first_seq, GENESIS, *more)

    patch.setattr(fold, "OutboxEntry", entry)


@planted("S6", "unit", "storm", "exhaustive", "simulation")
def history_numbers_with_a_gap(patch: Patch) -> None:
    """The number of a decision's first record is one too high."""

    def entry(cause: int, at: int, first_seq: int, *more: Any) -> OutboxEntry:
        return OutboxEntry(cause, at, first_seq + (first_seq > 1), *more)

    patch.setattr(fold, "OutboxEntry", entry)


@planted("S4", "unit")
def a_deploy_changes_what_runs(patch: Patch) -> None:
    """An execution goes on under the newest definition of its workflow that the partition knows."""
    whole = Fold._definition_of

    def definition_of(self: Fold, state: Execution) -> Any:
        pinned = whole(self, state)
        if pinned is None:
            return None
        decoded = [known for known in self._overlay._decoded.values() if known.name == pinned.name]
        return max([pinned, *decoded], key=lambda known: known.version)

    patch.setattr(Fold, "_definition_of", definition_of)


@planted("S9", "unit", "laws", "exhaustive", "simulation")
def every_replay_is_recorded(patch: Patch) -> None:
    """A report that is ignored adds a history event each time it comes."""
    patch.setattr(decide.ignored, "is_recorded", lambda state, found: False)


@planted("S9", "unit")
def foreign_attempts_are_remembered_each(patch: Patch) -> None:
    """Attempts that cannot have existed fill the state and the history, one by one."""
    patch.setattr(decide.ignored, "_attempts", lambda definition, state, order: 10**9)


@planted("S11", "unit", "simulation")
def bad_records_are_skipped(patch: Patch) -> None:
    """A record that cannot be read is passed over: nobody hears of it."""
    patch.setattr(fold.Outputs, "dead_letter", lambda self, record, reason, detail: None)


@planted("S11", "unit")
def a_failed_fold_leaves_its_half(patch: Patch) -> None:
    """What a record changed before its fold met a defect is not taken back."""
    patch.setattr(fold.Overlay, "roll_back", lambda self: None)


@planted("S3", "unit")
def forwarded_for_ever(patch: Patch) -> None:
    """A record that came to the wrong partition is sent on however often it was."""
    from flowpilot.engine import outputs

    whole = outputs.Outputs.forward

    def forward(self: Any, record: Any, execution: str, home: int) -> None:
        whole(self, record._replace(headers=()), execution, home)

    patch.setattr(outputs.Outputs, "forward", forward)
