"""A workflow's DAG as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flowpilot_schemas.definition import WorkflowDefinition

DEEPEST = 16
MOST = 200


class Place(NamedTuple):
    """Where a step stands in the tree: `order` in the list of steps, what is drawn before its name, what before
    a line below it, and the other steps it depends on."""

    order: int
    branch: str
    under: str
    beside: tuple[str, ...]


def graph(definition: WorkflowDefinition) -> list[str]:
    """The steps as a tree, each below the last step it depends on, with the others beside it.

        create_patient
        ├─ send_otp
        └─ send_email
           └─ activate (and send_otp)

    Empty if it would not be readable: more than `MOST` steps, or deeper than `DEEPEST`.
    """
    steps = definition.steps
    return [
        f"{place.branch}{steps[place.order].name}" + (f" (and {', '.join(place.beside)})" if place.beside else "")
        for place in tree([(step.name, step.depends_on) for step in steps])
    ]


def tree(steps: Sequence[tuple[str, Sequence[str]]]) -> list[Place]:
    """Each step (name, what it depends on) in the order of `graph`'s lines; empty where `graph` is."""
    if len(steps) > MOST:
        return []
    index = {name: order for order, (name, _) in enumerate(steps)}
    below: dict[int | None, list[int]] = {}
    depth: list[int] = []
    for order, (_, depends_on) in enumerate(steps):
        parent = max((index[name] for name in depends_on), default=None)
        depth.append(0 if parent is None else depth[parent] + 1)
        below.setdefault(parent, []).append(order)
    if max(depth, default=0) > DEEPEST:
        return []

    def places(parent: int | None, indent: str) -> Iterator[Place]:
        children = below.get(parent, [])
        for child in children:
            is_last = child == children[-1]
            branch, more = ("", "") if parent is None else ("└─ ", "   ") if is_last else ("├─ ", "│  ")
            others = tuple(name for name in steps[child][1] if index[name] != parent)
            under = indent + more + ("│  " if child in below else "   ")
            yield Place(child, indent + branch, under, others)
            yield from places(child, indent + more)

    return list(places(None, ""))
