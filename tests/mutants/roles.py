"""Defects of the router and the worker."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from flowpilot.authoring.bounds import TypeBounds
from flowpilot.core.bounds.graph import Graph
from flowpilot.core.serving import Registered, Verdict
from flowpilot.ports.log import Fetched
from flowpilot.router import cloudevents, positions, routing
from flowpilot.router.output import Output
from flowpilot.router.reading import Served, serve
from flowpilot.worker import answers, attempt, serving
from flowpilot.worker.attempts import Attempts
from flowpilot.worker.clock import BrokerClock
from flowpilot.worker.control import Control
from flowpilot.worker.handlers import Handler
from flowpilot.worker.intake import Intake
from flowpilot.worker.partition import AssignedPartition, Entry
from flowpilot.worker.records import Records
from flowpilot.worker.worker import StepWorker
from flowpilot_schemas.mac import MISSING, StepSecrets
from tests.mutants.catalogue import Catalogue, Patch

router, worker = Catalogue("router"), Catalogue("worker")


# -- router ---------------------------------------------------------------------------------------------------


@router("S1", "unit", "simulation")
def position_before_the_starts(patch: Patch) -> None:
    """A position moves, and is committed, before the starts of its records are acknowledged."""
    whole = Output.produce

    async def produce(self: Output, batch: Any) -> None:
        served = list(batch)
        for each in served:
            each.reading.cursor = max(each.reading.cursor, each.end)
            each.done()
        await self.commit([each.reading for each in served])
        await whole(self, served)

    patch.setattr(Output, "produce", produce)


@router("S1", "unit")
def the_last_position_counts(patch: Patch) -> None:
    """Of two positions of a key the last one written counts, though it be a slow router's."""
    held = positions.Positions.of
    patch.setattr(positions.Positions, "of", lambda self, key: [self.last(key)] if held(self, key) else [])


@router("S1", "unit")
def any_position_is_believed(patch: Patch) -> None:
    """A position beyond the end of the log, or of a registration to come, moves a workflow past its records."""
    from flowpilot.router import beginning

    async def stored(self: Any, reading: Any, name: str, registration: Any, end: int) -> Any:
        return self._positions.get(reading.key(name))

    patch.setattr(beginning.Beginnings, "_stored", stored)


@router("S1", "unit")
def a_lost_tail_is_read_on(patch: Patch) -> None:
    """A log that ends before what was read of it is read on, as if its position were a forged one."""
    from flowpilot.router.router import Router

    async def read_to(self: Any, partition: Any, topic_id: str) -> int:
        return 0

    patch.setattr(Router, "_read_to", read_to)


@router("S1", "unit")
def partitions_open_one_after_the_other(patch: Patch) -> None:
    """A partition that does not open keeps those behind it closed."""
    from flowpilot.router import partitions

    whole = partitions.Partitions.begin

    def begin(self: Any) -> None:
        closed = self.closed
        self.closed = dict(sorted(closed.items())[:1])
        whole(self)
        self.closed = closed

    patch.setattr(partitions.Partitions, "begin", begin)


@router("S1", "unit")
def records_are_not_asked_whose_they_are(patch: Patch) -> None:
    """What was fetched is routed under the id that the topic had when its partition was opened."""
    from flowpilot.router.router import Router

    whole = Router._take

    async def take(self: Any, records: Sequence[Fetched]) -> None:
        close, self._close_others = self._close_others, lambda found, partitions: None
        try:
            await whole(self, records)
        finally:
            self._close_others = close

    patch.setattr(Router, "_take", take)


@router("S9", "unit")
def starts_with_ids_by_chance(patch: Patch) -> None:
    """A record that is read again starts another execution."""
    for name in ("record_execution_id", "keyed_execution_id", "event_execution_id"):
        patch.setattr(routing, name, lambda *_: str(uuid.uuid4()))


@router("S11", "unit")
def bad_trigger_records_are_skipped(patch: Patch) -> None:
    """A trigger record that cannot be read starts nothing, and leaves no dead letter."""
    whole = routing.route

    def route(*given: Any, **more: Any) -> Any:
        return [outcome for outcome in whole(*given, **more) if not isinstance(outcome, routing.DeadLetter)]

    from flowpilot.router import reading

    patch.setattr(routing, "route", route)
    patch.setattr(reading, "route", route)


@router("S1", "unit")
def lost_headers_pass_for_none(patch: Patch) -> None:
    """A record whose headers the client cannot read is taken for plain JSON, though it may be a CloudEvent."""
    patch.setattr(cloudevents, "HEADERS_LOST", None)


@router("S11", "unit")
def names_that_are_not_text_are_attributes(patch: Patch) -> None:
    """A header that means nothing to FlowPilot makes a good record a dead letter."""
    patch.setattr(cloudevents, "is_utf8", lambda name: True)


@router("S1", "unit")
def cloudevents_are_named_by_their_id(patch: Patch) -> None:
    """Two systems that number their events alike share executions."""
    whole = routing.event_execution_id
    patch.setattr(routing, "event_execution_id", lambda workflow, source, event: whole(workflow, "", event))


@router("S11", "unit")
def what_contradicts_itself_is_taken(patch: Patch) -> None:
    """A CloudEvent that is one thing in its headers and another in itself starts an execution."""
    patch.setattr(cloudevents, "_agree", lambda name, held, told: None)


@router("S1", "unit")
def who_is_behind_skips_ahead(patch: Patch) -> None:
    """A workflow that has yet to catch up is served with live records, and what lies between is never read."""
    from flowpilot.router import router as routers

    def all_of_them(where: Any, reading: Any, workflows: Any, arrived: Sequence[Fetched], end: int) -> Served:
        return serve(where, reading, list(reading.readers(where)), arrived, end)

    patch.setattr(routers, "serve", all_of_them)


@router("S11", "unit")
def nothing_is_priced_before_it_is_checked(patch: Patch) -> None:
    """A record of a few hundred bytes has its input checked for hours."""
    patch.setattr(Graph, "covers", lambda self, data: True)


@router("S1", "simulation")
def definitions_are_looked_for_now_and_then(patch: Patch) -> None:
    """A record that came after a deploy starts the version of before: its router had not looked yet."""
    from flowpilot.router.router import Router

    whole = Router._take

    async def take(self: Any, records: Sequence[Fetched]) -> None:
        refresh, self._refresh = self._refresh, _nothing
        try:
            await whole(self, records)
        finally:
            self._refresh = refresh

    patch.setattr(Router, "_take", take)


async def _nothing() -> None: ...


# -- worker ---------------------------------------------------------------------------------------------------


@worker("S13", "unit", "simulation")
def old_code_runs_new_executions(patch: Patch) -> None:
    """The order of registration does not matter: a worker runs whatever step has an equal contract."""
    whole = serving.judge

    def judge(served: Registered, wanted: Registered) -> Verdict:
        return whole(served._replace(position=1), wanted._replace(position=0))

    patch.setattr(serving, "judge", judge)


@worker("S13", "unit", "simulation")
def contracts_do_not_matter(patch: Patch) -> None:
    """A worker runs the steps of every version that was registered before its own, whatever they take."""
    whole = serving.judge

    def judge(served: Registered, wanted: Registered) -> Verdict:
        return whole(served._replace(contract="any"), wanted._replace(contract="any"))

    patch.setattr(serving, "judge", judge)


@worker("S11", "unit")
def values_are_validated_unpriced(patch: Patch) -> None:
    """A value that pydantic takes minutes for holds the interpreter of its worker."""
    patch.setattr(TypeBounds, "check", lambda self, value, data: None)


@worker("L1", "unit")
def the_loop_runs_the_users_validators(patch: Patch) -> None:
    """A validator that hangs stops every heartbeat of its worker."""
    patch.setattr(Handler, "validates_quickly", True)


@worker("S1", "unit", "simulation")
def commit_past_an_unfinished_record(patch: Patch) -> None:
    """A worker commits behind the last record that is finished, whatever before it is not."""

    def finish(self: AssignedPartition, entry: Entry) -> None:
        entry.finished = True
        entry.attempt = None
        self.position = max(self.position or 0, entry.offset + 1)
        self._taken = type(self._taken)(taken for taken in self._taken if not taken.finished)
        self._count_finished += 1

    patch.setattr(AssignedPartition, "finish", finish)


@worker("S1", "simulation")
def a_worker_moves_the_pointer(patch: Patch) -> None:
    """Whatever version a worker has becomes the current one when it starts: an old one's restart rolls back."""
    whole = StepWorker.__init__

    def init(self: Any, *given: Any, **more: Any) -> None:
        whole(self, *given, **{**more, "move_pointer": True})

    patch.setattr(StepWorker, "__init__", init)


@worker("S1", "unit", "simulation")
def finished_when_it_is_taken(patch: Patch) -> None:
    """A record is finished when its handler begins: a worker that dies over it leaves it to nobody."""
    whole = Attempts._begin

    def begin(self: Attempts, attempt: Any) -> None:
        whole(self, attempt)
        if attempt.partition is not None:
            self._records.finish(attempt.entry, attempt.partition)

    patch.setattr(Attempts, "_begin", begin)


@worker("S1", "unit", "simulation")
def answers_are_sent_once(patch: Patch) -> None:
    """Answers that the log did not take at the first try are dropped, and count as given."""

    async def send(self: Any, batch: Any) -> None:
        try:
            deliveries = await self._producer.send([record for record, _ in batch])
            errors = [delivery.error for delivery in deliveries]
        except answers.LogUnavailable:
            errors = [None] * len(batch)
        for (_, acknowledged), error in zip(batch, errors, strict=True):
            if acknowledged is not None:
                acknowledged(error)

    patch.setattr(answers.Answers, "_send", send)


@worker("L1", "unit")
def suspects_run_at_once(patch: Patch) -> None:
    """What its last worker may have died over is run before its start is committed: it may kill all workers."""
    whole = AssignedPartition.take

    def take(self: AssignedPartition) -> tuple[Fetched, Entry, bool]:
        return (*whole(self)[:2], False)

    patch.setattr(AssignedPartition, "take", take)


@worker("S2", "unit")
def cancels_do_not_reach_handlers(patch: Patch) -> None:
    """A worker begins and goes on with steps of executions that are cancelled."""
    patch.setattr(Control, "why_over", lambda self, task, task_id: None)


@worker("S10", "unit")
def steps_are_judged_by_this_machines_clock(patch: Patch) -> None:
    """A worker whose clock is ahead drops steps that are wanted."""
    patch.setattr(BrokerClock, "is_past", lambda self, moment: self._local() > moment)


@worker("S12", "unit")
def steps_are_run_without_a_mac(patch: Patch) -> None:
    """With a secret configured, a worker runs what nobody signed."""
    patch.setattr(StepSecrets, "distrust", lambda self, topic, value, headers: None)


@worker("S12", "unit")
def any_mac_is_good_enough(patch: Patch) -> None:
    """A worker looks whether a step message has a MAC, and not whether it is this message's."""
    whole = StepSecrets.distrust

    def distrust(self: StepSecrets, topic: str, value: bytes | None, headers: Any) -> tuple[str, str] | None:
        found = whole(self, topic, value, headers)
        return found if found is not None and found[0] == MISSING else None

    patch.setattr(StepSecrets, "distrust", distrust)


@worker("S12", "unit")
def reports_go_where_the_message_says(patch: Patch) -> None:
    """A worker sends its reports to whatever topic a step message names."""
    whole = attempt.answer

    def answer(message: Any, record: Fetched, worker_id: str, kind: str, fields: dict[str, Any]) -> Any:
        report = whole(message, record, worker_id, kind, fields)
        return report._replace(topic=message.reply.topic, partition=message.reply.partition)

    patch.setattr(attempt, "answer", answer)


@worker("S11", "unit")
def bad_step_messages_are_skipped(patch: Patch) -> None:
    """A step message that is not understood is finished without a dead letter."""
    patch.setattr(Records, "bury", lambda self, record, entry, partition, bad: self.finish(entry, partition))


@worker("S1", "unit")
def a_revoked_partition_is_committed_on(patch: Patch) -> None:
    """What a worker gave away it commits all the same: its records that wait count as finished."""
    whole = Intake._on_revoked

    async def on_revoked(self: Any, partitions: Any) -> None:
        for tp in partitions:
            held = self._partitions.get(tp)
            if held is not None and held.waiting:
                held.position = held.waiting[-1].offset + 1
                held._count_finished += len(held.waiting)
        await whole(self, partitions)

    patch.setattr(Intake, "_on_revoked", on_revoked)
