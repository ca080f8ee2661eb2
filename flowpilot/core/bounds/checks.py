"""Checks as a graph, and what the work of applying one may be.

A node is what is checked at one place. Its edges say which other nodes are applied to the same value, to the
values in an object or to the elements of an array. An operation is about what a validator does at one node: 50 ns
in jsonschema-rs, 2 µs in pydantic where it fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_OPERATIONS = 50_000
"""The price of a value, at most. It takes pydantic about 0.2 s where every operation fails."""
MAX_LINEAR = 10_000_000
"""What the static bound lets through unpriced. It overstates the work of ordinary schemas by ten to a hundred."""
FREE_WIDTH = 100
"""Values of any size are checked unpriced by at most so many operations for each of their parts."""
MAX_WIDTH = 20_000
MAX_NODES = 10_000
MAX_CHAIN = 150
"""Checks that apply one another to the same value, in a row: a validator recurses here, for each of the up to 180
levels of a value, and a stack that overflows ends the process."""
CHARACTERS = 32  # so many characters' worth of pattern matching take one operation


class TooCostly(Exception):
    """The work would be beyond the bound. As a message: why, in one phrase."""


@dataclass(slots=True)
class Check:
    """One node. Edges are numbers of nodes; a number that stands twice is applied twice.

    `own`: operations here. `per_char`: characters' worth, for each character of a string. `power`: a string is
    matched by a backtracking engine in about its length to this power, of at most `longest` characters.
    `per_size`: for each character of the whole value. `one_of`: one of them is applied, it is not known which.
    """

    own: int = 1
    per_char: int = 0
    per_size: int = 0
    power: int = 0
    longest: int | None = None
    same: list[int] = field(default_factory=list)
    one_of: list[int] = field(default_factory=list)
    keys: dict[str, list[int]] = field(default_factory=dict)
    rest: list[int] = field(default_factory=list)
    """For values whose key is not in `keys`."""
    every: list[int] = field(default_factory=list)
    """For all values of an object."""
    names: list[int] = field(default_factory=list)
    """For all keys of an object."""
    prefix: list[int] = field(default_factory=list)
    """For the elements of an array, one each."""
    tail: list[int] = field(default_factory=list)
    """For the elements behind `prefix`."""
    each: list[int] = field(default_factory=list)
    """For all elements of an array."""
    parsed: list[int] = field(default_factory=list)
    """For the JSON value in a string."""

    def edges(self) -> Iterator[int]:
        """Every edge, once each."""
        for one in self.keys.values():
            yield from one
        for some in (self.same, self.one_of, self.rest, self.every, self.names):
            yield from some
        for some in (self.prefix, self.tail, self.each, self.parsed):
            yield from some
