"""Whatever lies on the events topic, the whole way: raw bytes, any JSON, and messages that are almost right."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from flowpilot.core.state import decode_execution
from flowpilot.engine.keys import is_state, state_key
from flowpilot.engine.reading import read_or_none
from flowpilot.ports.log import Record
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import decode_object, encode_message
from flowpilot_schemas.history import HEADER_HOPS
from flowpilot_schemas.ids import keyed_execution_id
from tests.property import built
from tests.unit.engine_world import CHAIN, DIAMOND, Owner, T, World, answer_all, completed, drain, quiet  # noqa: F401

THERE = keyed_execution_id("chain", "there")
OVER = keyed_execution_id("diamond", "over")
OTHER = keyed_execution_id("chain", "other")
_NO_IDS = ("", "x", "../../etc", f"{THERE}.0", THERE.upper(), "a/b")
_EXECUTIONS = st.sampled_from((*(THERE, OVER) * 4, f"{OVER}.1", keyed_execution_id("chain", "nobody"), *_NO_IDS))
_TASKS = st.builds(
    lambda execution, run, step, attempt: f"{execution}/{run}/{step}/{attempt}",
    _EXECUTIONS,
    st.integers(0, 3),
    st.sampled_from(("a", "b", "top", "left", "nobody")),
    st.integers(0, 3),
)
_DEFINITIONS = st.sampled_from((CHAIN, DIAMOND)).map(lambda definition: definition.hash)
_AIMED = {
    "execution": _EXECUTIONS,
    "retry": _EXECUTIONS,
    "task_id": _TASKS,
    "definition": _DEFINITIONS,
    "workflow": st.sampled_from(("chain", "diamond")),
    "version": st.just("1"),
    "rules": st.just(1),
    "run": st.integers(0, 3),
}


class Odd(NamedTuple):
    """A record to be written."""

    value: bytes | None
    key: bytes | None
    hops: bool


@st.composite
def almost_right(draw: st.DrawFn) -> bytes:
    """A message of some type, aimed at what is there, with up to two of its fields spoilt."""
    model = m.EVENT_TYPES[draw(st.sampled_from(sorted(m.EVENT_TYPES)))]
    value = decode_object(encode_message(draw(built.instances(model))))
    for name, aimed in _AIMED.items():
        if name in value and not (name == "retry" and model is not m.RetryEnded):
            value[name] = draw(aimed)
    for name in draw(st.lists(st.sampled_from(sorted(value)), max_size=2)):
        value[name] = draw(built.JSON)
    if draw(st.booleans()) and draw(st.booleans()):
        del value[draw(st.sampled_from(sorted(value)))]
    return orjson.dumps(value)


VALUES = st.none() | st.binary(max_size=40) | built.JSON.map(orjson.dumps) | almost_right() | almost_right()
ODD = st.builds(Odd, VALUES, st.none() | st.just(b"k") | st.binary(max_size=5), st.booleans())


def before_it() -> tuple[World, Owner, int]:
    """One execution in the middle, one that failed, one that waits; and how many records that were."""
    world = World()
    owner = world.owner()
    world.start(CHAIN, "there")
    world.start(DIAMOND, "over", input={})
    world.start(CHAIN, "other")
    world.event(completed(f"{THERE}/0/a/1"), THERE)
    world.event(m.CancelExecution(execution=OVER, actor="a"), OVER)
    return world, owner, drain(owner)


@given(odd=st.lists(ODD, min_size=1, max_size=12))
@settings(max_examples=250, deadline=None)
def test_whatever_comes_the_fold_goes_on(odd: list[Odd]) -> None:
    """S11: what cannot be read makes one dead letter and changes nothing; nothing is a defect of ours; the others
    are not touched."""
    world, owner, first = before_it()
    for value, key, hops in odd:
        world.log.append(Record(T.events, key, value, 0, ((HEADER_HOPS, b"1"),) if hops else ()))
    drain(owner)
    if owner.engine.stopped:  # the only reason that a record can be
        assert "upgrade the engine" in owner.engine.stopped[0]
        return
    letters: dict[int, list[str]] = {}
    for reason, offset in world.dead_letters():
        letters.setdefault(offset, []).append(reason)
    for record in world.log.records(T.events)[first : first + len(odd)]:
        reasons = letters.pop(record.offset, [])
        assert "engine_fault" not in reasons, record
        if read_or_none(record) is None:
            assert len(reasons) == 1, record
            assert record.offset not in changed_by(world)
    assert _finishes(world, owner, OTHER), odd


def changed_by(world: World) -> set[int]:
    """The offsets of the records that some execution's state was folded from."""
    sources = set()
    for record in world.log.records(T.changelog):
        if is_state(record.key or b"") and record.value is not None:
            sources.add(decode_execution(record.value).src)
    return sources


def _finishes(world: World, owner: Owner, execution: str) -> bool:
    answered: set[str] = set()
    while drain(owner) or answer_all(world, answered):
        pass
    stored: Any = owner.engine.table(0).get(state_key(execution))
    return world.history(execution)[-1] == "ExecutionCompleted" and decode_execution(stored).status == "completed"
