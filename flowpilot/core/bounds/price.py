"""The price of one value: dynamic programming over pairs of a check and a part of the value."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flowpilot.core.bounds.checks import CHARACTERS, MAX_OPERATIONS, Check, TooCostly

_Pairs = list[tuple[int, Any, bool]]
_SENTENCE = (
    f"checking it could take more than {MAX_OPERATIONS:,} operations, because unions that contain one another are "
    "tried at every level, or a pattern on a long text"
)


class _Repeating(dict[str, Any]):
    """An object in which a name stands more than once: pydantic validates each of its values."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self._pairs = pairs

    def items(self) -> Any:
        return self._pairs


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Repeating(pairs)


@dataclass(slots=True)
class _Frame:
    """A pair whose price is being summed: what is still to be added, and what was."""

    key: tuple[int, int]
    open_pairs: _Pairs
    total: int
    most: int = 0


class Pricing:
    """The price of one value. It must not be changed meanwhile: its parts are known by their identity."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self._checks = checks
        self._prices: dict[tuple[int, int], int] = {}
        self._sizes: dict[int, int] = {}
        self._in_texts: dict[int, Any] = {}  # an identity is one while the object lives
        self._steps = 0

    def of(self, root: Any) -> int:
        """It; raises `TooCostly` as soon as what was found so far is too much."""
        prices = self._prices
        frames = [self._frame(0, root)]
        while True:
            frame = frames[-1]
            if not frame.open_pairs:
                if frame.total + frame.most > MAX_OPERATIONS:
                    raise TooCostly(_SENTENCE)
                prices[frame.key] = frame.total + frame.most
                frames.pop()
                if not frames:
                    return prices[frame.key]
                continue
            number, part, is_one_of = frame.open_pairs[-1]
            price = prices.get((number, id(part)))
            if price is None:
                frames.append(self._frame(number, part))
                continue
            frame.open_pairs.pop()
            if is_one_of:
                frame.most = max(frame.most, price)
            else:
                frame.total += price
                if frame.total > MAX_OPERATIONS:
                    raise TooCostly(_SENTENCE)

    def _frame(self, number: int, value: Any) -> _Frame:
        check = self._checks[number]
        open_pairs = self._applied(check, value)
        self._count(1 + len(open_pairs))
        return _Frame((number, id(value)), open_pairs, self._own(check, value))

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_OPERATIONS:
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
                self._count(len(value) // 8)
            elif isinstance(value, list | tuple):
                open_values.extend(value)
                self._count(len(value) // 8)
        self._sizes[id(root)] = size
        return size

    def _applied(self, check: Check, value: Any) -> _Pairs:
        """What `check` applies to `value` and its parts; True: one of these only."""
        found: _Pairs = [(to, value, True) for to in check.one_of]
        found += [(to, value, False) for to in check.same]
        if isinstance(value, dict):
            keys, rest, every = check.keys, check.rest, check.every
            if keys or rest or every or check.names:
                for name, part in value.items():
                    found += [(to, part, False) for to in keys.get(name, rest)]
                    found += [(to, part, False) for to in every]
                    found += [(to, name, False) for to in check.names]
        elif isinstance(value, list | tuple):
            prefix = check.prefix
            if prefix or check.tail or check.each:
                for place, part in enumerate(value):
                    found += [(to, part, False) for to in check.each]
                    if place < len(prefix):
                        found.append((prefix[place], part, False))
                    else:
                        found += [(to, part, False) for to in check.tail]
        elif check.parsed and isinstance(value, str):
            found += [(to, self._parsed(value), False) for to in check.parsed]
        return found

    def _parsed(self, text: str) -> Any:
        if id(text) not in self._in_texts:
            try:
                self._in_texts[id(text)] = json.loads(text, object_pairs_hook=_object)
            except (ValueError, RecursionError):
                self._in_texts[id(text)] = None
        return self._in_texts[id(text)]
