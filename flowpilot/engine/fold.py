"""The fold of one partition's batch: records in, changed states and outputs out. No I/O, no clock, no chance.

What a record decides depends on the log and the table alone: not on epochs, batch borders or what was sent
(`sent_through` only trims the outbox). Rule 2 of the commit protocol stands in `_for_execution`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flowpilot.core import decide, lineage, refusals
from flowpilot.core.decision import Decision
from flowpilot.core.events import UNRECORDED, CoreEvent, ExecutionIncident, StartRefused, pack, unpack
from flowpilot.core.murmur2 import partition_of
from flowpilot.core.notices import refusal_of
from flowpilot.core.payloads import PayloadGone, may_lack_payloads
from flowpilot.core.render import Home, render
from flowpilot.core.state import Execution, OutboxEntry
from flowpilot.engine.given_up import give_up, leave_unread
from flowpilot.engine.keys import output_key
from flowpilot.engine.outputs import Outputs
from flowpilot.engine.overlay import Overlay
from flowpilot.engine.reading import Message, execution_of, is_undeliverable, read, read_or_none
from flowpilot.engine.rule_sets import fold_raise
from flowpilot.engine.starting import Known, begin, holds
from flowpilot.ports.log import Fetched
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import BadRecord
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.ids import root_id
from flowpilot_schemas.topics import Topics

OfAFamily = m.RetryExecution | m.RetryEnded | m.RetryCheck | m.RetryForget

_FAULT = "engine_fault"
_DETAIL_KEPT = 300


@dataclass
class Frame:
    """What the fold of a partition is given: all of it follows from the log, but for `sent_through`."""

    partition: int
    partitions: int
    topics: Topics
    overlay: Overlay
    recovered_watermark: int
    sent_through: int
    # Definitions read from their topic, for the first use in this partition. None: surely not there; a hash
    # that was not looked for yet raises `DefinitionNeeded`.
    known: Known
    forgettable: Callable[[int], Iterable[str]]
    # The executions that have an unsent decision on the record at this offset: whom a Forget made speak.
    owing: Callable[[int], Iterable[str]]
    # The highest rule set that this release has: it stops where a higher one is permitted.
    rules: int = m.RULES


class Fold:
    """Folds the records of one batch, one after another, into `frame.overlay` and `outputs`."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._overlay = frame.overlay
        self._home = Home(frame.topics.events, frame.partition)
        self.outputs = Outputs(frame.topics)
        self.ignored: Counter[str] = Counter()
        """Reports that were ignored, by reason, whether recorded or not."""

    def record(self, record: Fetched) -> None:
        """Fold one record, wholly or (if it raises) not at all.

        Raises `DefinitionNeeded`, `PartitionStopped`, and whatever a defect of ours raises.
        """
        sent = len(self.outputs.records)
        self._overlay.mark()
        try:
            self._record(record)
        except BaseException:
            self._overlay.roll_back()
            del self.outputs.records[sent:]
            raise

    def _record(self, record: Fetched) -> None:
        try:
            message = read(record)
        except BadRecord as bad:
            self.outputs.dead_letter(record, bad.reason, bad.detail)
            return
        match message:
            case m.Forget():
                self._forget(record, message)
            case m.RulesPermitted():
                frame = self._frame
                fold_raise(record, message, self._overlay, self.outputs, frame.recovered_watermark, frame.rules)
            case m.RetryExecution():
                self._for_execution(record, root_id(message.execution), message)
            case m.StartExecution() | m.CancelExecution() | m.TimerFired():
                self._for_execution(record, message.execution, message)
            case m.RetryEnded() | m.RetryCheck() | m.RetryForget():
                self._for_execution(record, message.execution, message)
            case _:
                self._for_execution(record, message.task_id.partition("/")[0], message)

    def owed(self, record: Fetched) -> None:
        """Send again what was decided on the record before this owner's claim, without folding it."""
        for execution in self._frame.owing(record.offset):
            state = self._overlay.state(execution)
            if state is not None and record.offset <= state.src:
                self._send_again(record, state)

    def pass_over(self, record: Fetched, *, unread: bool = False) -> None:
        """Give the record up: from now on it has changed nothing. What was decided before this claim is told."""
        self.owed(record)
        if unread:
            leave_unread(self._overlay, record)
        else:
            give_up(self._overlay, record)

    def fault(self, record: Fetched, detail: str) -> None:
        """The fold of `record` met a defect: a dead letter, and the execution stands still.

        A start is refused instead: a fact in the state, as the other is, or it would be lost with the process.
        """
        message = read_or_none(record)
        execution = execution_of(message)
        state = self._overlay.state(execution) if execution else None
        decision = None
        gives_way = False
        if state is not None and state.released and isinstance(message, m.StartExecution):
            gives_way = not holds(state, message)
        if state is not None and not (state.forgotten or state.refused or gives_way):
            decision = decide.fault(state, detail) if record.offset > state.src else None
        elif isinstance(message, m.StartExecution) and (state is None or record.offset > state.src):
            reason = detail[:_DETAIL_KEPT]
            refused = decide.refuse_start(message, _FAULT, reason, record.timestamp, record.offset)
            decision = lineage.inherited(state, refused)
        if decision is None or not decision.events:
            self.outputs.dead_letter(record, _FAULT, detail)
            return
        self._fault_letter(record, decision.events)
        begins = state is None or state.forgotten or state.refused or gives_way
        self._commit(record, state, decision, begins=begins)

    def _fault_letter(self, record: Fetched, events: Sequence[CoreEvent]) -> None:
        """The dead letter of a defect, if that is what `events` tell: the same however often it is sent."""
        for event in events:
            if isinstance(event, ExecutionIncident) or (isinstance(event, StartRefused) and event.reason == _FAULT):
                self.outputs.dead_letter(record, _FAULT, event.detail)

    def _for_execution(self, record: Fetched, execution: str, message: Message) -> None:
        state = self._overlay.state(execution)
        if state is None and not self._is_home(record, execution):
            return
        if is_undeliverable(message):
            self.outputs.dead_letter(record, "dispatch_failed", message.error.message)
        if state is not None and record.offset <= state.src:
            if self._send_again(record, state):
                return
            if record.offset < state.run or lineage.is_stand_in(state):
                self._before_the_run(record, state, message)
            elif state.refused and not isinstance(message, m.StartExecution | OfAFamily):
                self._unknown(record, execution, message)
        elif isinstance(message, m.StartExecution):
            if state is not None or record.offset > self._frame.recovered_watermark:
                self._start(record, state, message)
        elif isinstance(message, OfAFamily):
            self._of_a_family(record, state, message)
        elif state is None or state.forgotten:
            self._unknown(record, execution, message)
        else:
            definition = self._definition_of(state)
            if definition is None:  # a refused start: nothing of it is in flight
                self._unknown(record, execution, message)
            else:
                decision = decide.decide(definition, state, message, record.timestamp)
                if decision.ignored is not None:
                    self.ignored[decision.ignored] += 1
                self._commit(record, state, decision)

    def _of_a_family(self, record: Fetched, state: Execution | None, message: OfAFamily) -> None:
        """What a root decides on its retries (`flowpilot.core.lineage`), and that a retry goes with its root."""
        match message:
            case m.RetryExecution():
                known, anew = refusals.is_known(state, message), refusals.can_begin_anew(message)
                if state is None and anew and record.offset <= self._frame.recovered_watermark:
                    return  # taken up before, and all of it forgotten since
                if not (known or anew):
                    self._nothing_to_retry(record, message)
                    return
                begins = state is None or not (known or state.retries)
                root = lineage.opened(message, record.offset) if state is None or begins else state
                permitted = self._overlay.rule_sets().permitted_at(record.offset)
                events = lineage.decide_retry(root, message, record.timestamp, permitted)
                self._commit(record, state, lineage.decision(root, events), begins=begins)
            case m.RetryEnded() if state is None or lineage.is_marker(state):
                self.outputs.disown(record, message)
            case m.RetryEnded() if state is not None:
                self._commit(record, state, lineage.decision(state, lineage.decide_ended(state, message)))
            case m.RetryCheck() if state is None or state.forgotten:
                if state is not None or record.offset > self._frame.recovered_watermark:
                    start, detail = lineage.lost_start(message), "its start was lost; ask for another retry"
                    lost = decide.refuse_start(start, "start_lost", detail, record.timestamp, record.offset)
                    self._commit(record, state, lost, begins=True)
            case m.RetryCheck() if state is not None:
                self._commit(record, state, lineage.decision(state, lineage.decide_check(state, message)))
            case m.RetryForget() if state is not None and lineage.goes_with(state, message):
                forgotten = lineage.forget(state)._replace(src=record.offset)
                self._overlay.put(forgotten._replace(outbox=self._kept(state, begins=False)))

    def _nothing_to_retry(self, record: Fetched, message: m.RetryExecution) -> None:
        refusal = refusals.gone(message)
        self.outputs.dead_letter(record, "unknown_execution", refusal.detail)
        self.outputs.send(refusal_of(message, refusal.reason, refusal.detail))

    def _start(self, record: Fetched, state: Execution | None, message: m.StartExecution) -> None:
        if state is not None and holds(state, message):
            self._commit(record, state, decide.decide_again(state, message))
            return
        begun = begin(record, message, self._overlay, self._frame.known)
        self._commit(record, state, lineage.inherited(state, begun), begins=True)

    def _commit(
        self, record: Fetched, before: Execution | None, decision: Decision, *, begins: bool = False
    ) -> None:
        """Put a decision into the state, its outbox and the outputs."""
        after, told = decision.state, [event for event in decision.events if not isinstance(event, UNRECORDED)]
        if not decision.events:
            return
        kept = self._kept(before, begins) if before is not None else ()
        if decision.output is not None:
            step, output = decision.output
            self._overlay.put_payload(output_key(after.id, after.run, step), output, record.offset)
        if not told:
            self._overlay.put(after._replace(src=record.offset, outbox=kept))
            return
        packed = [pack(event) for event in told]
        entry = OutboxEntry(record.offset, record.timestamp, after.seq + 1, after.head, packed)
        rendered = render(self._definition_of(after), after, entry, told, self._overlay, self._home)
        self.outputs.send(rendered.messages)
        outbox = (*kept, entry)
        self._overlay.put(after._replace(src=record.offset, seq=rendered.seq, head=rendered.head, outbox=outbox))

    def _kept(self, before: Execution, begins: bool) -> tuple[OutboxEntry, ...]:
        """The entries that may not have been sent yet. Those of an earlier run say whose they are."""
        unsent = tuple([entry for entry in before.outbox if entry.cause > self._frame.sent_through])
        if begins and unsent:
            earlier = before._replace(outbox=(), steps=())
            unsent = tuple([entry if entry.of else entry._replace(of=earlier) for entry in unsent])
        return unsent

    def _send_again(self, record: Fetched, state: Execution) -> bool:
        """The record was folded before: whatever it caused may not have been sent. False if nothing is kept."""
        found = False
        for entry in state.outbox:
            if entry.cause != record.offset:
                continue
            found = True
            events = [lineage.again(state, unpack(packed)) for packed in entry.events]
            owner = entry.of or state
            self._fault_letter(record, events)
            try:
                rendered = render(self._definition_of(owner), state, entry, events, self._overlay, self._home)
            except PayloadGone:
                if not may_lack_payloads(owner):
                    raise
                continue  # removed only after everything had been sent
            self.outputs.send(rendered.messages)
        return found

    def _before_the_run(self, record: Fetched, state: Execution, message: Message) -> None:
        """Of what was there before this run nothing is known any more: as if there were no state."""
        if isinstance(message, m.RetryExecution):
            if not refusals.can_begin_anew(message):
                self._nothing_to_retry(record, message)
        elif isinstance(message, m.RetryEnded):
            if lineage.is_foreign(state, message):
                self.outputs.disown(record, message)
        elif not isinstance(message, m.StartExecution):
            self._unknown(record, state.id, message)

    def _definition_of(self, state: Execution) -> WorkflowDefinition | None:
        return None if state.refused else self._overlay.definition(state.definition)

    def _forget(self, record: Fetched, message: m.Forget) -> None:
        """Every finished execution whose window has passed becomes a marker; the order does not matter."""
        self.owed(record)
        bound = min(message.before, record.timestamp)
        # The index is of the table; what this batch changed is looked at too: its borders decide nothing.
        for execution in dict.fromkeys((*self._frame.forgettable(bound), *self._overlay.changed)):
            state = self._overlay.state(execution)
            if state is None or record.offset <= state.src or state.forget_at is None or state.forget_at > bound:
                continue
            if state.retries:
                decided = lineage.decide_forget(state, record.timestamp)
                self._commit(record, state, lineage.decision(state, [decided]))
                continue
            kept = self._kept(state, begins=False)
            self._overlay.put(lineage.forget(state)._replace(src=record.offset, outbox=kept))

    def _unknown(self, record: Fetched, execution: str, message: Message) -> None:
        if isinstance(message, m.TimerFired | m.StepHeartbeat | OfAFamily):
            return  # of an execution that was forgotten meanwhile
        if is_undeliverable(message):
            return  # it has its dead letter
        detail = f"no execution {execution} is known; it never was, or its window has passed"
        self.outputs.dead_letter(record, "unknown_execution", detail)

    def _is_home(self, record: Fetched, execution: str) -> bool:
        """Whether the record came to the partition of its execution. If not, it is forwarded, once."""
        home = partition_of(root_id(execution).encode(), self._frame.partitions)
        if home == record.partition:
            return True
        self.outputs.forward(record, execution, home)
        return False
