"""The attempts of a worker: from a record to a handler, from the handler to the answer, and cancels.

A record is finished when its completion or its `step.started` is acknowledged. The latter is sent for handlers
that run longer than about a second, for suspects, for what holds others back, and when a partition goes away.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Mapping
from functools import partial

from flowpilot.authoring.durations import as_text
from flowpilot.ports.log import Fetched
from flowpilot.worker.answers import Answers
from flowpilot.worker.attempt import Attempt, State, not_served
from flowpilot.worker.clock import BrokerClock
from flowpilot.worker.control import Control
from flowpilot.worker.intake import Intake
from flowpilot.worker.invoke import Outcome, Prepared, call, call_async, failure, prepare
from flowpilot.worker.observed import Observed
from flowpilot.worker.partition import AssignedPartition, Entry
from flowpilot.worker.records import Records
from flowpilot.worker.serving import NotServed, Serving
from flowpilot.worker.threads import HandlerThreads
from flowpilot.worker.traced import CANCELLED, HANDED_BACK, Traced
from flowpilot_schemas.codec import BadRecord
from flowpilot_schemas.messages import StepError

_Taken = tuple[Fetched, Entry, AssignedPartition, bool]


class Attempts:
    """Up to `concurrency` attempts at once, begun as the intakes' records arrive (it is their `Events`).

    `intakes`: by topic; each whose news come here is in it. `clock` judges `not_after`.
    Everything is called on the event loop.
    """

    def __init__(
        self,
        worker_id: str,
        serving: Serving,
        *,
        answers: Answers,
        control: Control,
        records: Records,
        intakes: Mapping[str, Intake],
        concurrency: int,
        clock: BrokerClock,
        observed: Observed,
        traced: Traced,
    ) -> None:
        self._worker_id = worker_id
        self._serving = serving
        self._answers = answers
        self._control = control
        self._records = records
        self._intakes = intakes
        self._concurrency = concurrency
        self._clock = clock
        self._observed, self._traced = observed, traced
        self._ready: deque[AssignedPartition] = deque()  # partitions with records that wait, in turn
        self._read_for: deque[_Taken] = deque()  # of older definitions, read again since
        self._taking = True
        self.running: set[Attempt] = set()
        """Each has one of the places."""
        self.given_up: dict[Attempt, float] = {}
        """They have none and run all the same; and when, by the monotonic clock, they were given up."""
        self.idle = asyncio.Event()
        """Set once nothing is taken any more and nothing runs."""
        self._threads: HandlerThreads
        self._surroundings: contextvars.Context

    # ---- beginning and end

    def open(self) -> None:
        """Call it on the event loop, before the first record arrives."""
        self._threads = HandlerThreads(asyncio.get_running_loop(), self._returned)
        self._surroundings = contextvars.copy_context()

    def stop_taking(self) -> None:
        """Take no more records. Twice is once."""
        self._taking = False
        self._check_idle()

    def hand_back(self) -> None:
        """Give up what runs: it is redelivered, or failed as `worker_lost` where its start is known."""
        for attempt in list(self.running):
            state, told = attempt.state, attempt.tells
            attempt.cancel(State.GIVEN_UP)
            if told and state in (State.RUNNING, State.SUSPECT):
                lost = StepError(kind="worker_lost", message="the worker was stopped before the handler ended")
                self._answer_outcome(attempt, lost)
            else:
                self._traced.unanswered(attempt, HANDED_BACK)

    def abandon(self) -> None:
        """Give up what runs, and answer nothing."""
        for attempt in list(self.running):
            attempt.cancel(State.GIVEN_UP)
            self._traced.unanswered(attempt, HANDED_BACK)

    def close(self) -> None:
        """Let the handlers' threads end."""
        self._threads.close()

    # ---- what intakes say

    def arrived(self, partition: AssignedPartition) -> None:
        """See `intake.Events`."""
        if partition not in self._ready and not partition.blocked:
            self._ready.append(partition)
        self._dispatch()

    def committed(self, partition: AssignedPartition, position: int) -> None:
        """See `intake.Events`."""
        covered = [attempt for attempt in partition.suspects if attempt.record.offset < position]
        if covered:
            partition.suspects = [a for a in partition.suspects if a.record.offset >= position]
            for attempt in covered:
                self._begin(attempt)
        if partition.blocked:
            partition.blocked = False
            if partition.waiting:
                self._ready.append(partition)
            self._dispatch()

    def revoked(self, partition: AssignedPartition) -> None:
        """See `intake.Events`. What runs goes on here, watched by the engine from its `step.started` on."""
        if partition in self._ready:
            self._ready.remove(partition)
        for entry in partition.unfinished():
            if entry.attempt is not None:
                self.tell_started(entry.attempt)

    def gone(self, partition: AssignedPartition) -> None:
        """See `intake.Events`. A suspect whose start is not committed is the next owner's."""
        partition.gone = True
        dropped, partition.suspects = partition.suspects, []
        for attempt in dropped:
            attempt.state = State.ENDED
            self._leave_place(attempt)

    # ---- from a record to a handler

    def _dispatch(self) -> None:
        ready, read_for = self._ready, self._read_for
        while (ready or read_for) and self._taking and len(self.running) < self._concurrency:
            if read_for:
                self._take_again(*read_for.popleft())
                continue
            partition = ready.popleft()
            if not partition.waiting or not partition.alive:
                continue
            if partition.is_full:
                self._unblock(partition)
                continue
            record, entry, suspect = partition.take()
            self._intakes[record.topic].taken()
            if partition.waiting:
                ready.append(partition)
            self._take(record, entry, partition, suspect)

    def _unblock(self, partition: AssignedPartition) -> None:
        """The window is full: commit, and do not wait a second for what holds the position back."""
        partition.blocked = True
        oldest = partition.oldest()
        if oldest is not None and oldest.attempt is not None:
            self.tell_started(oldest.attempt)
        self._intakes[partition.tp.topic].commit_soon()

    def _take(
        self, record: Fetched, entry: Entry, partition: AssignedPartition, suspect: bool, *, is_sure: bool = False
    ) -> None:
        try:
            message, task_id, not_after = self._records.read(record)
        except BadRecord as bad:
            self._records.bury(record, entry, partition, bad)
            return
        why = "not_after" if self._clock.is_past(not_after) else self._control.why_over(task_id, message.task_id)
        if why is not None:
            self._records.drop(record, entry, partition, why, message.task_id)
            return
        handler = self._serving.find(message)
        if isinstance(handler, NotServed):
            partitions = self._serving.partitions.get(record.topic)
            report = not_served(message, record, self._worker_id, handler.reason, partitions)
            self._records.answer(report, record, entry, partition)
            return
        if not is_sure and self._serving.own(message) is None:
            self._serving.after_refresh(partial(self._is_read, (record, entry, partition, suspect)))
            return
        attempt = Attempt(self._worker_id, record, message, task_id, handler, partition, entry)
        self.running.add(attempt)
        if suspect:
            attempt.state = State.SUSPECT
            self._answers.put(attempt.started(), partial(self._suspect_told, attempt))
        else:
            self._begin(attempt)

    def _is_read(self, taken: _Taken) -> None:
        self._read_for.append(taken)
        self._dispatch()

    def _take_again(self, record: Fetched, entry: Entry, partition: AssignedPartition, suspect: bool) -> None:
        if partition.gone:  # it is delivered to another
            return
        self._take(record, entry, partition, suspect, is_sure=True)
        if not partition.alive and entry.attempt is not None:
            self.tell_started(entry.attempt)

    def _suspect_told(self, attempt: Attempt, error: str | None) -> None:
        self._records.answered(attempt.record, attempt.entry, attempt.partition, error)
        if attempt.state is not State.SUSPECT:
            return
        if error is None and not attempt.partition.gone:
            attempt.partition.suspects.append(attempt)
            self._intakes[attempt.partition.tp.topic].commit_soon()
        else:
            attempt.state = State.ENDED
            self._leave_place(attempt)

    def _begin(self, attempt: Attempt) -> None:
        if attempt.state is not State.SUSPECT and attempt.state is not State.RUNNING:
            self._leave_place(attempt)  # cancelled before it began
            return
        attempt.begin()
        self._observed.begun(attempt)
        # Its own, and not that of whichever handler's end made a place for it.
        context = self._surroundings.copy()
        context.run(self._traced.begun, attempt)
        handler = attempt.handler
        if handler.is_async and handler.validates_quickly:
            attempt.task = asyncio.create_task(self._run_async(attempt, None), context=context)
        else:
            function = prepare if handler.is_async else call
            self._threads.run(attempt, partial(context.run, function, handler, attempt.message, attempt.context))

    def _returned(self, attempt: Attempt, result: Outcome | Prepared) -> None:
        """A thread is done: with the handler, or with the values of an async one."""
        if not isinstance(result, Prepared):
            self._ended(attempt, result)
        elif attempt.state is State.RUNNING:
            attempt.task = asyncio.create_task(self._run_async(attempt, result), context=result.context)
        else:
            self._ended(attempt, failure(attempt.handler, asyncio.CancelledError("cancelled before it was called")))

    async def _run_async(self, attempt: Attempt, prepared: Prepared | None) -> None:
        outcome = await call_async(attempt.handler, attempt.message, attempt.context, prepared)
        self._ended(attempt, outcome)

    # ---- from a handler to the answer

    def _ended(self, attempt: Attempt, outcome: Outcome) -> None:
        state, attempt.state = attempt.state, State.ENDED
        self.given_up.pop(attempt, None)
        # After a cancel only a completion is told: what was done is then in the history.
        if state is State.RUNNING or (state is State.CANCELLED and isinstance(outcome, bytes)):
            if isinstance(outcome, StepError):
                attempt.say_failed(outcome)
            self._answer_outcome(attempt, outcome)
        else:
            self._traced.unanswered(attempt, CANCELLED)
        self._leave_place(attempt)

    def _answer_outcome(self, attempt: Attempt, outcome: Outcome) -> None:
        self._observed.ended(attempt, outcome)
        self._traced.ended(attempt, outcome)
        self._records.answer(attempt.ended(outcome), attempt.record, attempt.entry, attempt.partition)

    def _leave_place(self, attempt: Attempt) -> None:
        if attempt in self.running:
            self.running.discard(attempt)
            self._check_idle()
            self._dispatch()

    def _check_idle(self) -> None:
        if not self._taking and not self.running:
            self.idle.set()

    # ---- what the watch and control find

    def tell_started(self, attempt: Attempt) -> None:
        """Say that its handler runs, unless that was said or it does not."""
        if not attempt.tells and attempt.state is State.RUNNING:
            self._records.answer(attempt.started(), attempt.record, attempt.entry, attempt.partition)

    def give_up(self, attempt: Attempt, now: float) -> None:
        """It has run too long by `now`. The place is free for another: neither thread nor task is waited for."""
        cancelled = attempt.state is State.CANCELLED
        attempt.cancel(State.GIVEN_UP)
        self.given_up[attempt] = now
        if not cancelled:
            limit = as_text(attempt.message.start_to_close_ms)
            error = StepError(kind="timed_out", message=f"the handler ran longer than its timeout of {limit}")
            attempt.say_failed(error)
            self._answer_outcome(attempt, error)
        self._leave_place(attempt)

    def cancel_what_is_over(self) -> None:
        """Control knows something new."""
        for attempt in list(self.running):
            live = attempt.state in (State.RUNNING, State.SUSPECT)
            if live and self._control.is_over(attempt.task_id, attempt.message.task_id):
                suspect = attempt.state is State.SUSPECT
                attempt.cancel(State.CANCELLED)
                self._records.finish(attempt.entry, attempt.partition)
                if suspect:  # it never began, and nothing of it will end
                    if attempt in attempt.partition.suspects:
                        attempt.partition.suspects.remove(attempt)
                    self._leave_place(attempt)
