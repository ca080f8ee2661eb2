"""The audit store, in memory and on PostgreSQL: all of a batch or nothing, its positions with it; and what is kept
beside the history."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from flowpilot.audit.projection import project
from flowpilot.core.dead_letters import dead_letter
from flowpilot.ports.audit import (
    Advance,
    Batch,
    BatchRefused,
    Divergence,
    Letter,
    Outrun,
    Pointed,
    Position,
    Registered,
    Removed,
)
from flowpilot.ports.log import Fetched, TopicPartition
from flowpilot_schemas.messages import RecordHeader
from flowpilot_schemas.triggers import Filtered, TriggerFiltered
from tests.audit_history import DEFINITION, EPOCH, Chain, completed, events
from tests.contract.audits import MEMORY_AND_POSTGRES, PLACE, TOPIC_ID, Audit, KeptFate, KeptLetter, open_audit

REGISTERED = Registered(DEFINITION.hash, DEFINITION, EPOCH)
OTHER_PLACE = TopicPartition("other", 3)


@pytest.fixture(params=MEMORY_AND_POSTGRES)
def audit(request: pytest.FixtureRequest) -> Iterator[Audit]:
    for found in open_audit(request.param, request):
        found.begin({PLACE: Position(TOPIC_ID, 0)})
        yield found


def nothing_is_written(audit: Audit) -> None:
    assert audit.runs() == audit.divergences() == audit.letters() == audit.fates() == []
    assert audit.workflows() == {}
    assert audit.positions() == {PLACE: Position(TOPIC_ID, 0)}


# Positions


def test_a_first_position_stays(audit: Audit) -> None:
    audit.begin({PLACE: Position("id-9", 5)})
    assert audit.positions(PLACE, OTHER_PLACE) == {PLACE: Position(TOPIC_ID, 0)}


def test_positions_move_with_what_was_read(audit: Audit) -> None:
    audit.begin({OTHER_PLACE: Position("id-2", 7)})
    advances = [Advance(OTHER_PLACE, "id-2", 7, 9), Advance(PLACE, TOPIC_ID, 0, 4)]
    asyncio.run(audit.store.write(Batch(advances, events(completed())), project))
    assert audit.positions(PLACE, OTHER_PLACE) == {PLACE: Position(TOPIC_ID, 4), OTHER_PLACE: Position("id-2", 9)}


@pytest.mark.parametrize(
    "advances",
    [
        pytest.param([Advance(PLACE, TOPIC_ID, 0, 1)], id="another was here before"),
        pytest.param([Advance(PLACE, TOPIC_ID, 3, 4)], id="the store lacks what was written"),
        pytest.param([Advance(PLACE, "id-2", 1, 2)], id="another topic of the same name"),
        pytest.param([Advance(OTHER_PLACE, TOPIC_ID, 0, 1)], id="a partition without a position"),
        pytest.param([Advance(PLACE, TOPIC_ID, 1, 2), Advance(OTHER_PLACE, TOPIC_ID, 0, 1)], id="one of two"),
    ],
)
def test_a_writer_that_was_outrun_writes_nothing(audit: Audit, advances: list[Advance]) -> None:
    history = completed()
    audit.write(events(history)[:2])
    record = Fetched("user", 1, 2, EPOCH, None, b"{")
    late = Batch(
        advances,
        events(history)[2:],
        letters=[Letter(dead_letter(record, "not_json", "no", "router"), EPOCH)],
        filtered=[_filtered((1, 2))],
        definitions=[REGISTERED],
        divergences=[Divergence("not_json", "no", "t", 0, 1)],
    )
    with pytest.raises(Outrun):
        asyncio.run(audit.another().write(late, project))
    assert audit.events() == 2
    assert audit.letters() == audit.fates() == audit.divergences() == []
    assert audit.workflows() == {}
    assert audit.positions() == {PLACE: Position(TOPIC_ID, 1)}


def test_a_standby_without_the_last_transactions_takes_them_again(audit: Audit) -> None:
    found = events(completed())
    audit.write(found[:3], definitions=[REGISTERED])
    audit.write(found[3:])
    whole = audit.runs()
    audit.lose_all()
    assert audit.positions() == {}
    with pytest.raises(Outrun):
        audit.write([])  # a writer that goes on as if nothing had happened
    audit.begin({PLACE: Position(TOPIC_ID, 0)})
    nothing_is_written(audit)
    audit.next = 0
    audit.write(found[:3], definitions=[REGISTERED])
    audit.write(found[3:])
    assert [(run.key, run.events) for run in audit.runs()] == [(run.key, run.events) for run in whole]
    assert audit.divergences() == audit.differences() == []


# What a store refuses


def _with_a_wrong_origin(history: Chain) -> None:
    history.started(origin={"topic": 5, "topic_id": "i", "partition": 0, "offset": 1})


def _with_a_partition_that_is_text(history: Chain) -> None:
    history.started(origin={"topic": "u", "topic_id": "i", "partition": "x", "offset": 1})


def _with_a_partition_beyond_all(history: Chain) -> None:
    history.started(origin={"topic": "u", "topic_id": "i", "partition": 2**31, "offset": 1})


def _with_a_key_that_is_a_list(history: Chain) -> None:
    history.started(key=["k"])


def _with_a_repeat_of_nothing(history: Chain) -> None:
    history.started()
    history("StartDeduplicated", origin={"topic": "orders"})


@pytest.mark.parametrize(
    "wrong",
    [
        _with_a_wrong_origin,
        _with_a_partition_that_is_text,
        _with_a_partition_beyond_all,
        _with_a_key_that_is_a_list,
        _with_a_repeat_of_nothing,
    ],
)
def test_a_refused_batch_writes_nothing(audit: Audit, wrong: Any) -> None:
    history = Chain()
    wrong(history)
    more = {"definitions": [REGISTERED], "filtered": [_filtered((1, 2))]}
    with pytest.raises(BatchRefused):
        audit.write([*events(completed()), *events(history)], **more)
    nothing_is_written(audit)


def test_a_projection_that_fails_writes_nothing(audit: Audit) -> None:
    def fail(batch: Any, heads: Any) -> Any:
        raise KeyError("a defect")

    batch = Batch([Advance(PLACE, TOPIC_ID, 0, 1)], events(completed()), definitions=[REGISTERED])
    with pytest.raises(KeyError, match="a defect"):
        asyncio.run(audit.store.write(batch, fail))
    nothing_is_written(audit)


def test_a_range_that_ends_before_it_begins_is_refused(audit: Audit) -> None:
    with pytest.raises(BatchRefused):
        audit.write(filtered=[_filtered((2, 1))])
    nothing_is_written(audit)


# Dead letters, fates, definitions


def test_a_dead_letter_is_stored_once(audit: Audit) -> None:
    record = Fetched("user", 1, 2, EPOCH, None, b"\x00\xff")
    letter = Letter(dead_letter(record, "not_json", "no", "router"), EPOCH)
    other = Letter(dead_letter(record, "not_json", "no", "router", "onboarding"), EPOCH)
    audit.write(letters=[letter, letter, other])
    audit.write(letters=[letter, other])
    assert audit.letters() == [
        KeptLetter(None, "not_json", None, b"\x00\xff"), KeptLetter("onboarding", "not_json", None, b"\x00\xff"),
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", [{"key": "a"}, {"value": "a"}, {"headers": [RecordHeader(name="a", value="a")]}])
def test_a_foreign_letter_whose_bytes_are_none_is_refused(audit: Audit, wrong: dict[str, Any]) -> None:
    sound = dead_letter(Fetched("user", 1, 2, EPOCH, b"k", b"{", (("a", b"b"),)), "not_json", "no", "router")
    with pytest.raises(BatchRefused):
        audit.write(letters=[Letter(sound.model_copy(update=wrong), EPOCH)])
    nothing_is_written(audit)
    audit.write(letters=[Letter(sound, EPOCH)])
    assert audit.letters() == [KeptLetter(None, "not_json", b"k", b"{")]


def test_a_repeat_is_stored_once(audit: Audit) -> None:
    started = Chain(run=1)
    started.started()
    for offset in (6, 7):
        started("StartDeduplicated", origin={"topic": "u", "topic_id": "i", "partition": 0, "offset": offset})
    started("KeyConflict", origin={"topic": "u", "topic_id": "i", "partition": 0, "offset": 8}, input_hash="x")
    started("StartDeduplicated", created_by="a client")  # of no record
    for number in range(2):
        batch = Batch([Advance(PLACE, TOPIC_ID, number, number + 1)], events(started))
        batch.filtered.append(_filtered((5, 6), (9, 9)))
        # Each time as if it came for the first time.
        asyncio.run(audit.store.write(batch, lambda given, _heads: project(given, {})))
    of = (started.execution, 1)
    assert audit.fates() == [
        *[KeptFate("filtered", "billing", "where", [(5, 6), (9, 9)])] * 2,
        KeptFate("duplicate", None, None, [(6, 6)], *of, 2),
        KeptFate("duplicate", None, None, [(7, 7)], *of, 3),
        KeptFate("key_conflict", None, None, [(8, 8)], *of, 4),
    ]
    assert audit.divergences() == audit.differences() == []


def _filtered(*ranges: tuple[int, int]) -> TriggerFiltered:
    part = Filtered(workflow="billing", reason="where", ranges=list(ranges))
    return TriggerFiltered(topic="orders", topic_id="i", partition=0, filtered=[part])


def test_pointers_and_tombstones(audit: Audit) -> None:
    second = _registered(version="2")
    one, two = ("onboarding", "1"), ("onboarding", "2")
    first_hash, second_hash = DEFINITION.hash, second.hash
    audit.write(definitions=[REGISTERED, second, Pointed("onboarding", "2", second_hash, True, second)])
    audit.write(definitions=[REGISTERED, second])  # the same again changes nothing
    assert audit.workflows() == {one: (first_hash, False), two: (second_hash, True)}
    audit.write(definitions=[Pointed("onboarding", "1", first_hash, True, REGISTERED)])
    assert audit.workflows() == {one: (first_hash, True), two: (second_hash, False)}
    audit.write(definitions=[Removed(workflow="onboarding", version="2")])
    assert audit.workflows() == {one: (first_hash, True)}
    audit.write(definitions=[Removed(hash=first_hash)])
    assert audit.workflows() == {}
    audit.write(definitions=[Pointed("onboarding", "1", first_hash, True, REGISTERED), second])
    assert audit.workflows() == {one: (first_hash, True), two: (second_hash, False)}
    audit.write(definitions=[_registered(name="billing"), Removed(workflow="onboarding")])
    assert list(audit.workflows()) == [("billing", "1")]


def test_of_two_registrations_of_a_version_its_pointer_decides(audit: Audit) -> None:
    other, name = _registered(description="x"), ("onboarding", "1")
    audit.write(events(completed()), definitions=[REGISTERED, other, Pointed("onboarding", "1", "?", True)])
    assert audit.workflows() == {name: (REGISTERED.hash, True)}
    audit.write(definitions=[Pointed("onboarding", "1", other.hash, False, other)])
    assert audit.workflows() == {name: (other.hash, True)}
    assert audit.differences() == []


def test_a_workflow_goes_and_comes_back_and_what_was_executed_stays(audit: Audit) -> None:
    applied = [REGISTERED, Pointed("onboarding", "1", DEFINITION.hash, True, REGISTERED)]
    audit.write(events(completed()), definitions=applied)
    before = [(run.key, run.events, run.tasks.keys()) for run in audit.runs()]
    audit.write(definitions=[Removed(workflow="onboarding"), Removed(workflow="onboarding", version="1")])
    assert audit.workflows() == {}
    assert [(run.key, run.events, run.tasks.keys()) for run in audit.runs()] == before
    assert audit.differences() == []
    audit.write(definitions=applied)
    assert audit.workflows() == {("onboarding", "1"): (DEFINITION.hash, True)}
    assert audit.differences() == []


def _registered(**changes: str) -> Registered:
    definition = type(DEFINITION).model_validate({**DEFINITION.model_dump(), **changes})
    return Registered(definition.hash, definition, EPOCH)
