"""The fate of each trigger record, stored with what it came from and asked for by offset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from flowpilot.audit.batches import Definitions, batch_of
from flowpilot.audit.projection import project
from flowpilot.core.dead_letters import dead_letter
from flowpilot.core.outcomes import Fate
from flowpilot.ports.audit import BatchRefused, Letter, Position
from flowpilot.ports.log import Fetched, TopicPartition
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.topics import Topics
from flowpilot_schemas.triggers import Filtered, TriggerFiltered
from tests.audit_history import Chain, events
from tests.audit_world import AuditWorld, statements

pytestmark = pytest.mark.integration


@pytest.fixture
def world(database_url: str) -> Iterator[AuditWorld]:
    made = AuditWorld(database_url)
    yield made
    made.close()


def origin(offset: int, partition: int = 0, topic: str = "orders") -> dict[str, Any]:
    return {"topic": topic, "topic_id": "id-1", "partition": partition, "offset": offset}


def filtered(workflow: str | None, reason: Any, *ranges: tuple[int, int], topic: str = "orders") -> TriggerFiltered:
    part = Filtered(workflow=workflow, reason=reason, ranges=list(ranges))
    return TriggerFiltered(topic=topic, topic_id="id-1", partition=0, filtered=[part])


def test_each_fate_is_found_by_its_offset(world: AuditWorld) -> None:
    started = Chain(run=1)
    started.started(origin=origin(5))
    started("StartDeduplicated", origin=origin(6))
    started("KeyConflict", origin=origin(7), input_hash="sha256:0")
    started("StartDeduplicated", created_by="a client")  # of no record
    refused = Chain(run=2)
    refused(
        "StartRefused", workflow="billing", version="1", definition="d", reason="r", detail="d", origin=origin(5)
    )
    record = Fetched("orders", 0, 8, 1, None, b"{")
    world.write(
        events(started, refused),
        letters=[Letter(dead_letter(record, "not_json", "no JSON", "router"), 1)],
        filtered=[filtered("billing", "where", (6, 6), (9, 20)), filtered(None, "tombstone", (30, 30))],
    )
    queries, of_started = world.queries, (None, None, started.execution, 1, "id-1")
    assert queries.fates("orders", 0, 5) == [
        Fate("billing", "refused", None, "r: d", refused.execution, 2, "id-1"),
        Fate("onboarding", "started", *of_started),
    ]
    assert queries.fates("orders", 0, 6) == [
        Fate("billing", "filtered", "where", topic_id="id-1"),
        Fate("onboarding", "duplicate", *of_started),
    ]
    assert queries.fates("orders", 0, 7) == [Fate("onboarding", "key_conflict", *of_started)]
    assert queries.fates("orders", 0, 8) == [Fate(None, "dead_letter", "not_json", "no JSON")]
    assert [queries.fates("orders", 0, offset) != [] for offset in (9, 20, 21, 30)] == [True, True, False, True]
    assert queries.fates("orders", 1, 5) == queries.fates("others", 0, 5) == []
    assert queries.divergences() == []
    assert world.differences() == []


def test_what_comes_again_is_told_once(world: AuditWorld) -> None:
    started = Chain(run=1)
    started.started(origin=origin(5))
    started("StartDeduplicated", origin=origin(6))
    started("StartDeduplicated", origin=origin(6))  # the router crashed between its output and its commit
    for _ in range(2):
        world.write(events(started), filtered=[filtered("billing", "where", (5, 6))])
    assert world.one("SELECT count(*) FROM trigger_fate WHERE fate = 'duplicate'") == 2
    assert [fate.fate for fate in world.queries.fates("orders", 0, 6)] == ["filtered", "duplicate"]


def test_many_ranges_are_one_row_and_the_question_uses_the_index(world: AuditWorld) -> None:
    for batch in range(200):
        first = batch * 10_000
        world.write(filtered=[filtered("w", "where", *((first + n, first + n + 8) for n in range(0, 10_000, 10)))])
    assert world.one("SELECT count(*) FROM trigger_fate") == 200
    world.ask("ANALYZE trigger_fate")
    with statements(world.engine) as sent:
        assert [world.queries.fates("orders", 0, offset) != [] for offset in (1_234_565, 1_234_569)] == [
            True,
            False,
        ]
    assert len(sent) == 6
    question = "SELECT * FROM trigger_fate WHERE topic = 'orders' AND offsets @> 1234565::bigint"
    plan = world.ask(f"SET LOCAL enable_seqscan = off; EXPLAIN {question}")  # the table is too small for it yet
    assert "ix_trigger_fate_offsets" in " ".join(plan)


def test_a_message_that_is_none_is_set_aside(world: AuditWorld) -> None:
    topics = Topics("t")
    place = TopicPartition(topics.fates, 0)
    good = encode_message(filtered("w", "where", (1, 2)))
    records = [
        Fetched(topics.fates, 0, offset, 1, None, value)
        for offset, value in enumerate((b"{", b'{"v": 2}', good, good.replace(b"where", b"weather")))
    ]
    batch = batch_of(records, {place: Position("id", 0)}, topics, Definitions())
    assert [divergence.reason for divergence in batch.divergences] == ["not_json", "future_version", "wrong_shape"]
    assert len(batch.filtered) == 1
    with pytest.raises(BatchRefused):  # PostgreSQL refuses a range that ends before it begins
        world.write(filtered=[filtered("w", "where", (2, 1))])


def test_an_origin_that_is_none_is_refused(world: AuditWorld) -> None:
    chain = Chain(run=1)
    chain.started()
    chain("StartDeduplicated", origin={"topic": "orders"})
    assert project(events(chain), {}).repeats[0].offset is None
    with pytest.raises(BatchRefused):
        world.write(events(chain))
