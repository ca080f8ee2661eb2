"""A graph of checks, with the two bounds on the work of applying it: for any value, and for one value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowpilot.core.bounds.checks import (
    FREE_WIDTH,
    MAX_CHAIN,
    MAX_LINEAR,
    MAX_NODES,
    MAX_WIDTH,
    Check,
    TooCostly,
)
from flowpilot.core.bounds.price import Pricing
from flowpilot.core.bounds.width import MANY, width_of

_MAX_LEVELS = 180  # of a value; see `flowpilot.core.inputs.MAX_DEPTH`


class Graph:
    """Some checks; the first is applied to the whole value. Raises `TooCostly` if no value could be checked."""

    def __init__(self, checks: Sequence[Check]) -> None:
        if len(checks) > MAX_NODES:
            raise TooCostly(f"it has {len(checks)} parts; at most {MAX_NODES}")
        self._checks = checks
        _check_chains(checks)
        order, is_recursive = _children_first(checks)
        width, per_char, per_size = (
            width_of(checks, order, is_recursive, own)
            for own in (
                [check.own for check in checks],
                [check.per_char for check in checks],
                [check.per_size for check in checks],
            )
        )
        powers = any(check.power > 1 for check in checks)
        if width is not None and width > MAX_WIDTH:
            raise TooCostly(
                f"it checks one value in {width if width < MANY else 'a billion or more'} ways, because what it "
                f"refers to refers to others more than once; at most {MAX_WIDTH}"
            )
        self.width = width
        """Operations for each part of a value, at most; None: unbounded, it grows with the value's depth."""
        self._is_linear = None not in (width, per_char, per_size) and not powers
        self._per_char = (per_char or 0) + (per_size or 0) * _MAX_LEVELS
        self._parses = any(check.parsed for check in checks)

    @property
    def is_linear(self) -> bool:
        """Whether the work grows with the size of a value only."""
        return self._is_linear

    def covers(self, data: bytes) -> bool:
        """Whether the static bound is enough for the value whose JSON is `data`."""
        if not self._is_linear or self.width is None:
            return False
        size = len(data)
        if (self.width + self._per_char) * size <= MAX_LINEAR:
            return True
        if self._parses:
            return False
        parts = 1 + data.count(b",") + 2 * data.count(b":") + data.count(b"[") + data.count(b"{")
        fits = self.width <= FREE_WIDTH or self.width * parts <= MAX_LINEAR
        return fits and self._per_char * size <= MAX_LINEAR

    def price(self, value: Any) -> int:
        """Operations for `value` at most, every branch tried. Raises `TooCostly` beyond `MAX_OPERATIONS`.

        It takes time in proportion to that at most, however much dearer `value` is.
        """
        return Pricing(self._checks).of(value)


def _check_chains(checks: Sequence[Check]) -> None:
    """Raises `TooCostly` for cycles and long chains among what is applied to the same value."""
    depth: dict[int, int] = {}
    for root in range(len(checks)):
        stack, path = [(root, False)], set()
        while stack:
            number, done = stack.pop()
            applied = (*checks[number].same, *checks[number].one_of)
            if done:
                path.discard(number)
                depth[number] = 1 + max((depth[to] for to in applied), default=0)
                if depth[number] > MAX_CHAIN:
                    raise TooCostly(f"more than {MAX_CHAIN} of its parts refer to one another in a row")
            elif number not in depth:
                path.add(number)
                stack.append((number, True))
                for to in applied:
                    if to in path:
                        raise TooCostly("a part of it refers to itself without going into the value")
                    stack.append((to, False))


def _children_first(checks: Sequence[Check]) -> tuple[list[int], bool]:
    """The nodes, each behind those it leads to as far as that can be; and whether it cannot, for a recursion."""
    order: list[int] = []
    seen: set[int] = set()
    path: set[int] = set()
    is_recursive = False
    stack = [(0, False)]
    while stack:
        number, done = stack.pop()
        if done:
            path.discard(number)
            order.append(number)
        elif number not in seen:
            seen.add(number)
            path.add(number)
            stack.append((number, True))
            for to in checks[number].edges():
                is_recursive = is_recursive or to in path
                stack.append((to, False))
    return order, is_recursive
