"""L12, the other way: every edge of the tables is taken by some run, and the document names all of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from flowpilot.core import decide as d
from flowpilot.core import events as e
from flowpilot.core.decision import Decision
from flowpilot.core.events import CLASSES
from flowpilot.core.state import Execution, StepState, encode_execution
from flowpilot.core.status import (
    EXECUTION_TRANSITIONS,
    STEP_TRANSITIONS,
    TERMINAL_EXECUTION,
    TERMINAL_STEP,
    ExecutionStatus,
    IllegalTransition,
    StepStatus,
    check_execution,
    check_step,
)
from flowpilot_schemas.limits import Limits
from tests.property.run import Run, chain_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "state-machine.md"
Edge = tuple[str, str]
Named = tuple[str, str, str]  # before, after, the event that moves

TRIES = {"retry": {"max_attempts": 3, "initial_ms": 0}}


def step_edges(act: Callable[[Run], object], limits: Limits | None = None) -> set[Named]:
    """The moves of steps, each with its event, of a run of a → b on which `act` was called."""
    run = Run(chain_of("a", "b", **TRIES), limits=limits)
    act(run)
    found = set()
    for turn in run.turns:
        state = turn.before
        for event in turn.decision.events:
            after = d.evolve(run.definition, state, event, turn.at)
            steps = after.steps or tuple([step._replace(status=StepStatus.COMPLETED) for step in state.steps])
            for one, other in zip(state.steps or [StepState()] * len(steps), steps, strict=True):
                if one.status is not other.status:
                    found.add((str(one.status), str(other.status), type(event).__name__))
            state = after
    return found


def _to_retrying(run: Run) -> None:
    run.fail("a")


def _to_ready_again(run: Run) -> None:
    run.fail("a")
    run.timer()


def _to_running(run: Run) -> None:
    run.started("a")


def _then(first: Callable[[Run], None], second: Callable[[Run], object]) -> Callable[[Run], object]:
    def both(run: Run) -> None:
        first(run)
        second(run)

    return both


STEP_SCENARIOS: dict[Named, Callable[[Run], object]] = {
    ("pending", "ready", "StepReady"): lambda run: run.complete("a"),
    ("pending", "failed", "StepFailed"): lambda run: run.complete("a", "too much for b"),
    ("pending", "skipped", "StepSkipped"): lambda run: run.fail("a", retryable=False),
    ("pending", "cancelled", "StepCancelled"): lambda run: run.cancel(),
    ("ready", "running", "StepStarted"): _to_running,
    ("ready", "completed", "StepCompleted"): lambda run: run.complete("a"),
    ("ready", "failed", "StepFailed"): lambda run: run.fail("a", retryable=False),
    ("ready", "retrying", "StepRetryScheduled"): _to_retrying,
    ("ready", "cancelled", "StepCancelled"): lambda run: run.cancel(),
    ("running", "completed", "StepCompleted"): _then(_to_running, lambda run: run.complete("a")),
    ("running", "failed", "StepFailed"): _then(_to_running, lambda run: run.fail("a", retryable=False)),
    ("running", "retrying", "StepRetryScheduled"): _then(_to_running, lambda run: run.timer()),
    ("running", "cancelled", "StepCancelled"): _then(_to_running, lambda run: run.cancel()),
    ("retrying", "ready", "StepReady"): _to_ready_again,
    ("retrying", "cancelled", "StepCancelled"): _then(_to_retrying, lambda run: run.cancel()),
}


@pytest.mark.parametrize("edge", STEP_SCENARIOS, ids="-".join)
def test_a_step_takes_this_edge(edge: Named) -> None:
    limits = Limits(step_inputs=8) if edge[:2] == ("pending", "failed") else None
    assert edge in step_edges(STEP_SCENARIOS[edge], limits)


def test_every_edge_of_a_step_has_a_scenario() -> None:
    table = {(str(before), str(after)) for before, onward in STEP_TRANSITIONS.items() for after in onward}
    assert table == {edge[:2] for edge in STEP_SCENARIOS}


def _started() -> Run:
    return Run(chain_of("a", **TRIES))


def _refused() -> tuple[Execution, Decision]:
    run = _started()
    return d.opened(run.start, 9), d.refuse_start(run.start, "why", "because", run.now, 9)


def execution_edges() -> set[Named]:
    """Every move of an execution, each with its event, of a run for each way to end."""
    found = set()
    turns: list[tuple[Execution, Decision]] = [_refused()]
    ways: list[Callable[[Run], object]] = [
        lambda run: run.complete("a"),
        lambda run: run.fail("a", retryable=False),
        lambda run: run.cancel(),
        lambda run: (run.fault(), run.cancel()),
    ]
    for way in ways:
        run = _started()
        way(run)
        turns += [(turn.before, turn.decision) for turn in run.turns]
    for state, decision in turns:
        for event in decision.events:
            after = d.evolve(_started().definition, state, event, 0)
            if state.status is not after.status:
                found.add((str(state.status), str(after.status), type(event).__name__))
            state = after
    return found


def test_every_edge_of_an_execution_is_taken() -> None:
    table = {(str(before), str(after)) for before, onward in EXECUTION_TRANSITIONS.items() for after in onward}
    assert {edge[:2] for edge in execution_edges()} == table


def test_a_move_that_the_tables_do_not_have_names_both_ends() -> None:
    for one in StepStatus:
        for other in StepStatus:
            if other in STEP_TRANSITIONS[one]:
                assert check_step(one, other) is other
            else:
                with pytest.raises(IllegalTransition, match=f"from {one} to {other}"):
                    check_step(one, other)
    with pytest.raises(IllegalTransition, match="ExecutionStatus: no move from completed to running"):
        check_execution(ExecutionStatus.COMPLETED, ExecutionStatus.RUNNING)
    run = _started()
    with pytest.raises(IllegalTransition):
        d.evolve(run.definition, run.state, e.StepSkipped("a", "b"), 0)


def test_terminal_is_what_has_no_way_on() -> None:
    assert {str(status) for status in TERMINAL_STEP} == {"completed", "failed", "skipped", "cancelled"}
    assert {str(status) for status in TERMINAL_EXECUTION} == {"completed", "failed", "cancelled"}


def test_the_codes_of_statuses_in_the_state_never_change() -> None:
    # They stand in the changelog: a status is added at the end, none is moved or removed.
    codes = ["pending", "ready", "running", "retrying", "completed", "failed", "skipped", "cancelled"]
    run = _started()
    for code, status in enumerate(codes):
        state = run.state._replace(steps=(StepState(StepStatus(status)),))
        assert f'"steps":[[{code}]]'.encode() in encode_execution(state)


# The document: its edges stand in tables whose rows begin with | `before` | `after` | `Event` |

_ROW = re.compile(r"^\| `(\w+)` \| `(\w+)` \| `(\w+)` \|", re.MULTILINE)
_ARROW = re.compile(r"^ +(\w+) --> (\w+): (\w+)", re.MULTILINE)


def _section(title: str) -> str:
    text = DOCUMENT.read_text()
    return text[text.index(f"## {title}") :].split("\n## ")[0]


@pytest.mark.parametrize(
    ("title", "expected"), [("A task execution", set(STEP_SCENARIOS)), ("An execution", execution_edges())]
)
def test_the_document_names_every_edge_and_no_other(title: str, expected: set[Named]) -> None:
    section = _section(title)
    rows, arrows = _ROW.findall(section), _ARROW.findall(section)
    assert len(rows) == len(set(rows))
    assert set(rows) == expected
    assert set(arrows) == expected


def test_the_document_names_every_reason_for_ignoring_and_every_event() -> None:
    text = DOCUMENT.read_text()
    for reason in ("other_run", "execution_over", "incident", "unknown_step", "stale_attempt", "unknown_attempt"):
        assert f"| `{reason}` |" in text
    assert "| `not_in_flight` |" in text
    missing = [name for name in CLASSES if f"`{name}`" not in text]
    assert missing == []
