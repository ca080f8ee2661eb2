"""A changed input: bytes, JSON values and whole records are moved, so that most of what comes out is still read.

Everything follows from `chance`; the fuzzer uses it beside its own mutations, `make test` instead of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.fuzz.frame import BETWEEN_PARTS, BETWEEN_RECORDS, NO_VALUE

_NUMBERS = (0, -1, 1, 2, 255, 2**31 - 1, 2**31, 2**53, 2**62, 2**62 + 1, 2**63 - 1, 2**63, -(2**63), 10**30)
_DOUBLES = (0.5, -0.0, 1e300, 1e-300, float("inf"), float("nan"))
_TEXTS = ("", "x", "\0", "\ud800", "é" * 40, "a/b/c/1", "x" * 1_001, "9" * 40, "2026-01-31T00:00:00.000Z", "…")
_DEPTHS = (3, 90, 181, 400)
_PLACES = 400  # of a large value only the first so many are looked at: a mutation has to be cheap


class Mutator:
    """`words`: text that means something to the decoder: names of fields, types, ids. `others`: inputs to take
    parts from."""

    def __init__(self, words: Sequence[str], others: Sequence[bytes], longest: int = 64 * 1024) -> None:
        self._words, self._others, self._longest = list(words) or ["v"], list(others) or [b"{}"], longest

    def __call__(self, data: bytes, chance: Random, changes: int | None = None) -> bytes:
        """`data` after so many changes (None: one to four), at most `longest` bytes of it."""
        for _ in range(changes or chance.choice((1, 1, 2, 4))):
            kind = chance.random()
            if kind < 0.6:
                data = self._in_a_part(data, chance, self._json)
            elif kind < 0.8:
                data = self._in_a_part(data, chance, self._bytes)
            else:
                data = self._records(data, chance)
        return data[: self._longest]

    # -- records --------------------------------------------------------------------------------------------

    def _records(self, data: bytes, chance: Random) -> bytes:
        records = data.split(BETWEEN_RECORDS)[:64]
        place = chance.randrange(len(records))
        match chance.randrange(6):
            case 0 if len(records) > 1:
                del records[place]
            case 1:
                records.insert(chance.randrange(len(records) + 1), records[place])
            case 2:
                other = chance.randrange(len(records))
                records[place], records[other] = records[other], records[place]
            case 3:
                parts = records[place].split(BETWEEN_PARTS)
                parts.insert(chance.randrange(len(parts) + 1), self._word(chance).encode(errors="replace"))
                records[place] = BETWEEN_PARTS.join(parts)
            case 4:
                records[place] = NO_VALUE + BETWEEN_PARTS + records[place].partition(BETWEEN_PARTS)[2]
            case _:
                taken = chance.choice(self._others).split(BETWEEN_RECORDS)
                records.insert(place, chance.choice(taken))
        return BETWEEN_RECORDS.join(records)

    def _in_a_part(self, data: bytes, chance: Random, change: Callable[[bytes, Random], bytes]) -> bytes:
        records = data.split(BETWEEN_RECORDS)
        place = chance.randrange(len(records))
        parts = records[place].split(BETWEEN_PARTS)
        part = 0 if chance.random() < 0.8 else chance.randrange(len(parts))
        parts[part] = change(parts[part], chance)
        records[place] = BETWEEN_PARTS.join(parts)
        return BETWEEN_RECORDS.join(records)

    # -- bytes ----------------------------------------------------------------------------------------------

    def _bytes(self, data: bytes, chance: Random) -> bytes:
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((1, 1, 2, 8, 64)))
        match chance.randrange(5):
            case 0:
                return data[:start] + data[end:]
            case 1:
                return data[:start] + data[start:end] * chance.choice((2, 3, 200)) + data[end:]
            case 2:
                return data[:start] + bytes([chance.randrange(256)]) + data[start + 1 :]
            case 3:
                return data[:start] + self._word(chance).encode(errors="replace") + data[end:]
            case _:
                other = chance.choice(self._others)
                cut = chance.randrange(len(other) + 1)
                return data[:start] + other[cut : cut + 100]

    # -- JSON -----------------------------------------------------------------------------------------------

    def _json(self, data: bytes, chance: Random) -> bytes:
        try:
            root = [json.loads(data)]
        except (ValueError, RecursionError):
            return self._bytes(data, chance)
        held, key = chance.choice(_places(root))
        match chance.randrange(8):
            case 0 if isinstance(held, dict):
                del held[key]
            case 1 if isinstance(held, dict):
                held[self._word(chance)] = held[key]
            case 2 if isinstance(held, dict):
                held[self._word(chance)] = self._value(chance)
            case 3 if isinstance(held, list) and held is not root:
                held[key:key] = [held[key]] * chance.choice((1, 2, 300))
            case 4:
                other, name = chance.choice(_places(root))
                held[key] = other[name]
            case 5:
                held[key] = self._near(held[key], chance)
            case 6:
                held[key] = chance.choice(([held[key]], {self._word(chance): held[key]}, [], {}))
            case _:
                held[key] = self._value(chance)
        try:
            return json.dumps(root[0], ensure_ascii=chance.random() < 0.5).encode(errors="surrogatepass")
        except (ValueError, RecursionError):  # a value may hold itself now
            return data

    def _value(self, chance: Random) -> Any:
        match chance.randrange(6):
            case 0:
                return chance.choice(_NUMBERS)
            case 1:
                return chance.choice(_TEXTS)
            case 2:
                return chance.choice((None, True, False, [], {}))
            case 3:
                return chance.choice(_DOUBLES)
            case 4 if chance.random() < 0.1:
                value: Any = 0
                for _ in range(chance.choice(_DEPTHS)):
                    value = [value] if chance.random() < 0.5 else {"n": value}
                return value
            case _:
                return self._word(chance)

    def _near(self, value: Any, chance: Random) -> Any:
        if isinstance(value, bool) or value is None:
            return not value
        if isinstance(value, int):
            return value + chance.choice((-1, 1, 10, 1_000, -value * 2, 10**12))
        if isinstance(value, str):
            where = chance.randrange(len(value) + 1)
            return chance.choice(
                (value[:where], value + value, value[where:], value[:where] + "\0" + value[where:])
            )
        return self._value(chance)

    def _word(self, chance: Random) -> str:
        return chance.choice(self._words)


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """Each place where a value lies, as (what holds it, key or index)."""
    found: list[tuple[Any, Any]] = [(root, 0)]
    for held, key in found:
        value = held[key]
        if isinstance(value, dict):
            found.extend((value, name) for name in value)
        elif isinstance(value, list):
            found.extend((value, index) for index in range(len(value)))
        if len(found) > _PLACES:
            break
    return found
