"""The price of one value: dynamic programming over pairs of a check and a part of the value."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from flowpilot.core.bounds.checks import CHARACTERS, MAX_OPERATIONS, Check, TooCostly

_Pairs = list[tuple[int, Any]]
_SENTENCE = (
    f"checking it could take more than {MAX_OPERATIONS:,} operations, because unions that contain one another are "
    "tried at every level, or a pattern on a long text"
)


class Pricing:
    """The price of one value. It must not be changed meanwhile: its parts are known by their identity."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self._checks = checks
        self._prices: dict[tuple[int, int], int] = {}
        self._sizes: dict[int, int] = {}
        self._in_texts: dict[int, Any] = {}  # an identity is one while the object lives
        self._steps = 0

    def of(self, root: Any) -> int:
        prices = self._prices
        open_pairs: list[tuple[int, Any, tuple[_Pairs, _Pairs] | None]] = [(0, root, None)]
        while open_pairs:
            number, value, pairs = open_pairs.pop()
            key = (number, id(value))
            if pairs is None:
                if key in prices:
                    continue
                pairs = self._applied(self._checks[number], value)
                self._count(1 + len(pairs[0]) + len(pairs[1]))
                open_pairs.append((number, value, pairs))
                for some in pairs:
                    open_pairs.extend((to, part, None) for to, part in some if (to, id(part)) not in prices)
                continue
            every, one_of = pairs
            total = self._own(self._checks[number], value)
            total += sum(prices[to, id(part)] for to, part in every)
            total += max((prices[to, id(part)] for to, part in one_of), default=0)
            if total > MAX_OPERATIONS:
                raise TooCostly(_SENTENCE)
            prices[key] = total
        return prices[0, id(root)]

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > 2 * MAX_OPERATIONS:
            raise TooCostly(_SENTENCE)

    def _own(self, check: Check, value: Any) -> int:
        characters = check.per_size * self._size(value) if check.per_size else 0
        if isinstance(value, str):
            length = len(value) if check.longest is None else min(len(value), check.longest)
            characters += check.per_char * length
            if check.power:
                characters += length**check.power
        return check.own + characters // CHARACTERS

    def _size(self, root: Any) -> int:
        """Characters and parts of `root`, at most what is too many anyway."""
        if (known := self._sizes.get(id(root))) is not None:
            return known
        size, open_values = 0, [root]
        while open_values and size <= CHARACTERS * MAX_OPERATIONS:
            value = open_values.pop()
            size += 1
            if isinstance(value, str):
                size += len(value)
            elif isinstance(value, dict):
                size += sum(len(name) for name in value)
                open_values.extend(value.values())
                self._count(len(value))
            elif isinstance(value, list | tuple):
                open_values.extend(value)
                self._count(len(value))
        self._sizes[id(root)] = size
        return size

    def _applied(self, check: Check, value: Any) -> tuple[_Pairs, _Pairs]:
        """What `check` applies to `value` and its parts: all of the first, and one of the second."""
        every: _Pairs = [(to, value) for to in check.same]
        if isinstance(value, dict):
            keys, rest, others = check.keys, check.rest, check.every
            if keys or rest or others or check.names:
                for name, part in value.items():
                    every += [(to, part) for to in keys.get(name, rest)]
                    every += [(to, part) for to in others]
                    every += [(to, name) for to in check.names]
        elif isinstance(value, list | tuple):
            if check.prefix or check.tail or check.each:
                prefix = check.prefix
                for place, part in enumerate(value):
                    every += [(to, part) for to in check.each]
                    every += [(prefix[place], part)] if place < len(prefix) else [(to, part) for to in check.tail]
        elif check.parsed and isinstance(value, str):
            every += [(to, self._parsed(value)) for to in check.parsed]
        return every, [(to, value) for to in check.one_of]

    def _parsed(self, text: str) -> Any:
        if id(text) not in self._in_texts:
            try:
                self._in_texts[id(text)] = json.loads(text)
            except (ValueError, RecursionError):
                self._in_texts[id(text)] = None
        return self._in_texts[id(text)]
