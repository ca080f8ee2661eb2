"""Which rule sets a partition permits. A rule set is one version of the fold; its number is the field `rules`.

Set 1 is permitted from the beginning. A raise in the log permits the next one for the starts behind it, and is kept
as an entry that never changes: a start is judged by the last raise below its own offset, so that every owner judges
it alike, however often it reads it again and whatever it has read since (tests/model).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

FIRST = 1


class Raise(NamedTuple):
    """From behind `offset` on, starts may ask for the rule set `rules`."""

    offset: int
    rules: int


class RuleSets(NamedTuple):
    """The raises of a partition, in their order; each is one above the one before, so they are few.

    `src` is the offset of the last record that was folded into them.
    """

    src: int = -1
    raises: tuple[Raise, ...] = ()

    def permitted_at(self, offset: int) -> int:
        """The highest rule set that a start at `offset` may ask for."""
        return max((entry.rules for entry in self.raises if entry.offset < offset), default=FIRST)

    @property
    def highest(self) -> int:
        """The highest rule set that is permitted at all."""
        return self.raises[-1].rules if self.raises else FIRST

    def raised(self, offset: int, rules: int) -> RuleSets:
        """With one more raise, which is above all others."""
        return RuleSets(offset, (*self.raises, Raise(offset, rules)))

    def encode(self) -> bytes:
        """The value under the partition's key `rules`."""
        return orjson.dumps({"src": self.src, "raises": [list(entry) for entry in self.raises]})

    @classmethod
    def decode(cls, value: bytes | None) -> RuleSets:
        """The inverse of `encode`; nothing was raised where there is no value. Raises ValueError."""
        if value is None:
            return cls()
        match orjson.loads(value):
            case {"src": int(src), "raises": list(entries)} if _are_raises(entries):
                return cls(src, tuple([Raise(*entry) for entry in entries]))
        raise ValueError("these are no rule sets")


def _are_raises(entries: list[Any]) -> bool:
    return all(
        isinstance(entry, list)
        and len(entry) == 2
        and all(isinstance(number, int) for number in entry)
        and entry[1] == FIRST + place
        for place, entry in enumerate(entries, 1)
    )
