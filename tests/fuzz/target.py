"""What a target is, and what counts as a finding."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

from tests.fuzz.mutate import Mutator
from tests.fuzz.seeds import words

SECONDS, MIB = 1.0, 256


class Finding(AssertionError):
    """The decoder answered, but not as it has to."""


def require(holds: bool, what: object) -> None:
    """Raises `Finding`."""
    if not holds:
        raise Finding(what)


@dataclass(frozen=True)
class Target:
    """A decoder. `run` takes any bytes (`frame` says which records they are) and raises nothing, whatever they are.

    `seeds`: inputs that are good, or almost. `words`: text that means something to it, beside that of all.
    """

    name: str
    what: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[str, ...] = ()

    def mutator(self) -> Mutator:
        """Makes further inputs of one."""
        return Mutator([*words(), *self.words * 4], self.seeds)

    def try_one(self, data: bytes) -> None:
        """Run one input; what it raises is a finding, and so is one that takes too long or too much."""
        began, before = time.process_time(), _peak_mib()
        self.run(data)
        took, grown = time.process_time() - began, _peak_mib() - before
        require(took <= SECONDS, f"it took {took:.2f} s of CPU for {len(data)} bytes")
        require(grown <= MIB, f"it took {grown} MiB for {len(data)} bytes")

    def inputs(self, count: int, chance: Random) -> list[bytes]:
        """Some changed seeds, the same for the same `chance`."""
        mutate = self.mutator()
        return [mutate(chance.choice(self.seeds), chance) for _ in range(count)]


def _peak_mib() -> int:
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
