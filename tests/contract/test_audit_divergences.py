"""Divergences, in memory and on PostgreSQL: bounded whatever comes, acknowledged by operators, each for itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flowpilot.audit.records import diverges
from flowpilot.ports.audit import FURTHER, KEPT_BYTES, KEPT_DIVERGENCES, Divergence, Position
from flowpilot.ports.log import Fetched
from tests.audit_history import completed, events
from tests.contract.audits import MEMORY_AND_POSTGRES, PLACE, TOPIC_ID, Audit, open_audit


@pytest.fixture(params=MEMORY_AND_POSTGRES)
def audit(request: pytest.FixtureRequest) -> Iterator[Audit]:
    for found in open_audit(request.param, request):
        found.begin({PLACE: Position(TOPIC_ID, 0)})
        yield found


def unreadable(offset: int, value: bytes = b"garbage", why: str = "the record is not JSON") -> Divergence:
    return diverges(Fetched("flowpilot.history", 0, offset, 0, b"k", value), "not_json", why)


def test_acknowledged_is_no_error_and_still_listed(audit: Audit) -> None:
    audit.write(divergences=[unreadable(1), unreadable(2)])
    first, second = audit.open_findings()
    assert audit.acknowledgements.acknowledge({first: "not_json"}, "user:ann", "written by hand") == 1
    assert audit.open_findings() == [second]
    assert len(audit.kept()) == 2
    given = audit.acknowledgements.acknowledged()[first]
    assert (given.actor, given.reason) == ("user:ann", "written by hand")
    assert given.at.endswith("Z")


def test_the_first_acknowledgement_stays(audit: Audit) -> None:
    audit.write(divergences=[unreadable(1)])
    [only] = audit.open_findings()
    audit.acknowledgements.acknowledge({only: "w"}, "user:ann", "first")
    assert audit.acknowledgements.acknowledge({only: "w"}, "user:bob", "second") == 0
    assert audit.acknowledgements.acknowledged()[only].reason == "first"
    assert audit.acknowledgements.acknowledge({}, "user:bob", "nothing") == 0


def test_another_one_at_the_same_place_is_an_error_again(audit: Audit) -> None:
    audit.write(divergences=[unreadable(1)])
    [only] = audit.open_findings()
    audit.acknowledgements.acknowledge({only: "w"}, "user:ann", "known")
    audit.write(divergences=[unreadable(1, why="told in other words by another release")])
    assert audit.open_findings() == []  # it came again as it was
    audit.write(divergences=[unreadable(1, b"other garbage")])
    assert len(audit.open_findings()) == 1


def test_what_verify_finds_is_acknowledged_as_it_is(audit: Audit) -> None:
    """A gap in the events, which no later record mends; a row that changes after that is an error again."""
    history = events(completed())
    audit.write([each for each in history if each.seq != 3])
    found = {each.fingerprint: each.what for each in audit.differences()}
    assert found
    audit.acknowledgements.acknowledge({**found, **dict.fromkeys(audit.open_findings(), "w")}, "user:ann", "lost")
    assert audit.open_findings() == []
    audit.delete_rows()
    assert [each.what for each in audit.differences() if each.fingerprint in audit.open_findings()] == [
        "there is no row"
    ]


def test_a_flood_is_bounded_in_number(audit: Audit) -> None:
    flood = [unreadable(offset) for offset in range(KEPT_DIVERGENCES + 200)]
    audit.write(divergences=flood[:700])
    audit.write(divergences=flood[600:1_100])
    kept = audit.kept()
    assert len(kept) == KEPT_DIVERGENCES + 1
    assert [(each.reason, each.offset) for each in kept if each.reason == FURTHER] == [(FURTHER, 1_099)]
    audit.acknowledgements.acknowledge(dict.fromkeys(audit.open_findings(), "w"), "user:ann", "a load test")
    assert audit.open_findings() == []
    audit.write(divergences=flood[1_100:])
    assert len(audit.kept()) == KEPT_DIVERGENCES + 1
    [rest] = [each for each in audit.divergences() if each.reason == FURTHER]
    assert (rest.seq, rest.offset) == (200, KEPT_DIVERGENCES + 199)
    assert audit.open_findings() == [rest.fingerprint]  # more came: an error again
    # Other partitions have room of their own.
    audit.write(divergences=[unreadable(5)._replace(partition=1)])
    assert len(audit.kept()) == KEPT_DIVERGENCES + 2


def test_a_large_record_is_kept_in_part(audit: Audit) -> None:
    large = b"x" * (3 * KEPT_BYTES)
    audit.write(divergences=[unreadable(1, large), unreadable(2, large + b"y")])
    for stored, size in zip(audit.divergences(), (len(large), len(large) + 1), strict=True):
        assert stored.body == large[:KEPT_BYTES]
        assert f"{size:,} bytes, sha256 " in stored.detail
    assert len({each.fingerprint for each in audit.kept()}) == 2


def test_conflicts_of_an_event_are_told_apart(audit: Audit) -> None:
    one = events(completed())[0]
    audit.write([one])
    audit.write([one._replace(body=b"{}", offset=7)])
    audit.acknowledgements.acknowledge(dict.fromkeys(audit.open_findings(), "w"), "user:ann", "known")
    audit.write([one._replace(body=b'{"v":2}', offset=7)])
    assert len(audit.open_findings()) == 1
