"""When `setup` raises the permitted rule set, and what `doctor` tells of engines."""

from __future__ import annotations

import pytest

from flowpilot.app.doctor import engine_checks
from flowpilot.app.rule_sets import raises, why_not
from flowpilot.ports.members import LiveMembers
from flowpilot_schemas.codec import decode_object, encode_message
from flowpilot_schemas.members import STOPPED_TOLD, EngineAnnounced, StoppedPartition, stopped_partitions
from flowpilot_schemas.topics import MEMBER_MESSAGE


def live(*rules: int, is_complete: bool = True, stopped: dict[int, str] | None = None) -> LiveMembers:
    engines = [
        EngineAnnounced(
            engine=f"e{n}", started_at="", release="1.2", rules=r, session_ms=1_000,
            stopped=stopped_partitions(stopped or {}),
        )
        for n, r in enumerate(rules)
    ]  # fmt: skip
    return LiveMembers([], engines, 0, is_complete)


@pytest.mark.parametrize("members", [0, 1, 2])
def test_raise_when_all_engines_have_the_set(members: int) -> None:
    assert why_not(live(2, 3), members, 2) is None


@pytest.mark.parametrize(
    ("found", "members", "sentence"),
    [
        (live(), 0, "no engine is live: start those of this release and run `flowpilot setup` again"),
        (live(), 2, "2 engines are in the group and 0 of them announce"),
        (live(2), 2, "2 engines are in the group and 1 of them announce"),
        (live(2, 1), 2, "e1 (release 1.2) would stop: upgrade all engines"),
        (live(1, 1, 1, 1, 1), 5, "e2 (release 1.2) and 2 more would stop"),
        (live(2, is_complete=False), 1, "not every engine is known"),
    ],
)
def test_no_raise_while_an_engine_may_lack_the_set(found: LiveMembers, members: int, sentence: str) -> None:
    told = why_not(found, members, 2)
    assert told is not None
    assert told.startswith("rule set 2 is not permitted yet: ")
    assert sentence in told


def test_raises_go_one_by_one_to_each_partition() -> None:
    records = list(raises("events", 2, 3))
    assert [(r.partition, r.key, decode_object(r.value)["rules"]) for r in records] == [
        *((0, b"rules", 2), (0, b"rules", 3)),
        *((1, b"rules", 2), (1, b"rules", 3)),
    ]


def test_doctor_names_stopped_partitions_and_mixed_releases() -> None:
    reason = "partition 3 permits rule set 2 from offset 7 on; …: upgrade the engine"
    checks = list(engine_checks(live(1, 2, stopped={3: reason, 1: "its log was truncated"})))
    assert [(check.check, check.status) for check in checks] == [
        *(("partition 1", "fail"), ("partition 3", "fail"), ("rule sets", "warn")),
    ]
    assert checks[1].detail == reason
    assert checks[1].remedy == "flowpilot engine, of a later release"
    assert checks[0].remedy is None
    assert list(engine_checks(live(2, 2))) == []


def test_announcement_of_many_stopped_partitions_fits_a_record() -> None:
    found = stopped_partitions(dict.fromkeys(range(10000), "ä" * 5000))
    assert [stop.partition for stop in found] == list(range(STOPPED_TOLD))
    engine = live(1).engines[0].model_copy(update={"stopped": found})
    assert len(encode_message(engine)) < MEMBER_MESSAGE / 2
    assert stopped_partitions({4: "why"}) == [StoppedPartition(partition=4, reason="why")]
