"""S9: any record may come again at any time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from flowpilot.core.state import Execution
from flowpilot_schemas import messages as m
from tests.exhaustive.dags import Subject
from tests.exhaustive.seen import TELLS, Sent, Violation, same
from tests.exhaustive.world import Event, Folded, Situation, fold


def check(
    subject: Subject, here: Situation, event: Event, folded: Folded, counts: Counter[str]
) -> Iterator[Violation]:
    """Read again: the very record; the one before it; and the same message once more, as another record."""
    state = folded.state
    if not folded.changed or state is None:
        return  # it would be the same call again
    there = here._replace(state=state, stored=folded.stored)
    counts["S9"] += 1
    again = fold(subject, there, folded.record)
    if again.changed or again.outputs != folded.outputs:
        yield Violation("S9", f"{event.label}, delivered again, {_what(again)}")
    if same(here.state, state):
        counts["S9"] += 1
        copy = fold(subject, there, folded.record._replace(offset=folded.record.offset + 1))
        told = {value["type"] for value, _, _ in Sent.of(copy).history}
        if told & {"CompletionIgnored", "CancelIgnored"}:
            yield Violation("S9", f"{event.label}, sent twice, was recorded as ignored twice")
        return
    if here.record is not None and here.state is not None and not _says_another_thing(here, state):
        counts["S9"] += 1
        again = fold(subject, there, here.record)
        if again.changed or again.outputs != here.outputs:
            yield Violation("S9", f"the record before, delivered again after {event.label}, {_what(again)}")
    counts["S9"] += 1
    copy = fold(subject, there, folded.record._replace(offset=folded.record.offset + 1))
    told = [value["type"] for value, _, _ in Sent.of(copy).history]
    if not same(state, copy.state) or not set(told) <= TELLS:
        yield Violation("S9", f"{event.label}, said twice, told {told} or moved something")


def _what(again: Folded) -> str:
    return "changed the state" if again.changed else "sent something else"


def _says_another_thing(here: Situation, after: Execution) -> bool:
    """Whether the record before is rightly answered in another way now: a retry that was begun has ended, or was
    forgotten with its root; of an earlier run nothing is known."""
    assert here.record is not None
    message = here.event.message if here.event is not None else None
    if isinstance(message, m.RetryExecution):
        return all(not retry.is_open for retry in after.retries)
    return here.record.offset < after.run
