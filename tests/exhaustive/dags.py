"""All DAGs of a few steps, each shape once, and the workflows that are explored."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, permutations
from typing import NamedTuple

from flowpilot_schemas.definition import RetryPolicy, StepDefinition, WorkflowDefinition

Edges = frozenset[tuple[int, int]]

# How many unlabelled DAGs of n nodes there are (OEIS A003087): what is enumerated must be all of them.
KNOWN = {1: 1, 2: 2, 3: 6, 4: 31}

ATTEMPTS = 2
HEARTBEAT_MS = 1_000
START_TO_CLOSE_MS = 2_000
SCHEDULE_TO_START_MS = 3_000
TIMEOUT_MS = 5_000
# So short that the jitter, which is another for every step, is rounded away: steps stay interchangeable.
RETRY_MS = 2
WINDOW_MS = 10_000


class Subject(NamedTuple):
    """A workflow to be explored; `symmetries` are the orders of its steps that leave its shape as it is."""

    name: str
    shape: tuple[int, Edges]
    definition: WorkflowDefinition
    symmetries: tuple[tuple[int, ...], ...]


def dags(steps: int) -> list[Edges]:
    """Every DAG of `steps` nodes up to isomorphism, edges (parent, child) with parent < child."""
    pairs = list(combinations(range(steps), 2))
    orders = list(permutations(range(steps)))
    found: dict[Edges, Edges] = {}
    for number in range(len(pairs) + 1):
        for chosen in combinations(pairs, number):
            edges = frozenset(chosen)
            images = [_image(edges, order) for order in orders]
            found.setdefault(min(images, key=sorted), edges)
    return list(found.values())


def symmetries(steps: int, edges: Edges) -> tuple[tuple[int, ...], ...]:
    """The automorphisms, each as the new place of every step."""
    return tuple(order for order in permutations(range(steps)) if _image(edges, order) == edges)


def _image(edges: Edges, order: tuple[int, ...]) -> Edges:
    return frozenset([(order[parent], order[child]) for parent, child in edges])


def subjects(most_steps: int) -> Iterator[Subject]:
    """A workflow for every DAG of up to `most_steps` steps; the small ones with each `on_schedule_to_start`."""
    shapes = [(steps, edges) for steps in range(1, most_steps + 1) for edges in dags(steps)]
    for steps, edges in shapes:
        yield _subject(steps, edges, "retry")
    for steps, edges in shapes:
        if steps <= 2:
            yield _subject(steps, edges, "fail")
            yield _subject(steps, edges, "record")


def _subject(steps: int, edges: Edges, late: str) -> Subject:
    names = "abcd"[:steps]
    parents = [
        tuple(names[parent] for parent in range(steps) if (parent, child) in edges) for child in range(steps)
    ]
    # Where two are waited for, it is for the order alone, or for what both gave.
    takes = [above if len(above) == 1 or steps == 4 else () for above in parents]
    definition = WorkflowDefinition(
        name="explored",
        version="1",
        timeout_ms=TIMEOUT_MS,
        dedupe_window_ms=WINDOW_MS,
        retry_window_ms=WINDOW_MS,
        steps=tuple(
            StepDefinition.model_validate(
                {
                    "name": name,
                    "queue": "q",
                    "depends_on": above,
                    "takes": taken,
                    "takes_input": not above,
                    "retry": RetryPolicy(max_attempts=ATTEMPTS, initial_ms=RETRY_MS),
                    "schedule_to_start_ms": SCHEDULE_TO_START_MS,
                    "on_schedule_to_start": late,
                    "start_to_close_ms": START_TO_CLOSE_MS,
                    "heartbeat_ms": HEARTBEAT_MS,
                }
            )
            for name, above, taken in zip(names, parents, takes, strict=True)
        ),
    )
    shape = " ".join(f"{names[parent]}→{names[child]}" for parent, child in sorted(edges)) or "no edges"
    name = f"{steps} step{'s' * (steps > 1)}, {shape}, on_schedule_to_start={late}"
    return Subject(name, (steps, edges), definition, symmetries(steps, edges))
