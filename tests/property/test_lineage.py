"""The laws of retries: what a root decides, over random requests, ends and forgetting."""

from __future__ import annotations

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from flowpilot.core import decide as d
from flowpilot.core import events as e
from flowpilot.core import lineage, refusals
from flowpilot.core.state import Execution, decode_execution, encode_execution
from flowpilot.core.status import TERMINAL_EXECUTION, StepStatus
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import parse
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.ids import retry_id
from tests.property.run import EXECUTION, T0, Run
from tests.property.scripts import SCRIPTS, Command, dags, definitions, play

THOROUGH = settings(max_examples=120, deadline=None)
ENDS = ("completed", "failed", "cancelled", "refused")

REQUESTS = st.builds(
    m.RetryExecution,
    execution=st.integers(0, 3).map(lambda number: retry_id(EXECUTION, number)),
    request=st.sampled_from("abcdefgh"),
    actor=st.just("user:ann"),
    from_start=st.booleans(),
    workflow=st.sampled_from((None, "flow")),
    version=st.just("2"),
    definition=st.sampled_from((None, "sha256:x")),
    input=st.sampled_from((None, m.GivenInput(value=1))),
)
ENDED = st.builds(
    m.RetryEnded,
    execution=st.just(EXECUTION),
    retry=st.integers(1, 3).map(lambda number: retry_id(EXECUTION, number)),
    run=st.integers(100, 200),
    request=st.sampled_from("abcdefgh"),
    status=st.sampled_from(ENDS),
    until=st.integers(T0, T0 + 10**6),
)
MESSAGES = st.lists(REQUESTS | ENDED | st.just("end it") | st.just("forget"), max_size=30)


def told(root: Execution, message: object, at: int) -> list[e.CoreEvent]:
    """What the root decides on one message, as the fold asks it."""
    if isinstance(message, m.RetryExecution):
        if not (refusals.is_known(root, message) or (refusals.can_begin_anew(message) and root.retries)):
            return []
        return lineage.decide_retry(root, message, at, m.RULES)
    running = next((retry for retry in root.retries if retry.is_open), None)
    if message == "end it" and running is not None:
        message = m.RetryEnded(
            execution=root.id,
            retry=retry_id(root.id, running.number),
            run=150,
            request=running.request,
            status=ENDS[running.number % 4],  # type: ignore[arg-type]
            until=at,
        )
    if isinstance(message, m.RetryEnded):
        if lineage.is_marker(root):
            return []
        return lineage.decide_ended(root, message)
    if message == "forget" and root.forget_at is not None and root.retries:
        return [lineage.decide_forget(root, at)]
    return []


@st.composite
def roots(draw: st.DrawFn) -> tuple[Execution, list[tuple[Execution, list[e.CoreEvent]]]]:
    """An execution after a random script, and what it then decided on random messages, state by state."""
    run: Run = draw(definitions())
    script: list[Command] = draw(SCRIPTS)
    root = play(run, script).state
    turns = []
    for number, message in enumerate(draw(MESSAGES)):
        events = told(root, message, T0 + number)
        assert events == told(decode_execution(encode_execution(root)), message, T0 + number)
        turns.append((root, events))
        root = lineage.decision(root, events).state
    return root, turns


@given(found=roots())
@THOROUGH
def test_a_root_decides_by_its_state_and_survives_its_encoding(
    found: tuple[Execution, list[tuple[Execution, list[e.CoreEvent]]]],
) -> None:
    root, turns = found
    assert decode_execution(encode_execution(root)) == root
    for before, events in turns:
        state = before
        for event in events:
            assert e.unpack(orjson.loads(orjson.dumps(e.pack(event)))) == event
            state = d.evolve(None, state, event, T0)  # type: ignore[arg-type]
        assert state == lineage.decision(before, events).state


@given(found=roots())
@THOROUGH
def test_one_retry_runs_at_a_time_and_no_number_or_request_comes_twice(
    found: tuple[Execution, list[tuple[Execution, list[e.CoreEvent]]]],
) -> None:
    root, turns = found
    numbers: list[int] = []
    for state in (*(before for before, _ in turns), root):
        open_ones = [retry for retry in state.retries if retry.is_open]
        assert len(open_ones) <= 1
        requests = [retry.request for retry in state.retries]
        assert len(requests) == len(set(requests))
        # Whoever waits for another's end looks after it some day.
        assert not (open_ones and state.forget_at is None)
        if state.retries and not open_ones:
            assert state.forget_at is not None
            assert state.forget_at >= max(retry.until for retry in state.retries)
    for before, events in turns:
        for event in events:
            if isinstance(event, e.FamilyForgotten):
                numbers.clear()
                assert all(run is not None for _, run in event.retries)
            # Results are kept while somebody may refer to them.
            assert not (isinstance(event, e.FamilyForgotten) and any(retry.is_open for retry in before.retries))
            if isinstance(event, e.RetryBegun):
                assert before.status in TERMINAL_EXECUTION
                assert event.retry[0] > max(numbers, default=0)
                numbers.append(event.retry[0])


@given(found=roots())
@THOROUGH
def test_the_end_stays_the_end_and_what_is_sent_can_be_read(
    found: tuple[Execution, list[tuple[Execution, list[e.CoreEvent]]]],
) -> None:
    for before, events in found[1]:
        after = lineage.decision(before, events).state
        assert after[:7] == before[:7]  # whatever names the run, and its status
        assert (after.seq, after.head, after.steps) == (
            before.seq,
            before.head,
            () if after.forgotten else before.steps,
        )
        for event in events:
            if isinstance(event, e.RetryBegun):
                start = parse(m.StartExecution, orjson.loads(orjson.dumps(event.start)))
                assert start.retry is not None
                places = [*start.retry.shares, *([start.retry.input_of] if start.retry.input_of else [])]
                held = {(retry_id(before.id, retry.number), retry.run) for retry in before.retries}
                assert set(places) <= held | {(before.id, before.run)}
                assert not (start.retry.from_start and start.retry.shares)


@given(definition=dags(), done=st.sets(st.integers(0, 5)))
@THOROUGH
def test_what_was_taken_over_is_never_sent_and_what_waits_for_it_is(
    definition: WorkflowDefinition, done: set[int]
) -> None:
    closed: list[int] = []
    for order, step in enumerate(definition.steps):
        if order in done and all(definition.index[parent] in closed for parent in step.depends_on):
            closed.append(order)
    retry = m.RetryOf(execution=EXECUTION, run=1, request="r", actor="a", shares=[(EXECUTION, 1)])
    start = m.StartExecution(
        execution=f"{EXECUTION}.1",
        workflow=definition.name,
        version=definition.version,
        definition=definition.hash,
        retry=retry,
    )
    taken = [d.Taken(order, 3, 0) for order in closed]
    decision = d.decide_start(definition, start, 2, T0, 9, taken)
    state = d.opened(start, 9)
    for event in decision.events:
        state = d.evolve(definition, state, event, T0)
    assert state == decision.state
    if state.steps:
        assert {o for o, s in enumerate(state.steps) if s.status is StepStatus.COMPLETED} == set(closed)
        for step, known in zip(state.steps, definition.steps, strict=True):
            open_parents = [p for p in known.depends_on if definition.index[p] not in closed]
            assert step.waiting == len(open_parents)
            assert open_parents or step.status is not StepStatus.PENDING
        assert state.open == sum(step.status in (StepStatus.PENDING, StepStatus.READY) for step in state.steps)
    else:
        assert len(closed) == len(definition.steps)
