"""Of a seed that fails: fewer kinds of faults, fewer and smaller things, as long as it still fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.simulation.plan import KINDS, Changes
from tests.simulation.simulate import Verdict, run


def shrink(verdict: Verdict, say: Callable[[str], None] = lambda line: None, tries: int = 120) -> Verdict:
    """The smallest variant found that violates one of the same invariants. `verdict` has to be a failing one."""
    wanted, best = verdict.invariants, verdict
    kinds = frozenset(verdict.plan.kinds)
    best = _attempt(best, replace(best.changes, only=kinds, without=frozenset()), wanted) or best
    progress = True
    while progress and tries > 0:
        progress = False
        for changes in _smaller(best):
            tries -= 1
            found = _attempt(best, changes, wanted)
            if found is not None:
                best, progress = found, True
                say(f"  still fails: {best.changes.arguments()}")
                break
            if tries <= 0:
                break
    return best


def _attempt(best: Verdict, changes: Changes, wanted: set[str]) -> Verdict | None:
    if changes == best.changes:
        return None
    verdict = run(best.seed, changes)
    return verdict if verdict.invariants & wanted else None


def _smaller(best: Verdict) -> Iterator[Changes]:
    """Variants of what was found last, the largest steps first."""
    changes, plan = best.changes, best.plan
    kinds = [kind for kind in KINDS if kind in plan.kinds]
    for half in (kinds[: len(kinds) // 2], kinds[len(kinds) // 2 :]):
        if len(kinds) > 3:
            yield replace(changes, only=frozenset(half))
    for kind in kinds:
        yield replace(changes, only=frozenset(kinds) - {kind})
    for name, least in (("executions", 1), ("engines", 1), ("workers", 1), ("partitions", 1)):
        value = getattr(plan, name)
        if value > least:
            yield replace(changes, **{name: max(least, value // 2)})
            yield replace(changes, **{name: value - 1})
    if plan.length > 2.0:
        yield replace(changes, length=round(plan.length / 2, 1))
        yield replace(changes, length=round(plan.length * 0.8, 1))
