"""Retries in the engine: who may have one, what it shares, and how long that is kept."""

from __future__ import annotations

from typing import Any

import pytest

from flowpilot.core import notices
from flowpilot.core.refusals import MOST_RETRIES
from flowpilot.core.state import decode_execution
from flowpilot.engine.keys import input_key, output_key, state_key
from flowpilot_schemas import messages as m
from flowpilot_schemas.definition import StepDefinition, WorkflowDefinition
from flowpilot_schemas.topics import HOUR
from tests.unit.engine_world import BRIEF, CHAIN, T, World, completed, drain, quiet, starting  # noqa: F401
from tests.unit.retry_world import (
    OTHER,
    anew,
    answers,
    ask,
    changed,
    failed_at_b,
    fatal,
    finish,
    over_all_windows,
    retried,
    started,
    starts_of,
    step,
    task,
)

WIDE = WorkflowDefinition(
    name="wide",
    version="1",
    steps=(
        *[StepDefinition(name=f"part-{n}", queue="q") for n in range(9_998)],
        StepDefinition(name="bad", queue="q"),
        StepDefinition(name="join", queue="q", depends_on=("bad",), takes=("bad",)),
    ),
)


@pytest.fixture
def world() -> World:
    return World(definitions=[CHAIN, BRIEF, OTHER, WIDE])


def test_a_retry_goes_on_from_the_failed_step_with_the_results_of_the_others(world: World) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    retry = retried(world, owner, execution)
    assert retry == f"{execution}.1"
    begun = started(world, retry)
    run = begun["run"]
    assert begun["parent"] == execution
    assert begun["parent_run"] == 0
    assert (begun["created_by"], begun["retry_reason"], begun["from_start"]) == ("user:ann", "fixed", False)
    assert (begun["taken"], begun["input"], begun["key"]) == ({execution: ["a"]}, {"key": "1"}, "1")
    sent = step(world, retry)
    assert (sent["task_id"], sent["idempotency_key"]) == (f"{retry}/{run}/b/1", f"{retry}/{run}/b")
    assert sent["parents"] == {"a": {"of": f"{execution}/0/a/1"}}
    assert sent["input"] == {"key": "1"}
    finish(world, owner, retry)
    assert world.history(retry) == [
        *("ExecutionStarted", "StepReady", "StepCompleted", "StepReady", "StepCompleted", "ExecutionCompleted"),
    ]
    assert world.history(execution)[-1] == "ExecutionFailed"
    table = owner.engine.table(0)
    assert table.get(output_key(retry, run, "a")) is None
    assert table.get(output_key(execution, 0, "a")) is not None
    assert world.dead_letters() == []


def test_a_retry_of_a_retry_finds_the_results_of_both(world: World) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    first = retried(world, owner, execution)
    world.event(completed(task(world, first, "b")), execution)
    world.event(fatal(task(world, first, "c")), execution)
    drain(owner)
    second = retried(world, owner, first, "r2")
    assert second == f"{execution}.2"
    begun = started(world, second)
    assert (begun["parent"], begun["taken"]) == (first, {execution: ["a"], first: ["b"]})
    assert step(world, second)["parents"] == {"b": {"of": f"{first}/{started(world, first)['run']}/b/1"}}
    finish(world, owner, second)
    assert world.history(second)[-1] == "ExecutionCompleted"


def test_after_a_retry_that_ended_the_root_can_be_retried_again_and_numbers_go_on(world: World) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    first = retried(world, owner, execution)
    world.event(fatal(task(world, first, "b")), execution)
    drain(owner)
    second = retried(world, owner, execution, "r2")
    assert (first, second) == (f"{execution}.1", f"{execution}.2")
    assert started(world, second)["parent"] == execution


def test_the_same_request_twice_makes_one_retry_and_two_people_get_one_too(world: World) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    ask(world, execution)
    ask(world, execution)
    ask(world, execution, "another", actor="user:ben")
    drain(owner)
    told = answers(world)
    assert [answer.get("retry") for answer in told] == [f"{execution}.1", f"{execution}.1", None]
    assert told[2]["refused"] == "in_progress"
    assert f"{execution}.1 runs" in told[2]["detail"]
    refused = [v for v in world.values(T.history) if v["type"] == "RetryRefused"][-1]
    assert (refused["of"], refused["actor"], refused["refusal"]) == (execution, "user:ben", "in_progress")
    assert len([task for task in world.tasks() if task.startswith(f"{execution}.")]) == 1


def test_each_state_that_has_no_retry_says_why(world: World) -> None:
    owner = world.owner()

    def refusal(execution: str, **fields: Any) -> str:
        ask(world, execution, f"r{len(answers(world))}", **fields)
        drain(owner)
        answer = answers(world)[-1]
        assert "retry" not in answer
        assert answer["detail"]
        return str(answer["refused"])

    running = world.start(CHAIN, "running")
    drain(owner)
    assert refusal(running) == "in_progress"
    assert refusal(f"{running}.1") == "unknown_execution"
    finish(world, owner, running)
    assert refusal(running) == "completed"
    assert refusal(running, from_start=True) == "input_gone"
    start = starting(CHAIN, "never").model_copy(update={"definition": "sha256:none"})
    never = start.execution
    world.event(start, never)
    drain(owner)
    assert refusal(never) == "never_began"
    failed = failed_at_b(world, owner, "failed")
    assert refusal(failed, version="2", definition=OTHER.hash) == "other_version"
    assert world.dead_letters() == []


def test_what_is_not_known_is_a_dead_letter_and_an_answer(world: World) -> None:
    owner = world.owner()
    unknown = "0b2c6a8e-0d0f-5d0e-8a53-2f7f4c1f0b11"
    ask(world, unknown)
    ask(world, unknown, "r2", from_start=True)
    drain(owner)
    assert [reason for reason, _ in world.dead_letters()] == ["unknown_execution"] * 2
    assert [answer["refused"] for answer in answers(world)] == ["results_gone", "input_gone"]
    assert "--from-start" in answers(world)[0]["detail"]


def test_from_the_start_all_steps_run_again_with_the_shared_input(world: World) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    retry = retried(world, owner, execution, from_start=True)
    begun = started(world, retry)
    assert ("taken" in begun, begun["from_start"], begun["input"]) == (False, True, {"key": "1"})
    assert step(world, retry)["step"] == "a"
    assert owner.engine.table(0).get(input_key(retry, begun["run"])) is None  # by reference
    finish(world, owner, retry)
    assert world.history(retry)[-1] == "ExecutionCompleted"


def test_from_the_start_another_version_and_what_has_completed(world: World) -> None:
    owner = world.owner()
    execution = world.start(CHAIN, "1")
    finish(world, owner, execution)
    retry = retried(world, owner, execution, **anew(OTHER))
    assert (started(world, retry)["version"], started(world, retry)["input"]) == ("2", {"key": "again"})
    finish(world, owner, retry)
    assert world.history(retry)[-1] == "ExecutionCompleted"


def test_results_stay_while_a_retry_refers_to_them_and_go_with_the_family(world: World) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    retry = retried(world, owner, execution)
    over_all_windows(world, owner)  # the retry's step waits for its worker; its time-out ends it
    assert owner.engine.table(0).get(output_key(execution, 0, "a")) is None
    assert owner.engine.table(0).get(state_key(retry)) is None
    assert [key for key, _ in owner.engine.table(0).items() if execution.encode() in key] == []
    ask(world, execution, "late")
    drain(owner)
    assert answers(world)[-1]["refused"] == "results_gone"


def test_results_outlive_their_own_window_for_a_running_retry(world: World) -> None:
    owner = world.owner()
    steps = [{**step.model_dump(), "on_schedule_to_start": "record"} for step in CHAIN.steps]
    patient = changed(CHAIN, name="patient", steps=steps)
    world.definitions.by_hash[patient.hash] = patient
    execution = failed_at_b(world, owner, definition=patient)
    retry = retried(world, owner, execution)
    over_all_windows(world, owner)
    assert owner.engine.table(0).get(output_key(execution, 0, "a")) is not None
    finish(world, owner, retry)
    assert world.history(retry)[-1] == "ExecutionCompleted"
    root = decode_execution(owner.engine.table(0).get(state_key(execution)) or b"")
    assert root.forget_at == world.now + notices.SHORTEST_FAMILY_MS  # the longest of what is left of all windows
    world.now += 2 * notices.SHORTEST_FAMILY_MS
    for _ in range(3):
        owner.tick().to_end()
        drain(owner)
        world.now += 2_000
    assert [key for key, _ in owner.engine.table(0).items() if execution.encode() in key] == []


def test_a_forgotten_execution_is_retried_from_the_start_with_the_input_that_is_given(world: World) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    over_all_windows(world, owner)
    retry = retried(world, owner, execution, **anew(known=4))
    assert retry == f"{execution}.5"
    assert "parent_run" not in started(world, retry)
    again = world.start(CHAIN, "1")  # a new run of the key meets the root that only knows of its retry
    assert again == execution
    drain(owner)
    world.event(fatal(task(world, execution, "a")), execution)
    drain(owner)
    assert world.history(execution)[-1] == "ExecutionFailed"
    ask(world, execution, "r9")
    drain(owner)
    assert answers(world)[-1]["refused"] == "in_progress"
    assert retried(world, owner, execution, **anew(known=4)) == retry
    over_all_windows(world, owner)
    assert [key for key, _ in owner.engine.table(0).items() if execution.encode() in key] == []


def test_a_start_of_a_retry_that_is_refused_frees_the_root_for_the_next(world: World) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    retry = retried(world, owner, execution, **anew() | {"definition": "sha256:none"})
    assert world.history(retry) == ["StartRefused"]
    assert started(world, retry)["parent"] == execution
    assert retried(world, owner, execution, "r2") == f"{execution}.2"


def test_a_copy_of_a_refused_retry_s_start_does_not_begin_it_after_all(world: World) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    late = changed(CHAIN, version="3")
    retry = retried(world, owner, execution, **anew(late))
    [start] = starts_of(world, retry)
    world.definitions.by_hash[late.hash] = late
    world.event(start, retry)
    drain(owner)
    assert world.history(retry) == ["StartRefused"]


def test_the_start_of_a_retry_that_has_ended_is_not_sent_again(world: World) -> None:
    """Commits were lost, and the request and the retry's end were folded again in one batch, whose outputs were not
    sent: the root's outbox has the start still, but the root knows that the retry is over."""
    owner = world.owner()
    execution = failed_at_b(world, owner)
    request = ask(world, execution)
    owner.process(owner.fetch(9)).to_end()
    owner.process(owner.fetch(9)).to_end()
    retry = f"{execution}.1"
    assert len(starts_of(world, retry)) == 1
    world.event(fatal(task(world, retry, "b")), retry)
    owner.process(owner.fetch(9)).to_end()
    owner.crash()
    heir = world.owner()
    for _ in range(9):
        batch = heir.fetch(1 if heir.fetch(1)[0].offset < request else 99)
        call = heir.process(batch)
        if len(batch) == 1:
            call.to_end()
            continue
        call.before(lambda record: record.topic != T.changelog)
        break
    heir.crash()
    drain(world.owner())
    assert len(starts_of(world, retry)) == 1
    assert {answer["retry"] for answer in answers(world)} == {retry}


def test_a_retry_is_cancelled_like_any_other_and_can_be_retried(world: World) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    retry = retried(world, owner, execution)
    world.event(m.CancelExecution(execution=retry, actor="a"), retry)
    drain(owner)
    assert world.history(retry)[-1] == "ExecutionCancelled"
    assert started(world, retried(world, owner, retry, "r2"))["taken"] == {execution: ["a"]}


@pytest.mark.parametrize("at", [T.changelog, T.history, T.events, T.replies, T.steps("q")])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_process_that_dies_anywhere_leaves_one_retry(world: World, at: str, nth: int) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    ask(world, execution)
    try:
        for _ in range(3):
            owner.process(owner.fetch(9)).before(lambda record: record.topic == at, nth)
    except AssertionError:
        pass  # fewer such records than that
    owner.crash()
    heir = world.owner()
    drain(heir)
    retry = f"{execution}.1"
    finish(world, heir, retry)
    assert world.history(retry)[-1] == "ExecutionCompleted"
    assert {answer["retry"] for answer in answers(world)} == {retry}
    assert {value["execution"] for value in world.values(T.history)} == {execution, retry}
    assert {value["run"] for value in world.values(T.history) if value["execution"] == retry} == {
        started(world, retry)["run"]
    }
    assert world.dead_letters() == []


def test_the_engine_alone_starts_an_execution_with_a_number(world: World) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    start = m.StartExecution(
        execution=f"{execution}.1", workflow="chain", version="1", definition=CHAIN.hash, input=None
    )
    world.event(start, execution)
    foreign = m.RetryOf(execution=execution, request="x", actor="a", shares=[("1" + execution[1:], 0)])
    world.event(start.model_copy(update={"retry": foreign}), execution)
    drain(owner)
    assert [reason for reason, _ in world.dead_letters()] == ["wrong_shape"] * 2
    assert retried(world, owner, execution) == f"{execution}.1"


def test_a_root_has_so_many_retries_and_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_RETRIES >= 100
    monkeypatch.setattr("flowpilot.core.refusals.MOST_RETRIES", 1)
    owner = world.owner()
    execution = failed_at_b(world, owner)
    retry = retried(world, owner, execution)
    world.event(m.CancelExecution(execution=retry, actor="a"), retry)
    ask(world, execution, "r2")
    drain(owner)
    # The retry's end is on its way to the root: the client that knows of it asks again.
    assert (answers(world)[-1]["refused"], answers(world)[-1]["running"]) == ("in_progress", retry)
    ask(world, execution, "r3")
    drain(owner)
    assert answers(world)[-1]["refused"] == "too_many_retries"


def test_the_widest_workflow_is_retried_by_small_records(world: World) -> None:
    owner = world.owner()
    execution = world.start(WIDE, "1")
    drain(owner)
    for sent in world.tasks():
        world.event(fatal(sent) if "/bad/" in sent else completed(sent, 1), execution)
    drain(owner)
    assert world.history(execution)[-1] == "ExecutionFailed"
    before = len(world.tasks())
    retry = retried(world, owner, execution)
    assert [task.split("/")[2] for task in world.tasks()[before:]] == ["bad"]
    largest = max(len(record.value or b"") for record in world.log.records(T.changelog)[-5:])
    assert largest < 2 << 20
    assert len(started(world, retry)["taken"][execution]) == 9_998
    finish(world, owner, retry)
    assert world.history(retry)[-1] == "ExecutionCompleted"


def test_the_shortest_family_outlives_what_may_be_on_its_way() -> None:
    assert notices.SHORTEST_FAMILY_MS >= notices.LATEST_START_MS + HOUR


def test_a_kept_table_reads_again_what_its_gap_check_left_alone(world: World) -> None:
    """A slow owner's records of a later offset land behind a claim; the claimer leaves them, and claims again
    after another has folded them: its table must have them."""
    slow = world.owner()
    execution = world.start(CHAIN, "1")
    call = slow.process(slow.fetch(9))
    call.before(lambda record: record.key == input_key(execution, 0))
    claimer = world.owner()
    slow.crash(ghosts=True)
    world.land_ghosts()
    world.now += 10_000
    claimer.tick().to_end()  # sees the late records: ahead of it, left alone
    assert claimer.engine.table(0).get(state_key(execution)) is None
    between = world.owner()
    drain(between)
    world.lawful[0] = claimer
    world.committed[0] = 1
    claimer.take(0).to_end()
    assert claimer.engine.table(0).get(input_key(execution, 0)) is not None
    assert claimer.engine.table(0).get(state_key(execution)) is not None
