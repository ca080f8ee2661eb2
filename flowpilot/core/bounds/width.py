"""What a graph of checks does at most for one part of a value, whatever the value: a least fixed point.

A recursion that applies a node once to each part converges at once; one that applies it twice doubles in every
round, and has no such bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from flowpilot.core.bounds.checks import Check

MANY = 10**9
_ROUNDS = 8
_MAX_KEYS = 100  # beyond, keys are not told apart


class _Objects(NamedTuple):
    """What is done for a value in an object, by its key, and for every other key."""

    keys: dict[str, int]
    rest: int

    def most(self) -> int:
        return max(self.rest, max(self.keys.values(), default=0))


_NOTHING = _Objects({}, 0)


def width_of(checks: Sequence[Check], order: Sequence[int], is_recursive: bool, own: Sequence[int]) -> int | None:
    """Operations for one part, if a node costs what `own` says; None: unbounded. `order`: children first, as far
    as recursion lets them be."""
    if not any(own):
        return 0
    widths = _Widths(checks, own)
    for _ in range(_ROUNDS):
        changed = [number for number in order if widths.update(number)]
        if not is_recursive or not changed:
            found = widths.all[0]
            return None if is_recursive and found == MANY else found
    return None


class _Widths:
    def __init__(self, checks: Sequence[Check], own: Sequence[int]) -> None:
        self._checks, self._own = checks, own
        self._here = [0] * len(checks)
        self._arrays = [0] * len(checks)
        self._objects = [_NOTHING] * len(checks)
        self.all = [0] * len(checks)

    def update(self, number: int) -> bool:
        """Compute it again from its edges; whether it is another."""
        check, all_widths = self._checks[number], self.all
        placed = max((all_widths[to] for to in check.prefix), default=0)
        in_array = max(placed, self._sum(check.tail)) + self._sum(check.each)
        for of, plus in ((self._here, self._own[number]), (self._arrays, in_array)):
            plus += sum(of[to] for to in check.same) + max((of[to] for to in check.one_of), default=0)
            of[number] = min(MANY, plus)
        self._objects[number] = objects = self._in_object(check)
        texts = min(MANY, self._here[number] + self._sum(check.parsed))
        width = max(texts, objects.most(), self._arrays[number], self._sum(check.names))
        changed = width != all_widths[number]
        all_widths[number] = min(MANY, width)
        return changed

    def _sum(self, numbers: Iterable[int]) -> int:
        return min(MANY, sum(self.all[to] for to in numbers))

    def _in_object(self, check: Check) -> _Objects:
        every = self._sum(check.every)
        own = _Objects(
            {name: min(MANY, self._sum(one) + every) for name, one in check.keys.items()},
            min(MANY, self._sum(check.rest) + every),
        )
        found = _merged(sum, [own, *(self._objects[to] for to in check.same)])
        if check.one_of:
            found = _merged(sum, [found, _merged(max, [self._objects[to] for to in check.one_of])])
        return found


def _merged(how: Callable[[Iterable[int]], int], some: Sequence[_Objects]) -> _Objects:
    some = [each for each in some if each is not _NOTHING]
    if len(some) < 2:
        return some[0] if some else _NOTHING
    names = {name for each in some for name in each.keys}
    rest = min(MANY, how(each.rest for each in some))
    if len(names) > _MAX_KEYS:
        return _Objects({}, min(MANY, how(each.most() for each in some)))
    return _Objects({n: min(MANY, how(each.keys.get(n, each.rest) for each in some)) for n in names}, rest)
