"""A workflow's DAG as text."""

from __future__ import annotations

from flowpilot.cli.graph import DEEPEST, MOST, graph
from flowpilot_schemas.definition import StepDefinition, WorkflowDefinition


def workflow(**steps: tuple[str, ...]) -> WorkflowDefinition:
    found = tuple(StepDefinition(name=name, queue="q", depends_on=parents) for name, parents in steps.items())
    return WorkflowDefinition(name="w", version="1", steps=found)


def test_each_step_stands_below_the_last_it_depends_on() -> None:
    drawn = graph(
        workflow(create=(), otp=("create",), mail=("create",), activate=("otp", "mail"), survey=("mail",), alone=())
    )
    assert drawn == [
        "create",
        "├─ otp",
        "└─ mail",
        "   ├─ activate (and otp)",
        "   └─ survey",
        "alone",
    ]


def test_a_branch_goes_on_beside_what_is_below_an_earlier_one() -> None:
    assert graph(workflow(a=(), b=("a",), c=("b",), d=("a",))) == ["a", "├─ b", "│  └─ c", "└─ d"]


def test_what_would_not_be_readable_is_left_to_the_table() -> None:
    chain: dict[str, tuple[str, ...]] = {"s0": ()}
    for n in range(1, DEEPEST + 1):
        chain[f"s{n}"] = (f"s{n - 1}",)
    assert len(graph(workflow(**chain))) == DEEPEST + 1
    chain["deeper"] = (f"s{DEEPEST}",)
    assert graph(workflow(**chain)) == []
    wide: dict[str, tuple[str, ...]] = {f"s{n}": () for n in range(MOST)}
    assert len(graph(workflow(**wide))) == MOST
    assert graph(workflow(**wide, more=())) == []
