"""What time and order may do to an execution: nothing goes back, saying it twice says it once, branches commute."""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from flowpilot.core import decide as d
from flowpilot.core import events as e
from flowpilot.core.state import Execution
from flowpilot.core.status import TERMINAL_EXECUTION, TERMINAL_STEP, StepStatus
from flowpilot_schemas import messages as m
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.ids import TaskId
from tests.property.run import Run
from tests.property.scripts import SCRIPTS, Command, answer, dags, definitions, play

THOROUGH = settings(max_examples=60, deadline=None)
_TELLS = (e.CompletionIgnored, e.CancelIgnored)


@st.composite
def played(draw: st.DrawFn) -> Run:
    """A run after a random script."""
    run: Run = draw(definitions())
    script: list[Command] = draw(SCRIPTS)
    return play(run, script)


@given(run=played())
@THOROUGH
def test_nothing_goes_back(run: Run) -> None:
    """seq, `src`, attempts and the number of closed steps only grow; what is terminal absorbs."""
    for turn in run.turns:
        before, after = turn.before, turn.after
        assert after.run == before.run
        assert after.seq >= before.seq
        assert after.src >= before.src
        assert (after.seq == before.seq) == (after.head == before.head)
        if turn is not run.turns[0]:
            assert after.open <= before.open
        for one, other in zip(before.steps, after.steps, strict=False):
            assert other.attempt >= one.attempt
            assert other.waiting <= one.waiting
            assert one.status not in TERMINAL_STEP or other.status is one.status
        if before.status in TERMINAL_EXECUTION:
            assert (after.status, after.steps, after.forget_at) == (before.status, before.steps, before.forget_at)


@given(run=played(), which=st.integers(0, 40))
@THOROUGH
def test_the_same_message_again_moves_nothing(run: Run, which: int) -> None:
    """As another record at the same moment: it is told as ignored at most. (A timer may find what is sent again
    without delay: that is due at once.)"""
    turn = run.turns[which % len(run.turns)]
    if isinstance(turn.message, m.StartExecution | None):
        return
    again = d.decide(run.definition, turn.decision.state, turn.message, turn.at)
    if isinstance(turn.message, m.TimerFired):
        due = turn.decision.state.due
        assert again.events == [] or (due is not None and due <= turn.at)
        return
    assert again.state._replace(ignored=()) == turn.decision.state._replace(ignored=())
    once_more = d.decide(run.definition, again.state, turn.message, turn.at)
    assert not any(isinstance(event, _TELLS) for event in once_more.events)  # it is recorded, and once
    assert all(isinstance(event, _TELLS) for event in again.events if not isinstance(event, e.UNRECORDED))


@given(run=played(), later=st.integers(0, 10**9))
@THOROUGH
def test_an_early_timer_is_as_good_as_none(run: Run, later: int) -> None:
    """Timers that come early, however many, do not change what the due one does."""
    due = run.state.due
    if due is None:
        return
    timer = m.TimerFired(execution=run.state.id, run=run.state.run)
    state = run.state
    for at in (due - 1 - later, due - 1):
        state = d.decide(run.definition, state, timer, at).state
    assert d.decide(run.definition, state, timer, due) == d.decide(run.definition, run.state, timer, due)


def _walk(run: Run, choices: list[int], failing: set[str]) -> Run:
    """Answer everything in flight, in the order that `choices` gives, at one moment."""
    turn = 0
    while run.in_flight:
        step = run.in_flight[choices[turn % len(choices)] % len(run.in_flight)]
        turn += 1
        if step in failing:
            run.send(answer(run, step, "fatal"))
        else:
            run.send(m.StepCompleted(task_id=run.task(step), output={"of": step}))
    return run


def _sent(run: Run) -> Counter[bytes]:
    """What was sent and told, without the numbers that the order gives."""
    found: Counter[bytes] = Counter()
    for message in run.outgoing:
        value: dict[str, Any] = orjson.loads(message.value)
        for name in ("seq", "cause", "at", "because_of"):
            value.pop(name, None)
        found[orjson.dumps([message.kind, value], option=orjson.OPT_SORT_KEYS)] += 1
    return found


@given(
    definition=dags(on_schedule_to_start=("fail",)),
    one=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    other=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    failing=st.sets(st.sampled_from("abcdef"), max_size=2),
)
@THOROUGH
def test_independent_branches_commute(
    definition: WorkflowDefinition, one: list[int], other: list[int], failing: set[str]
) -> None:
    """In whatever order steps are answered that do not depend on each other: the same state, messages and facts,
    but for their numbers (`because_of` names whichever failed first)."""
    ways = [_walk(Run(definition, value=1), order, failing) for order in (one, other)]
    states = [_unnumbered(run.state) for run in ways]
    assert states[0] == states[1]
    assert ways[0].is_over
    assert _sent(ways[0]) == _sent(ways[1])


def _unnumbered(state: Execution) -> Execution:
    return state._replace(src=0, seq=0, head=b"")


@given(
    run=played(), at=st.integers(0, 2**41), kind=st.sampled_from(("completed", "failed", "started", "heartbeat"))
)
@THOROUGH
def test_the_end_absorbs_whatever_comes(run: Run, at: int, kind: str) -> None:
    """After the end no message moves anything, at whatever time."""
    if not run.is_over:
        run.cancel()
    state = run.state
    names = [step.name for step in run.definition.steps]
    tasks = [str(TaskId(state.id, state.run, name, attempt)) for name in names for attempt in (1, 2, 3)]
    messages: list[Any] = [m.StepCompleted(task_id=task) for task in tasks]
    messages += [answer(run, name, kind, attempt=1) for name in names]
    messages += [m.TimerFired(execution=state.id, run=state.run), m.CancelExecution(execution=state.id, actor="a")]
    for message in messages:
        decision = d.decide(run.definition, state, message, at)
        assert decision.state._replace(ignored=state.ignored) == state
        assert decision.output is None
        assert all(isinstance(event, _TELLS) for event in decision.events)
    assert all(step.status is not StepStatus.READY for step in state.steps)
