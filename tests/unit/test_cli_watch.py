"""How `execution watch` follows: until the end, through a lost database, and when it gives up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from flowpilot.app.database import DatabaseUnreachable
from flowpilot.cli.failures import CommandFailed, Exit
from flowpilot.cli.watch import KNOWN_WITHIN, LOOK_EVERY, follow
from flowpilot.client.errors import ResultTimeout

RUNNING = ({"status": "running", "finished_at": None}, [])
ENDED = ({"status": "completed", "finished_at": "2026-05-01T12:00:00.000Z"}, [])
LOST = DatabaseUnreachable("no answer")


class World:
    """A follower, a display and a clock; looks beyond the script repeat the last one."""

    def __init__(self, script: Iterable[Any]) -> None:
        self.script = list(script)
        self.now = 0.0
        self.looked: list[float] = []
        self.shown: list[str | None] = []

    def look(self) -> Any:
        self.looked.append(self.now)
        seen = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(seen, Exception):
            raise seen
        return seen

    def show(self, found: Any, changed: Any) -> None:
        self.shown.append(found["status"])

    def trouble(self, what: str | None) -> None:
        self.shown.append(what)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def follow(self, timeout: float | None = None) -> Any:
        return follow(self, self, "e", timeout, clock=lambda: self.now, sleep=self.sleep)  # type: ignore[arg-type]


def test_it_looks_twice_a_second_until_the_end() -> None:
    world = World([None, RUNNING, RUNNING, ENDED])
    assert world.follow() == ENDED[0]
    assert world.shown == ["running", "running", "completed"]
    assert world.looked == [0, LOOK_EVERY, 2 * LOOK_EVERY, 3 * LOOK_EVERY]


def test_a_lost_database_is_told_once_and_tried_again() -> None:
    world = World([RUNNING, *[LOST] * 30, ENDED])
    assert world.follow() == ENDED[0]
    assert world.shown == ["running", "no answer", None, "completed"]


def test_a_database_that_never_answered_is_an_error() -> None:
    with pytest.raises(DatabaseUnreachable):
        World([LOST]).follow()


def test_an_unknown_execution_is_waited_for_a_few_seconds() -> None:
    world = World([None])
    with pytest.raises(CommandFailed) as failed:
        world.follow()
    assert failed.value.code is Exit.NOT_FOUND
    assert world.now == KNOWN_WITHIN
    # The time without a database does not count.
    again = World([None, *[LOST] * 30, None, ENDED])
    assert again.follow() == ENDED[0]


@pytest.mark.parametrize(("script", "error"), [([RUNNING], ResultTimeout), ([None], CommandFailed)])
def test_it_watches_no_longer_than_it_was_told(script: list[Any], error: type[Exception]) -> None:
    world = World(script)
    with pytest.raises(error):
        world.follow(1.2)
    assert world.now == pytest.approx(1.2)
