"""What set-up says about replication, from numbers alone."""

from __future__ import annotations

import pytest

from flowpilot.adapters.kafka.replication import advice, refusal
from flowpilot.settings import Settings


def replicated(factor: int, in_sync: int | None = None) -> Settings:
    return Settings(_env_file=None, replication_factor=factor, min_insync_replicas=in_sync)


@pytest.mark.parametrize(("factor", "in_sync"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_half_of_the_replicas_rounded_up_must_be_in_sync_unless_set(factor: int, in_sync: int) -> None:
    assert replicated(1).in_sync(factor) == in_sync
    assert replicated(factor, 1).in_sync(factor) == 1


def test_more_in_sync_than_there_are_replicas_is_refused() -> None:
    sentence = refusal(replicated(2, 3), {})
    assert sentence is not None
    assert "FLOWPILOT_MIN_INSYNC_REPLICAS=3 is more than FLOWPILOT_REPLICATION_FACTOR=2" in sentence
    assert refusal(replicated(3, 3), {}) is None


def test_a_topic_with_fewer_replicas_than_must_be_in_sync_is_refused() -> None:
    sentence = refusal(replicated(3, 2), {"flowpilot.events": 1, "flowpilot.history": 3})
    assert sentence is not None
    assert sentence.startswith("topic flowpilot.events has fewer replicas than FLOWPILOT_MIN_INSYNC_REPLICAS=2:")
    assert "flowpilot.history" not in sentence
    assert refusal(replicated(3, 2), {"flowpilot.events": 2}) is None
    assert refusal(replicated(3), {"flowpilot.events": 1}) is None


def test_what_is_as_meant_needs_no_advice() -> None:
    assert advice(replicated(1), 1, {"flowpilot.events": 1}) == []
    assert advice(replicated(3), 3, {"flowpilot.events": 3}) == []
    assert advice(replicated(3), 3, {"flowpilot.events": 5}) == []


@pytest.mark.parametrize(
    ("settings", "brokers", "replicas", "said"),
    [
        (replicated(1), 3, {}, "Kafka has 3 brokers and FLOWPILOT_REPLICATION_FACTOR is 1"),
        (replicated(3, 1), 3, {}, "acknowledged when one broker has it"),
        (replicated(3, 3), 3, {}, "one broker that is down stops every write"),
        (replicated(3), 3, {"a": 2, "b": 3}, "topic a has fewer replicas than FLOWPILOT_REPLICATION_FACTOR=3"),
        (replicated(3), 3, dict.fromkeys("abcde", 2), "topics a, b, c and 2 more have fewer"),
    ],
)
def test_advice(settings: Settings, brokers: int, replicas: dict[str, int], said: str) -> None:
    [sentence] = advice(settings, brokers, replicas)
    assert said in sentence
