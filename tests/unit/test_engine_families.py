"""Families of retries under copies that come late, records that are lost, and requests that nobody means well."""

from __future__ import annotations

import pytest

from flowpilot.core.state import decode_execution
from flowpilot.engine.keys import state_key
from flowpilot.ports.log import Delivery, Record
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import decode_object
from flowpilot_schemas.topics import DAY
from tests.unit.engine_world import BRIEF, CHAIN, Owner, T, World, completed, drain, quiet, starting  # noqa: F401
from tests.unit.retry_world import (
    OTHER,
    anew,
    answers,
    ask,
    failed_at_b,
    fatal,
    finish,
    over_all_windows,
    retried,
    started,
    starts_of,
    task,
)


class Lossy(World):
    """A world where events of the types `lost` come to nothing, as after three crashes over one of them."""

    lost: tuple[str, ...] = ()

    def land(self, record: Record) -> Delivery:
        if record.topic == T.events and decode_object(record.value).get("type") in self.lost:
            return Delivery(0, 0)
        return super().land(record)


@pytest.fixture
def world() -> Lossy:
    return Lossy(definitions=[CHAIN, BRIEF, OTHER])


def left_of(owner: Owner, execution: str) -> list[bytes]:
    """The keys that the table has of a family."""
    return [key for key, _ in owner.engine.table(0).items() if execution.encode() in key]


def over(world: World, owner: Owner, retry: str) -> None:
    world.event(fatal(task(world, retry, "b")), retry)
    drain(owner)


def is_forget(record: Record) -> bool:
    return record.topic == T.events and b'"retry.forget"' in (record.value or b"")


def test_a_process_that_dies_while_it_forgets_a_family_forgets_all_of_it(world: Lossy) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    over(world, owner, retried(world, owner, execution))
    world.now += 8 * DAY
    owner.tick().to_end()
    owner.process(owner.fetch(9)).before(is_forget)
    owner.crash()
    heir = world.owner()
    drain(heir)
    over_all_windows(world, heir)
    assert left_of(heir, execution) == []


def test_and_so_it_does_where_the_root_began_anew_in_the_same_batch(world: Lossy) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    over(world, owner, retried(world, owner, execution))
    world.now += 8 * DAY
    owner.tick().to_end()
    world.start(CHAIN, "1")
    owner.process(owner.fetch(9)).before(is_forget)
    owner.crash()
    heir = world.owner()
    drain(heir)
    finish(world, heir, execution)
    over_all_windows(world, heir)
    assert left_of(heir, execution) == []


def test_what_a_stand_in_never_knew_is_a_dead_letter_also_when_it_is_read_again(world: Lossy) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    over_all_windows(world, owner)
    ask(world, execution, **anew())
    cancel = world.event(m.CancelExecution(execution=execution, actor="a"), execution)
    ask(world, execution, "r2", **anew())  # refused, which is told in the history
    owner.process(owner.fetch(9)).before(lambda record: record.topic != T.changelog)
    owner.crash()
    drain(world.owner())
    assert ("unknown_execution", cancel) in world.dead_letters()


@pytest.mark.parametrize("known", [999_999, 0])
def test_a_number_that_no_id_can_carry_is_refused(world: Lossy, known: int) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    ask(world, execution if known else f"{execution}.999999", **anew(known=known))
    drain(owner)
    assert answers(world)[-1].get("refused") == "too_many_retries"
    assert world.dead_letters() == []
    assert retried(world, owner, execution, "r2") == f"{execution}.1"


def test_an_input_beyond_the_limit_is_refused_before_the_root_keeps_it(world: Lossy) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    over_all_windows(world, owner)
    ask(world, execution, **anew(input=m.GivenInput(value="x" * ((10 << 20) - 1_000))))
    drain(owner)
    assert answers(world)[-1].get("refused") == "input_too_large"


def test_a_retry_whose_end_was_lost_is_asked_for_it_by_the_next_request(world: Lossy) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    retry = retried(world, owner, execution)
    world.lost = ("retry.ended",)
    over(world, owner, retry)
    world.lost = ()
    ask(world, execution, "r2")
    drain(owner)
    assert (answers(world)[-1]["refused"], answers(world)[-1]["running"]) == ("in_progress", retry)
    assert retried(world, owner, execution, "r3") == f"{execution}.2"
    assert started(world, f"{execution}.2")["taken"] == {execution: ["a"]}


def test_a_retry_whose_start_was_lost_is_refused_by_the_next_request_and_never_begins(world: Lossy) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    world.lost = ("execution.start",)
    retry = retried(world, owner, execution)
    world.lost = ()
    ask(world, execution, "r2")
    drain(owner)
    assert world.history(retry) == ["StartRefused"]
    assert (started(world, retry)["reason"], started(world, retry)["parent"]) == ("start_lost", execution)
    second = retried(world, owner, execution, "r3")
    assert second == f"{execution}.2"
    [start] = starts_of(world, second)
    assert start.retry is not None
    late = start.retry.model_copy(update={"request": "r1"})
    world.event(start.model_copy(update={"execution": retry, "retry": late}), retry)
    finish(world, owner, second)
    assert world.history(retry) == ["StartRefused"]
    over_all_windows(world, owner)
    assert left_of(owner, execution) == []


@pytest.mark.parametrize("lost", ["retry.ended", "execution.start"])
def test_a_family_that_waits_for_what_was_lost_is_asked_and_forgotten_in_the_end(world: Lossy, lost: str) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    world.lost = (lost,)
    retry = retried(world, owner, execution)
    if lost == "retry.ended":
        over(world, owner, retry)
    world.lost = ()
    over_all_windows(world, owner)
    assert left_of(owner, execution) == []


def test_a_running_retry_is_asked_again_and_again_and_goes_on(world: Lossy) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    retry = retried(world, owner, execution)
    world.event(m.StepStarted(task_id=task(world, retry, "b")), retry)
    for _ in range(3):
        ask(world, execution, "r2")
        drain(owner)
    finish(world, owner, retry)
    assert world.history(retry)[-1] == "ExecutionCompleted"
    assert world.history(retry).count("ExecutionStarted") == 1


def test_a_start_that_comes_after_its_family_was_forgotten_begins_nothing_and_stays_nowhere(world: Lossy) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    retry = retried(world, owner, execution, **anew())
    [start] = starts_of(world, retry)
    over(world, owner, retry) if False else world.event(fatal(task(world, retry, "a")), retry)
    drain(owner)
    over_all_windows(world, owner)
    before = len(world.tasks())
    world.event(start, retry)
    drain(owner)
    assert len(world.tasks()) == before
    assert started(world, retry)["reason"] == "too_late"
    over_all_windows(world, owner)
    assert left_of(owner, execution) == []


def test_a_request_that_waited_for_an_engine_for_a_night_is_answered_with_a_retry(world: Lossy) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    ask(world, execution)
    world.now += DAY // 2
    drain(owner)
    assert world.history(f"{execution}.1")[0] == "ExecutionStarted"


def test_a_family_is_kept_longer_than_a_start_of_it_may_be_late(world: Lossy) -> None:
    """Also one whose windows are short: no copy of a start may outlive it."""
    owner = world.owner()
    execution = failed_at_b(world, owner)
    retry = retried(world, owner, execution, **anew(BRIEF, workflow=BRIEF.name))
    [start] = starts_of(world, retry)
    drain(owner)
    for _ in range(30):
        world.now += DAY // 24
        owner.tick().to_end()
        world.event(start, retry)
        drain(owner)
    runs = {
        v["run"] for v in world.values(T.history) if v["execution"] == retry and v["type"] == "ExecutionStarted"
    }
    assert len(runs) <= 1


@pytest.mark.parametrize("kind", ["retry.ended", "retry.forget", "execution.start", "execution.retry"])
def test_each_message_may_come_again_at_any_time(world: Lossy, kind: str) -> None:
    """Copies of all that a first family sent, in the middle of a second one and after it."""
    owner = world.owner()
    execution = failed_at_b(world, owner)
    first = retried(world, owner, execution)
    over(world, owner, first)
    over_all_windows(world, owner)
    copies = [
        record
        for record in world.log.records(T.events)
        if (value := decode_object(record.value))["type"] == kind
        and (kind != "execution.start" or value["execution"] == first)
    ]
    assert copies
    again = failed_at_b(world, owner)
    assert again == execution
    second = retried(world, owner, execution, "s1")
    for copy in copies:
        world.raw(copy.value, 0, copy.key)
    drain(owner)
    world.event(completed(task(world, second, "b")), second)
    drain(owner)
    world.event(completed(task(world, second, "c")), second)
    drain(owner)
    told = [v for v in world.values(T.history) if v["execution"] == second]
    assert (told[-1]["type"], told[-1]["run"]) == ("ExecutionCompleted", started(world, second)["run"])
    for copy in copies:
        world.raw(copy.value, 0, copy.key)
    over_all_windows(world, owner)
    over_all_windows(world, owner)
    assert left_of(owner, execution) == []


def test_the_window_of_a_new_run_outlasts_a_retry_of_the_forgotten_one(world: Lossy) -> None:
    owner = world.owner()
    execution = failed_at_b(world, owner)
    over_all_windows(world, owner)
    retry = retried(world, owner, execution, **anew())
    world.start(CHAIN, "1")
    drain(owner)
    world.event(fatal(task(world, execution, "a")), execution)
    drain(owner)
    finish(world, owner, retry)
    root = decode_execution(owner.engine.table(0).get(state_key(execution)) or b"")
    assert root.forget_at == world.now + CHAIN.retry_window_ms


def test_what_a_refused_start_never_knew_is_a_dead_letter_also_when_it_is_read_again(world: Lossy) -> None:
    owner = world.owner()
    start = starting(CHAIN, "1").model_copy(update={"definition": "sha256:none"})
    world.event(start, start.execution)
    drain(owner)
    cancel = world.event(m.CancelExecution(execution=start.execution, actor="a"), start.execution)
    ask(world, start.execution)  # refused, which is told in the history
    owner.process(owner.fetch(9)).before(lambda record: record.topic != T.changelog)
    owner.crash()
    drain(world.owner())
    assert world.dead_letters() == [("unknown_execution", cancel)]
    assert [answer["refused"] for answer in answers(world)] == ["never_began"]
