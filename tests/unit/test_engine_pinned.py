"""A deploy changes no execution that runs: it goes on under the definition that its start named."""

from __future__ import annotations

from flowpilot_schemas.definition import StepDefinition, WorkflowDefinition
from tests.unit.engine_world import CHAIN, World, answer_all, drain

NEXT = WorkflowDefinition(
    name="chain",
    version="2",
    steps=(
        StepDefinition(name="a", queue="q"),
        StepDefinition(name="c", queue="q", depends_on=("a",)),
    ),
)


def test_an_execution_keeps_its_definition_though_the_partition_knows_a_newer_one() -> None:
    world = World(definitions=[CHAIN, NEXT])
    owner = world.owner()
    before = world.start(CHAIN, "before")
    drain(owner)
    after = world.start(NEXT, "after")
    answered: set[str] = set()
    drain(owner)
    while answer_all(world, answered):
        drain(owner)
    steps = {
        execution: [t.split("/")[2] for t in world.tasks() if t.startswith(execution)]
        for execution in (before, after)
    }
    assert steps == {before: ["a", "b", "c"], after: ["a", "c"]}
    assert {value["definition"] for value in world.values("flowpilot.steps.q")} == {CHAIN.hash, NEXT.hash}
    for execution in (before, after):
        assert world.history(execution)[-1] == "ExecutionCompleted"
