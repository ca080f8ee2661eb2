"""Which steps a worker runs: those of its own definitions, and of older ones whose contract is the same.

A worker serves definition W, and a step message names definition D. If D was registered before W, an author of W
could know D, and keeps its running executions alive by keeping the contract of a step. The other way round would
run old code in new executions: a step of a D that was registered after W is never run.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Registered(NamedTuple):
    """A step as a definition has it. `position`: that of the definition's latest registration, None if unknown."""

    definition: str
    position: int | None
    contract: str | None


class Verdict(Enum):
    """Whether a worker runs a step; if not, why not, as the end of "the worker does not run it: …"."""

    SAME = "it has this definition"
    EQUAL = "its newer definition has the step with an equal contract"
    UNKNOWN = "the order in which the definitions were registered is not known to it"
    NEWER = "the definition was registered after the worker's"
    CONTRACT = "the worker's version of the step takes or returns something else"

    @property
    def runs(self) -> bool:
        """Whether it does."""
        return self in (Verdict.SAME, Verdict.EQUAL)


def judge(served: Registered, wanted: Registered) -> Verdict:
    """Whether a worker that has a step as `served` runs it as it is `wanted`."""
    if served.definition == wanted.definition:
        return Verdict.SAME
    if served.position is None or wanted.position is None:
        return Verdict.UNKNOWN
    if wanted.position >= served.position:
        return Verdict.NEWER
    if wanted.contract is None or wanted.contract != served.contract:
        return Verdict.CONTRACT
    return Verdict.EQUAL
