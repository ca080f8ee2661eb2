"""What a planted defect is. The defects stand in `protocol`, `rule_sets`, `engine`, `core`, `roles` and `edges`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

Patch = pytest.MonkeyPatch
LAYERS = ("unit", "laws", "storm", "releases", "exhaustive", "simulation", "integration")


@dataclass(frozen=True)
class Mutant:
    """A deliberate defect. `plant` patches production code; `layers`: those that have to find it."""

    name: str
    breaks: str
    """The invariant, by its name in docs/guarantees.md."""
    room: str
    """The room whose code is patched: it chooses the unit and integration tests that are run."""
    layers: tuple[str, ...]
    plant: Callable[[Patch], None]

    @property
    def sentence(self) -> str:
        """What the defect is."""
        return " ".join((self.plant.__doc__ or "").split())


Plant = Callable[[Patch], None]


class Catalogue:
    """Takes defects by decoration: `@planted("S8", "unit", "storm")`."""

    def __init__(self, room: str) -> None:
        self.room = room
        self.mutants: list[Mutant] = []

    def __call__(self, breaks: str, *layers: str) -> Callable[[Plant], Plant]:
        """Register the decorated function under its name."""

        def register(plant: Plant) -> Plant:
            self.mutants.append(Mutant(plant.__name__, breaks, self.room, layers, plant))
            return plant

        return register
