"""A workflow's DAG as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from flowpilot_schemas.definition import WorkflowDefinition

DEEPEST = 16
MOST = 200


def graph(definition: WorkflowDefinition) -> list[str]:
    """The steps as a tree, each below the last step it depends on, with the others beside it.

        create_patient
        ├─ send_otp
        └─ send_email
           └─ activate (and send_otp)

    Empty if it would not be readable: more than `MOST` steps, or deeper than `DEEPEST`.
    """
    steps = definition.steps
    if len(steps) > MOST:
        return []
    below: dict[int | None, list[int]] = {}
    depth: list[int] = []
    for order, step in enumerate(steps):
        parent = max((definition.index[name] for name in step.depends_on), default=None)
        depth.append(0 if parent is None else depth[parent] + 1)
        below.setdefault(parent, []).append(order)
    if max(depth) > DEEPEST:
        return []
    return list(_lines(definition, below, None, ""))


def _lines(
    definition: WorkflowDefinition, below: dict[int | None, list[int]], parent: int | None, indent: str
) -> Iterator[str]:
    children = below.get(parent, [])
    for child in children:
        is_last = child == children[-1]
        branch, under = ("", "") if parent is None else ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        step = definition.steps[child]
        others = [name for name in step.depends_on if definition.index[name] != parent]
        beside = f" (and {', '.join(others)})" if others else ""
        yield f"{indent}{branch}{step.name}{beside}"
        yield from _lines(definition, below, child, indent + under)
