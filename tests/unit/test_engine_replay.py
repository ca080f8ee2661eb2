"""Rule 2: a record that is read again is not folded again, and what it caused is sent again."""

from __future__ import annotations

from typing import Any

import pytest

from flowpilot.core import decide
from flowpilot.core import events as e
from flowpilot.engine import fold
from flowpilot.engine.errors import DefinitionsUnread
from flowpilot.engine.keys import input_key, output_key, state_key
from flowpilot.engine.table import WATERMARK_KEY
from flowpilot.ports.log import LogUnavailable
from flowpilot_schemas import messages as m
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.ids import TaskId
from tests.unit.engine_world import (
    BRIEF,
    CHAIN,
    Owner,
    T,
    World,
    answer_all,
    completed,
    drain,
    quiet,  # noqa: F401
    starting,
)


def on(topic: str) -> Any:
    return lambda record: record.topic == topic


def finish(world: World, owner: Owner) -> None:
    answered: set[str] = set()
    while drain(owner) or answer_all(world, answered):
        pass


def first_task(execution: str, run: int, definition: WorkflowDefinition = BRIEF) -> str:
    return str(TaskId(execution, run, definition.steps[0].name, 1))


def test_a_duplicate_in_the_same_batch_overwrites_nothing_that_is_to_be_sent() -> None:
    """protocol.md a1: the state after the second record still knows what the first one caused."""
    world = World()
    owner = world.owner()
    execution = world.start(CHAIN, "1")
    world.start(CHAIN, "1")
    call = owner.process(owner.fetch(2))
    call.before(on(T.history))
    owner.crash()
    drain(world.owner())
    assert world.history(execution) == ["ExecutionStarted", "StepReady", "StartDeduplicated"]
    assert world.tasks() == [first_task(execution, 0, CHAIN)]


def test_a_dead_letter_is_sent_again_below_the_watermark() -> None:
    """protocol.md a3: nothing in the table knows of it, the record alone decides."""
    world = World()
    owner = world.owner()
    world.raw(b"not json")
    owner.process(owner.fetch(1)).before(on(T.dead_letters))
    owner.crash()
    assert world.dead_letters() == []
    drain(world.owner())
    assert world.dead_letters() == [("not_json", 0)]


def test_where_the_fold_stops_between_two_batches_decides_nothing() -> None:
    """Rule 0: a Forget finds what an earlier record of its own batch finished."""
    seen = []
    for most in (1, 100):
        world = World()
        execution = world.start(BRIEF, "1")
        world.event(completed(first_task(execution, 0)), execution)
        world.now += 10_000
        world.event(m.Forget(before=world.now), execution, 0)
        world.start(BRIEF, "1")
        drain(world.owner(), most)
        seen.append(world.history(execution))
    assert seen[0] == seen[1]
    assert seen[0].count("ExecutionStarted") == 2


@pytest.mark.parametrize("late", ["cancel", "completion"])
def test_the_dead_letter_of_an_unknown_execution_survives_that_it_begins_right_after(late: str) -> None:
    world = World()
    owner = world.owner()
    message = starting(CHAIN, "1")
    execution = message.execution
    if late == "cancel":
        world.event(m.CancelExecution(execution=execution, actor="a"), execution)
    else:
        world.event(completed(first_task(execution, 7)), execution)
    world.event(message, execution)
    owner.process(owner.fetch(9)).before(on(T.dead_letters))
    owner.crash()
    drain(world.owner())
    assert world.dead_letters() == [("unknown_execution", 0)]
    assert world.history(execution) == ["ExecutionStarted", "StepReady"]


def test_an_input_whose_state_did_not_land_is_not_taken_for_a_finished_run_s() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(CHAIN, "1")
    call = owner.process(owner.fetch(1))
    call.before(lambda record: record.key == state_key(execution))
    owner.crash()
    assert [r.key for r in world.log.records(T.changelog)][-1] == input_key(execution, 0)
    heir = world.owner()
    drain(heir)
    world.now += 10
    heir.tick().to_end()
    heir.tick().to_end()
    assert heir.engine.table(0).get(input_key(execution, 0)) is not None
    finish(world, heir)
    assert world.history(execution)[-1] == "ExecutionCompleted"
    assert world.dead_letters() == []


@pytest.mark.parametrize("at", [T.history, T.steps("q"), T.control, T.replies])
def test_whatever_output_the_process_dies_before_comes_once_more(at: str) -> None:
    world = World()
    owner = world.owner()
    message = starting(CHAIN, "1", reply=m.ReplyTo(topic=T.replies, partition=0))
    execution = message.execution
    world.event(message, execution)
    world.event(m.CancelExecution(execution=execution, actor="a"), execution)
    owner.process(owner.fetch(9)).before(on(at))
    owner.crash()
    drain(world.owner())
    assert world.history(execution) == [
        *("ExecutionStarted", "StepReady"),
        *["StepCancelled"] * 3,
        "ExecutionCancelled",
    ]
    assert world.tasks()[0] == first_task(execution, 0, CHAIN)
    assert world.values(T.control)
    assert world.values(T.replies)


def test_a_new_run_after_the_window_keeps_what_the_earlier_run_did_not_send() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(BRIEF, "1")
    world.event(completed(first_task(execution, 0)), execution)
    world.now += 10_000
    world.event(m.Forget(before=world.now), execution, 0)
    again = world.event(starting(BRIEF, "1"), execution)
    owner.process(owner.fetch(9)).before(on(T.history))
    owner.crash()
    drain(world.owner())
    first = ["ExecutionStarted", "StepReady", "StepCompleted", "ExecutionCompleted"]
    assert world.history(execution) == [*first, "ExecutionStarted", "StepReady"]
    assert world.tasks() == [first_task(execution, 0), first_task(execution, again)]


def test_inputs_and_outputs_that_were_removed_are_no_fault_when_old_records_are_read_again() -> None:
    """The commit was lost: everything is read again after its inputs and outputs were removed."""
    world = World()
    owner = world.owner()
    execution = world.start(CHAIN, "1")
    answered: set[str] = set()
    while owner.fetch(9) or answer_all(world, answered):
        if batch := owner.fetch(9):
            owner.process(batch).to_end()
    owner.tick().to_end()
    assert owner.engine.table(0).get(input_key(execution, 0)) is None
    before = world.log.records(T.history)
    owner.crash()
    assert world.committed == {}
    heir = world.owner()
    drain(heir)
    assert world.dead_letters() == []
    again = world.log.records(T.history)[len(before) :]
    assert {record.value for record in again} <= {record.value for record in before}
    assert world.history(execution)[-1] == "ExecutionCompleted"


def test_a_failed_run_keeps_its_inputs_until_it_is_forgotten() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(BRIEF, "1")
    task = first_task(execution, 0)
    world.event(m.StepFailed(task_id=task, error=m.StepError(kind="No", retryable=False)), execution)
    drain(owner)
    owner.tick().to_end()
    assert owner.engine.table(0).get(input_key(execution, 0)) is not None
    owner.crash()
    heir = world.owner()
    world.now += 5_000
    heir.tick().to_end()
    drain(heir)  # the Forget that the tick asked for; this process has never decoded the definition
    heir.tick().to_end()
    assert heir.engine.table(0).get(input_key(execution, 0)) is None
    assert heir.engine.table(0).get(state_key(execution)) is None


# -- a defect of ours -----------------------------------------------------------------------------------------


def broken(monkeypatch: pytest.MonkeyPatch, name: str, execution: str) -> None:
    whole = getattr(decide, name)

    def defect(definition: Any, state: Any, *rest: Any) -> Any:
        decision = whole(definition, state, *rest)
        if decision.state.id == execution:
            raise ZeroDivisionError("defect")
        return decision

    monkeypatch.setattr(decide, name, defect)


def test_a_defect_in_the_fold_stops_one_execution_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    owner = world.owner()
    sick, well = world.start(BRIEF, "sick"), world.start(BRIEF, "well")
    drain(owner)
    broken(monkeypatch, "decide", sick)
    for execution, run in ((sick, 0), (well, 1)):
        world.event(completed(first_task(execution, run)), execution)
    call = owner.process(owner.fetch(9))
    call.before(on(T.history))
    owner.crash()
    drain(world.owner())
    assert world.history(sick) == ["ExecutionStarted", "StepReady", "ExecutionIncident"]
    assert world.history(well)[-1] == "ExecutionCompleted"
    assert set(world.dead_letters()) == {("engine_fault", 2)}
    monkeypatch.undo()
    assert not any(
        b"/only" in (record.key or b"") and sick.encode() in (record.key or b"")
        for record in world.log.records(T.changelog)
    )  # nothing of the rolled-back record was written
    world.event(m.CancelExecution(execution=sick, actor="a"), sick)
    drain(world.lawful[0])
    assert world.history(sick)[-1] == "ExecutionCancelled"


def test_what_a_record_changed_before_it_met_a_defect_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The output is in the overlay, and the step message that it unblocks cannot be made."""
    world = World()
    owner = world.owner()
    execution = world.start(CHAIN, "sick")
    drain(owner)
    whole = fold.render

    def defect(definition: Any, state: Any, entry: Any, events: Any, *rest: Any) -> Any:
        if any(isinstance(event, e.StepCompleted) for event in events):
            raise ZeroDivisionError("defect")
        return whole(definition, state, entry, events, *rest)

    monkeypatch.setattr(fold, "render", defect)
    world.event(completed(first_task(execution, 0, CHAIN)), execution)
    drain(owner)
    assert world.history(execution) == ["ExecutionStarted", "StepReady", "ExecutionIncident"]
    keys = {record.key for record in world.log.records(T.changelog)}
    assert input_key(execution, 0) in keys
    assert output_key(execution, 0, "a") not in keys


def test_the_dead_letter_of_a_defect_is_not_lost_with_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    owner = world.owner()
    execution = world.start(BRIEF, "1")
    drain(owner)
    broken(monkeypatch, "decide", execution)
    world.event(completed(first_task(execution, 0)), execution)
    owner.process(owner.fetch(9)).before(on(T.dead_letters))
    owner.crash()
    assert world.dead_letters() == []
    drain(world.owner())
    assert world.dead_letters() == [("engine_fault", 1)]


def test_a_start_that_meets_a_defect_is_refused_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    owner = world.owner()

    def defect(*_: Any) -> Any:
        raise ZeroDivisionError("defect")

    monkeypatch.setattr(decide, "decide_start", defect)
    execution = world.start(BRIEF, "1")
    owner.process(owner.fetch(9)).before(on(T.dead_letters))
    owner.crash()
    drain(world.owner())
    assert world.dead_letters() == [("engine_fault", 0)]
    assert world.history(execution) == ["StartRefused"]
    monkeypatch.undo()
    world.start(BRIEF, "1")
    drain(world.lawful[0])
    assert world.history(execution)[1:] == ["ExecutionStarted", "StepReady"]


def test_a_log_that_does_not_answer_is_no_defect_of_the_record() -> None:
    world = World(definitions=())
    owner = world.owner()
    world.start(BRIEF, "1")

    async def refresh() -> None:
        raise LogUnavailable("gone for a while")

    world.definitions.refresh = refresh  # type: ignore[method-assign]
    with pytest.raises(DefinitionsUnread, match="gone for a while"):
        owner.process(owner.fetch(9)).to_end()
    assert world.dead_letters() == []
    assert all(record.key == WATERMARK_KEY for record in world.log.records(T.changelog))
    assert world.values(T.changelog)[-1]["w"] == -1


def test_a_definition_that_comes_later_is_found() -> None:
    world = World(definitions=())
    owner = world.owner()
    execution = world.start(BRIEF, "1")
    drain(owner)
    assert world.history(execution) == ["StartRefused"]
    world.definitions.by_hash[BRIEF.hash] = BRIEF
    world.start(BRIEF, "1")
    drain(owner)
    assert world.history(execution)[1:] == ["ExecutionStarted", "StepReady"]


def test_the_copy_of_a_definition_is_the_partition_s_own() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(BRIEF, "1")
    drain(owner)
    owner.crash()
    world.definitions.by_hash.clear()
    heir = world.owner()
    finish(world, heir)
    assert world.history(execution)[-1] == "ExecutionCompleted"


def test_a_revoked_partition_does_not_come_back_with_the_batch_under_way() -> None:
    world = World(2)
    owner = world.owner(0, 1)
    for number in range(8):
        world.start(BRIEF, str(number))
    call = owner.process(owner.fetch(9))
    call.before(on(T.changelog))
    owner.engine.revoke(1)
    owner.engine.revoke(0)
    call.to_end()
    assert len(owner.engine.table(0)) == len(owner.engine.table(1)) == 0
    assert owner.engine.live() == {}


def test_a_client_is_answered_also_if_two_processes_die_and_the_window_passes_meanwhile() -> None:
    world = World()
    owner = world.owner()
    execution = world.start(BRIEF, "1", reply=m.ReplyTo(topic=T.replies, partition=0))
    drain(owner)
    world.event(completed(f"{execution}/0/only/1"), execution)
    owner.process(owner.fetch(9)).before(lambda record: record.topic != T.changelog)
    owner.crash()
    world.now += 10_000
    heir = world.owner()
    heir.tick().to_end()  # asks to forget it
    heir.process(heir.fetch(9)).before(lambda record: record.topic != T.changelog)
    heir.crash()
    drain(world.owner())
    assert [answer["status"] for answer in world.values(T.replies)] == ["completed"]
