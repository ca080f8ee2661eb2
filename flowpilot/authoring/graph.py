"""Order and cycles of steps, by name."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping


def topological(parents: Mapping[str, Iterable[str]]) -> list[str]:
    """The names, parents first; among those that could be next, the one that `parents` has first.

    There is no cycle.
    """
    names = list(parents)
    position = {name: place for place, name in enumerate(names)}
    missing = {name: set(found) for name, found in parents.items()}
    dependents: dict[str, list[str]] = {name: [] for name in names}
    for name, found in missing.items():
        for parent in found:
            dependents[parent].append(name)
    ready = [position[name] for name, left in missing.items() if not left]
    heapq.heapify(ready)
    ordered = []
    while ready:
        name = names[heapq.heappop(ready)]
        ordered.append(name)
        for dependent in dependents[name]:
            missing[dependent].discard(name)
            if not missing[dependent]:
                heapq.heappush(ready, position[dependent])
    return ordered


def find_cycle(start: str, parents: Callable[[str], Iterable[str]]) -> list[str] | None:
    """A way from `start` over parents back to `start`, both ends named; None if there is none."""
    path, seen = [start], set()
    branches = [iter(parents(start))]
    while branches:
        parent = next(branches[-1], None)
        if parent is None:
            branches.pop()
            path.pop()
        elif parent == start:
            return [*path, parent]
        elif parent not in seen:
            seen.add(parent)
            path.append(parent)
            branches.append(iter(parents(parent)))
    return None
