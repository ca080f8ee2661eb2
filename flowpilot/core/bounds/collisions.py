"""Numbers with one hash, on purpose: a set or dict of n such keys takes n² comparisons to build.

Python's hash of a number is the number modulo 2**61 - 1, for every numeric type, and is not randomised as that of a
text is. A quarter of a megabyte has room for 8,000 multiples of that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

from flowpilot.core.bounds.checks import TooCostly

MAX_COLLIDING = 1_000
_SENTENCE = (
    f"more than {MAX_COLLIDING:,} numbers in one set, or names in one object, have the same hash modulo 2**61 - 1; "
    "send fewer of them, or take them as a list"
)


def check_collisions(root: Any) -> None:
    """Raises `TooCostly` if more than `MAX_COLLIDING` names of an object, or elements of an array, are or spell
    different numbers with one hash. It takes time in proportion to the size of `root`."""
    open_values = [root]
    while open_values:
        value = open_values.pop()
        if isinstance(value, dict | list):
            open_values.extend(value.values() if isinstance(value, dict) else value)
            if len(value) > MAX_COLLIDING:
                _check(value)


def _check(members: Iterable[Any]) -> None:
    spelt: dict[int, set[str]] = defaultdict(set)
    for member in members:
        if isinstance(member, str | int | float):
            try:
                number = hash(Decimal(member))
            except (InvalidOperation, TypeError):
                continue
            spelt[number].add(str(member))
            if len(spelt[number]) > MAX_COLLIDING:
                raise TooCostly(_SENTENCE)
