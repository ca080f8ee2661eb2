"""The laws of the core, over random DAGs and random events: whatever comes, in whatever order."""

from __future__ import annotations

from collections import Counter

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from flowpilot.core import decide as d
from flowpilot.core import events as e
from flowpilot.core.decision import Decision
from flowpilot.core.dispatch import is_not_served
from flowpilot.core.render import render
from flowpilot.core.state import Execution, decode_execution, encode_execution
from flowpilot.core.status import (
    EXECUTION_TRANSITIONS,
    IN_FLIGHT,
    STEP_TRANSITIONS,
    TERMINAL_EXECUTION,
    TERMINAL_STEP,
    ExecutionStatus,
    StepStatus,
)
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import decode_object, parse
from flowpilot_schemas.history import FIELDS, GENESIS, TERMINAL_EVENTS, chain
from flowpilot_schemas.ids import TaskId
from tests.property.run import HOME, Run, Turn
from tests.property.scripts import ANSWERS, SCRIPTS, SIGNS, Command, answer, definitions, play

THOROUGH = settings(max_examples=120, deadline=None)
COMMON = {"v", "type", "execution", "run", "seq", "at", "cause"}
_TELLS = (e.StartDeduplicated, e.KeyConflict, e.CompletionIgnored, e.CancelIgnored)


@st.composite
def played(draw: st.DrawFn, *, faults: bool = True) -> Run:
    """A run after a random script; now and then a defect of ours stops it on the way."""
    run: Run = draw(definitions())
    script: list[Command] = draw(SCRIPTS)
    cut = draw(st.integers(0, 200)) if faults else len(script)
    play(run, script[:cut])
    if cut < len(script):
        run.fault()
        play(run, script[cut:])
    return run


def redo(run: Run, turn: Turn) -> Decision:
    """The decision of a turn, taken once more from its message."""
    if turn is run.turns[0]:
        size = len(run.stored.inputs[run.state.id, run.state.run])
        return d.decide_start(run.definition, turn.message, size, turn.at, turn.offset)
    if turn.message is None:
        return d.fault(turn.before, "a defect")
    if isinstance(turn.message, m.StartExecution):
        return d.decide_again(turn.before, turn.message)
    return d.decide(run.definition, turn.before, turn.message, turn.at)


def moves(run: Run, turn: Turn) -> list[tuple[object, object]]:
    """Every single move of a turn: of the execution and of its steps, as (before, after)."""
    found: list[tuple[object, object]] = []
    state = turn.before
    for event in turn.decision.events:
        after = d.evolve(run.definition, state, event, turn.at)
        if state.status is not after.status:
            found.append((state.status, after.status))
        if state.steps and after.steps:
            found += [
                (one.status, other.status)
                for one, other in zip(state.steps, after.steps, strict=True)
                if one.status is not other.status
            ]
        state = after
    return found


@given(run=played())
@THOROUGH
def test_l1_a_decision_depends_on_its_arguments_alone(run: Run) -> None:
    """L1: the same definition, state, message and time give the same events and state."""
    for turn in run.turns:
        assert redo(run, turn) == turn.decision
        stored = turn._replace(before=decode_execution(encode_execution(turn.before)))
        if turn is not run.turns[0]:
            assert redo(run, stored) == turn.decision


@given(run=played())
@THOROUGH
def test_l2_the_state_is_the_fold_of_the_events(run: Run) -> None:
    """L2: the events of a decision, folded by `evolve` from the state before (for a start: `opened`), give
    the state of the decision."""
    for turn in run.turns:
        state = turn.before
        for event in turn.decision.events:
            state = d.evolve(run.definition, state, event, turn.at)
        assert state == turn.decision.state


@given(run=definitions(), at=st.integers(0, 2**41))
@THOROUGH
def test_l2_a_refusal_folds_too(run: Run, at: int) -> None:
    """L2, for a start that is refused: the event alone makes the refused execution."""
    refused = d.refuse_start(run.start, "why", "because", at, 9)
    [event] = refused.events
    assert d.evolve(run.definition, d.opened(run.start, 9), event, at) == refused.state
    assert refused.state.status in TERMINAL_EXECUTION


@given(run=played())
@THOROUGH
def test_l3_a_step_is_sent_when_its_dependencies_completed_and_once_an_attempt(run: Run) -> None:
    """L3: a step message goes out only if all dependencies are completed; once an attempt, and once more
    for each `not_served` report of its latest dispatch."""
    sent: Counter[tuple[str, int]] = Counter()
    dispatches: Counter[tuple[str, int]] = Counter()
    completed: set[str] = set()
    reported: dict[str, int] = {}
    for turn in run.turns:
        for event in turn.decision.events:
            match event:
                case e.StepCompleted():
                    completed.add(event.step)
                case e.StepRedispatched():
                    dispatches[event.step, event.attempt] += 1
                    assert event.dispatch == 1 + dispatches[event.step, event.attempt]
                    assert reported[event.step] == event.dispatch - 1
                case e.StepNotServed():
                    assert dispatches[event.step, event.attempt] == 0
                case e.RedispatchScheduled():
                    order = run.definition.index[event.step]
                    reported[event.step] = turn.before.steps[order].dispatch
                case e.StepReady():
                    sent[event.step, event.attempt] += 1
                    definition = run.definition.steps[run.definition.index[event.step]]
                    assert set(definition.depends_on) <= completed
                    assert sent[event.step, event.attempt] == 1
    messages = Counter((message["step"], message["attempt"]) for message in run.sent("step"))
    assert messages == sent + dispatches


@given(run=played())
@THOROUGH
def test_l3_a_step_with_all_dependencies_completed_is_not_forgotten(run: Run) -> None:
    """L3, the other way: while an execution runs, no step is pending whose dependencies all completed."""
    for turn in run.turns:
        if turn.after.status is ExecutionStatus.RUNNING:
            for step in turn.after.steps:
                assert step.status is not StepStatus.PENDING or step.waiting > 0


@given(run=played())
@THOROUGH
def test_l4_attempts_count_from_one_without_gaps_up_to_the_policy(run: Run) -> None:
    """L4: a step's attempts are 1, 2, …, at most `max_attempts`; `not_served` keeps the attempt."""
    _attempts_as_the_policy_says(run)


@given(run=definitions(), which=st.integers(0, 5))
@THOROUGH
def test_l4_up_to_the_last_attempt_and_no_further(run: Run, which: int) -> None:
    """L4, where chance seldom comes: a step fails until nothing is tried again."""
    _attempts_as_the_policy_says(play(run, [Command("failed", which, 0, 0), Command("timer_due", 0, 0, 0)] * 6))


def _attempts_as_the_policy_says(run: Run) -> None:
    promised: dict[str, int] = {}
    for turn in run.turns:
        for event in turn.decision.events:
            if isinstance(event, e.StepRetryScheduled):
                assert event.attempt == promised[event.step]
                assert event.next_attempt == event.attempt + 1
                promised[event.step] = event.next_attempt
            if isinstance(event, e.StepReady):
                policy = run.definition.steps[run.definition.index[event.step]].retry
                assert event.attempt == promised.setdefault(event.step, 1)
                assert event.attempt <= policy.max_attempts


@given(run=played())
@THOROUGH
def test_l5_only_the_current_attempt_in_flight_is_applied(run: Run) -> None:
    """L5: an answer to anything else is told as ignored (a heartbeat: not even that) and changes nothing."""
    _only_the_current_attempt(run)


@given(run=definitions(), how=st.integers(0, 8), which=st.integers(0, 5))
@THOROUGH
def test_l5_an_attempt_that_was_followed_by_another_is_not_the_current(run: Run, how: int, which: int) -> None:
    """L5, where chance seldom comes: the step is in flight again, and its earlier attempt answers."""
    again = [Command("failed", which, 0, 0), Command("timer_due", 0, 0, 0), Command("stale", which, how, 0)]
    _only_the_current_attempt(play(run, again * 2))


def _only_the_current_attempt(run: Run) -> None:
    recorded: set[tuple[str, str | None, int]] = set()
    for turn in run.turns:
        if not isinstance(turn.message, d.Answer):
            continue
        task = TaskId.parse(turn.message.task_id)
        assert task is not None
        order = run.definition.index.get(task.step)
        running = turn.before.status is ExecutionStatus.RUNNING
        step = turn.before.steps[order] if order is not None and running else None
        unheard = isinstance(turn.message, m.StepHeartbeat) or is_not_served(turn.message)
        if is_not_served(turn.message) and step is not None and not turn.decision.events:
            assert turn.decision.state == turn.before
        elif (
            step is not None
            and task.run == turn.before.run
            and step.status in IN_FLIGHT
            and task.attempt == step.attempt
        ):
            assert turn.decision.events
            assert not any(isinstance(event, e.CompletionIgnored) for event in turn.decision.events)
        else:
            assert turn.decision.state._replace(ignored=turn.before.ignored) == turn.before
            assert turn.decision.output is None
            reason = turn.decision.ignored
            told = [(event.step, event.reason, event.attempt) for event in turn.decision.events]
            place = (task.step, reason, task.attempt)
            # A foreign attempt may be taken for another one: of those there is one event a step and reason.
            of_step = {each[:2] for each in recorded}
            if unheard or place in recorded:
                assert told == []
            elif (task.step, reason) not in of_step or (step is not None and task.attempt <= step.attempt):
                assert told == [place] or (task.run != turn.before.run and told == [])
            recorded.update(told)


@given(run=played())
@THOROUGH
def test_l6_the_end_is_the_end(run: Run) -> None:
    """L6: exactly one terminal event a run, nothing changes a status after it, nothing is sent any more."""
    ended = [index for index, told in enumerate(run.told) if told in TERMINAL_EVENTS]
    assert len(ended) == (1 if run.is_over else 0)
    if ended:
        tells = {cls.__name__ for cls in _TELLS}
        assert set(run.told[ended[0] + 1 :]) <= tells
    for turn in run.turns:
        if turn.before.status in TERMINAL_EXECUTION:
            assert turn.decision.state._replace(ignored=turn.before.ignored) == turn.before
        for one, other in zip(turn.before.steps, turn.after.steps, strict=False):
            assert (
                one.status not in TERMINAL_STEP
                or one == other
                or one._replace(waiting=0) == other._replace(waiting=0)
            )


@given(run=played(), by=st.integers(1, 10**9), again=st.booleans())
@THOROUGH
def test_l7_a_timer_before_its_time_changes_nothing(run: Run, by: int, again: bool) -> None:
    """L7, safety: before the earliest deadline, or where there is none, a timer changes nothing."""
    due = run.state.due
    timer = m.TimerFired(execution=run.state.id, run=run.state.run + again)
    at = 2**41 if due is None or again else due - by
    assert d.decide(run.definition, run.state, timer, at) == Decision(run.state, [])


@given(run=played())
@THOROUGH
def test_l7_a_timer_at_its_time_removes_what_was_due(run: Run) -> None:
    """L7, progress: after a timer nothing is due at that moment, unless it was only made so by a delay of 0."""
    due = run.state.due
    if due is not None:
        now = max(due, run.now)
        after = d.decide(run.definition, run.state, m.TimerFired(execution=run.state.id, run=run.state.run), now)
        assert after.events
        for step, before in zip(after.state.steps, run.state.steps, strict=False):
            assert step.due is None or step.due > now or step.status is not before.status


@given(
    run=played(),
    habits=st.lists(st.sampled_from((*ANSWERS, "silent", "started", "started then not_served")), min_size=1),
)
@THOROUGH
def test_l7_from_anywhere_every_execution_ends(run: Run, habits: list[str]) -> None:
    """L7, liveness: if every step sent is answered, whatever the answer, and due timers fire, every execution
    ends; a step that nobody answers is ended by its time-outs, unless they are only to be recorded. One that
    a defect of ours stopped ends by a cancel."""
    for turn in range(3_000):
        if run.state.status is ExecutionStatus.INCIDENT:
            run.cancel()
        if run.is_over:
            return
        due = run.state.due
        habit = habits[turn % len(habits)]
        waiting = run.in_flight
        if not waiting or (habit == "silent" and due is not None):
            assert due is not None, "nothing in flight and nothing due: it would stand still for ever"
            run.timer()
        elif habit == "silent":
            run.send(answer(run, waiting[0], "completed"))
        elif habit == "started then not_served":
            run.started(waiting[0])
            run.send(answer(run, waiting[0], "not_served"), after=1)
            run.timer()
        elif habit == "not_served":
            if run.step(waiting[0]).deadline is None:  # nobody gives it up: then somebody serves it in the end
                run.send(answer(run, waiting[0], "completed"))
            else:
                run.send(answer(run, waiting[0], habit), after=1)
                run.timer(after=3_600_000)  # and not every five seconds of a day
        else:
            run.send(answer(run, waiting[0], habit), after=1)
            if habit == "started":  # one that only says so is ended by its time-outs
                run.timer()
    raise AssertionError(f"still {run.state.status} after 3,000 messages")


@given(run=played())
@THOROUGH
def test_l8_state_and_events_survive_their_encoding(run: Run) -> None:
    """L8: decoding inverts encoding, also with an outbox and an earlier run in it; equal states, equal bytes."""
    for turn in run.turns:
        entries = tuple([turn.entry] if turn.entry else [])
        entries += tuple([turn.entry._replace(of=turn.before)] if turn.entry else [])
        state = turn.after._replace(outbox=entries)
        data = encode_execution(state)
        assert decode_execution(data) == state
        assert encode_execution(decode_execution(data)) == data
        for event in turn.decision.events:
            assert e.unpack(e.pack(event)) == event
            assert e.unpack(orjson.loads(orjson.dumps(e.pack(event)))) == event


@given(
    run=definitions(on_schedule_to_start=("fail",)),
    failing=st.sets(st.sampled_from("abcdef")),
    order=st.lists(st.integers(0, 5), min_size=1),
)
@THOROUGH
def test_l9_a_failed_step_skips_its_dependents_and_nothing_else(
    run: Run, failing: set[str], order: list[int]
) -> None:
    """L9: exactly the transitive dependents of a failed step are skipped; independent branches finish."""
    run = Run(run.definition.model_copy(update={"timeout_ms": None}))
    picked = 0
    while run.in_flight:
        step = run.in_flight[order[picked % len(order)] % len(run.in_flight)]
        picked += 1
        run.send(answer(run, step, "fatal" if step in failing else "completed"))
    expected: dict[str, str] = {}
    for definition in run.definition.steps:
        if any(expected[parent] != "completed" for parent in definition.depends_on):
            expected[definition.name] = "skipped"
        else:
            expected[definition.name] = "failed" if definition.name in failing else "completed"
    if "failed" in expected.values():
        assert run.statuses == expected
        assert run.state.status == "failed"
        failed = {name for name, status in expected.items() if status == "failed"}
        assert set(run.history[-1]["record"]["errors"]) == failed
    else:
        assert run.state.status == "completed"


@given(run=played())
@THOROUGH
def test_l10_a_decision_renders_to_the_same_bytes_in_one_chain(run: Run) -> None:
    """L10: an entry rendered again, later and from what was stored, gives the same messages; the history is
    one hash chain from its genesis, seq counts from 1 without gaps."""
    final = decode_execution(encode_execution(run.state))
    for turn in run.turns:
        if turn.entry is not None:
            events = [e.unpack(packed) for packed in orjson.loads(orjson.dumps(turn.entry.events))]
            assert render(run.definition, final, turn.entry, events, run.stored, HOME) == turn.rendered
    head = GENESIS
    for seq, record in enumerate(run.history, start=1):
        assert record["record"]["seq"] == seq
        assert record["prev"] == head
        head = chain(head, record["raw"])
        assert record["hash"] == head
    assert (run.state.head, run.state.seq) == (head, len(run.history))


@given(run=played(), kinds=st.tuples(*[st.sampled_from((*ANSWERS, *SIGNS))] * 2), which=st.integers(0, 9))
@THOROUGH
def test_l11_answers_of_different_steps_commute(run: Run, kinds: tuple[str, str], which: int) -> None:
    """L11: answers to two steps in flight, at one moment, leave the same state in either order."""
    flying = run.in_flight
    if len(flying) < 2 or run.state.status is not ExecutionStatus.RUNNING:
        return
    first, second = flying[which % len(flying)], flying[(which + 1) % len(flying)]
    answers = [answer(run, first, kinds[0]), answer(run, second, kinds[1])]
    ends: list[Execution] = []
    for ordered in (answers, answers[::-1]):
        state = run.state
        for message in ordered:
            state = d.decide(run.definition, state, message, run.now).state
        ends.append(state)
    assert ends[0] == ends[1]


@given(run=played())
@THOROUGH
def test_l12_every_move_is_in_the_table(run: Run) -> None:
    """L12: no event makes a move that the tables do not have; what they have is reached in test_edges."""
    for turn in run.turns:
        for before, after in moves(run, turn):
            if isinstance(before, StepStatus):
                assert after in STEP_TRANSITIONS[before]
            else:
                assert after in EXECUTION_TRANSITIONS[before]  # type: ignore[index]


@given(run=played())
@THOROUGH
def test_l13_the_counters_are_what_they_count(run: Run) -> None:
    """L13: `open` is the number of steps that are not terminal, `waiting` that of dependencies not completed,
    at every moment; only a step in flight or about to be has a deadline."""
    for turn in run.turns:
        state = turn.after
        assert state.open == sum(step.status not in TERMINAL_STEP for step in state.steps)
        by_name = dict(zip([step.name for step in run.definition.steps], state.steps, strict=False))
        for definition, step in zip(run.definition.steps, state.steps, strict=False):
            open_parents = [
                parent for parent in definition.depends_on if by_name[parent].status is not StepStatus.COMPLETED
            ]
            assert step.waiting == len(open_parents)
            assert step.due is None or step.status in (*IN_FLIGHT, StepStatus.RETRYING)
            assert (step.heartbeat_deadline is not None) == (step.status is StepStatus.RUNNING)
        assert (state.forget_at is not None) == (state.status in TERMINAL_EXECUTION)
        assert state.status is ExecutionStatus.RUNNING or state.due is None


@given(run=played())
@THOROUGH
def test_l14_messages_have_the_fields_that_the_schemas_promise(run: Run) -> None:
    """L14: a history record has the common fields, every mandatory field of its type and no unknown one; every
    other message is what its model reads."""
    for record in run.history:
        fields = FIELDS[record["record"]["type"]]
        mandatory = COMMON | {name for name in fields if not name.endswith("?")}
        allowed = COMMON | {name.rstrip("?") for name in fields}
        assert mandatory <= set(record["record"]) <= allowed, record
    models: dict[str, type[m.StepReady | m.ExecutionEnded]] = {"step": m.StepReady, "reply": m.ExecutionEnded}
    for message in run.outgoing:
        value = decode_object(message.value)
        if message.kind in models:
            parse(models[message.kind], value)
        elif message.kind == "control":
            told: type[m.Cancelled | m.Superseded] = (
                m.Cancelled if value["type"] == "execution.cancelled" else m.Superseded
            )
            parse(told, value)


@given(run=played())
@THOROUGH
def test_l15_a_trace_goes_with_every_step_message_and_into_the_first_event(run: Run) -> None:
    """L15: what the start was given goes on as it is; without it there is no header and no field, also in state."""
    trace = run.start.traceparent
    headers = () if trace is None else (("traceparent", trace.encode()),)
    assert {message.headers for message in run.outgoing if message.kind == "step"} <= {headers}
    assert run.history[0]["record"].get("traceparent") == trace
    assert all("traceparent" not in event["record"] for event in run.history[1:])
    assert decode_execution(encode_execution(run.state)).traceparent == trace
    assert (b"traceparent" in encode_execution(run.state)) is (trace is not None)


def test_l14_every_event_that_is_recorded_has_its_fields_declared() -> None:
    """L14, for the types: the recorded events and the declared ones are the same."""
    recorded = {name for name, cls in e.CLASSES.items() if cls not in (*e.UNRECORDED, *e.UNTOLD)}
    assert recorded == set(FIELDS)
