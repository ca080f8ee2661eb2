"""What `flowpilot doctor` makes of the topics that start executions, from what it saw."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flowpilot.app.trigger_topics import Sight, lags, troubles
from flowpilot.ports.log import TopicPartition
from flowpilot_schemas.triggers import PositionKey, TriggerPosition

PLACE, OTHER = TopicPartition("orders", 0), TopicPartition("orders", 1)
KEY, OTHER_KEY = (PositionKey("plain", "orders", number, "id-1") for number in (0, 1))
AT = 1_000


def at(next_offset: int, registered: int = AT) -> TriggerPosition:
    return TriggerPosition(next_offset=next_offset, registered=registered)


SOUND = Sight(
    readers={"orders": {"plain": AT}},
    ids={"orders": "id-1"},
    bounds={PLACE: (0, 10), OTHER: (0, 5)},
    assigned={PLACE, OTHER},
    positions={KEY: [at(10)], OTHER_KEY: [at(5)]},
    read_to={PLACE: (10, "id-1")},
)
BEHIND = replace(SOUND, positions={KEY: [at(8)], OTHER_KEY: [at(5)]})


def said(now: Sight, before: Sight | None = None) -> list[tuple[str, bool, str]]:
    return [(each.place, each.is_grave, each.detail) for each in troubles(now, before)]


def test_partitions_that_are_read_are_no_trouble() -> None:
    assert said(SOUND) == said(SOUND, SOUND) == []
    assert not lags(SOUND)
    assert lags(BEHIND)
    assert said(BEHIND, replace(BEHIND, positions={KEY: [at(7)], OTHER_KEY: [at(5)]})) == []


@pytest.mark.parametrize(
    ("seen", "place", "sentence"),
    [
        (replace(SOUND, ids={}, bounds={}, positions={}), "orders", "no topic orders"),
        (replace(SOUND, bounds={PLACE: "no leader", OTHER: (0, 5)}), "orders/0", "cannot be read: no leader"),
        (replace(SOUND, assigned={OTHER}), "orders/0", "no router has it"),
        (replace(SOUND, positions={OTHER_KEY: [at(5)]}), "orders/0", "has not opened it for plain"),
        (replace(SOUND, positions={**SOUND.positions, KEY: [at(11), at(9)]}), "orders/0", "offset 11, of 10"),
        (replace(SOUND, positions={**SOUND.positions, KEY: [at(3, AT + 1), at(9)]}), "orders/0", "to come"),
        (
            replace(SOUND, positions={**SOUND.positions, KEY: [at(12)]}, read_to={PLACE: (12, "id-1")}),
            "orders/0",
            "flowpilot trigger rewind orders 0 10",
        ),
    ],
)
def test_each_trouble_has_its_place_and_sentence(seen: Sight, place: str, sentence: str) -> None:
    [(where, _, detail)] = said(seen)
    assert where == place
    assert sentence in detail


def test_what_another_topic_was_read_to_is_no_lost_tail() -> None:
    """The group's offset is of a topic of that name which is no more."""
    seen = replace(SOUND, positions={**SOUND.positions, KEY: [at(12), at(9)]}, read_to={PLACE: (12, "id-0")})
    [(_, is_grave, detail)] = said(seen)
    assert not is_grave
    assert "cannot be true" in detail


def test_partition_that_stands_still_between_two_looks_is_grave() -> None:
    [(place, is_grave, detail)] = said(BEHIND, BEHIND)
    assert (place, is_grave) == ("orders/0", True)
    assert "stands still at offset 8 of 10" in detail


def test_while_no_router_runs_only_what_lasts_is_said() -> None:
    assert said(replace(BEHIND, assigned=None, positions={}), replace(BEHIND, assigned=None)) == []
