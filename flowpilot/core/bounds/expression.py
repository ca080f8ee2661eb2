"""What a `where` may take for one record, told from its text and the record's size before it is evaluated.

A macro evaluates its body for each element. What the body takes of the record itself (`data.all == data.all`, `x in
data.all`) then costs that part's size each time, and a pattern is compiled each time. An operation is about 0.4 µs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from flowpilot.core.bounds.checks import TooCostly

MAX_OPERATIONS = 1_000_000
_FEW = 4  # parts of a record that are looked at once: not worth a walk through it
_CHARACTERS = 32
_COMPILING = 200
_REFERENCE = re.compile(r"(?<![\w.])(data|event)\b((?:\s*\.\s*\w+)*)")
_MATCHES = re.compile(r"\bmatches\s*\(")
_MATCHES_TEXT = re.compile(r'\bmatches\s*\(\s*""\s*\)')


class _Reference(NamedTuple):
    variable: str
    path: tuple[str, ...]

    def part(self, given: dict[str, Any]) -> Any:
        """What it refers to, or what that is in: the last names may be functions."""
        found = given[self.variable]
        for name in self.path:
            if not isinstance(found, dict) or name not in found:
                break
            found = found[name]
        return found


class ExpressionBounds:
    """`code`: the expression with `""` for each text. `macros`: where in it the bodies of loops begin, and what
    they call an element.
    `patterns`: the lengths of the patterns that stand in it. Raises ValueError, with one phrase.
    """

    def __init__(self, code: str, macros: Sequence[tuple[int, str]], patterns: Sequence[int]) -> None:
        self._references = _references(code)
        self._loops = [_body(code, begin) for begin, _ in macros]
        self._inside = [reference for body in self._loops for reference in _references(body)]
        if self._loops and len(_MATCHES.findall(code)) != len(_MATCHES_TEXT.findall(code)):
            raise ValueError("matches(…) takes a text beside all, exists and exists_one: other patterns take long")
        compiled = any(_MATCHES.search(body) for body in self._loops) * sum(
            _COMPILING + 4 * one for one in patterns
        )
        self._whole = len(self._references) if len(self._references) > _FEW else 0
        for (_, element), body in zip(macros, self._loops, strict=True):
            self._whole += len(re.findall(rf"\b{re.escape(element)}\b", body)) if element else 0
        length = sum(len(body) for body in self._loops)
        self._per_element = 1 + length // 4 + compiled
        self._lists = (1 + code.count("+")) * max(1, code.count(","))
        self._is_plain = not self._loops and len(self._references) <= _FEW

    def check(self, data: Any, event: Any) -> None:
        """Raises `TooCostly` if evaluating it could take more than `MAX_OPERATIONS`."""
        if self._is_plain:
            return
        given = {"data": data, "event": event}
        sizes = {name: _measured(value) for name, value in given.items()}
        whole = sum(size for size, _ in sizes.values())
        operations = self._whole * whole
        if self._loops:
            elements = max(1, *(longest for _, longest in sizes.values())) * self._lists
            per_element = self._per_element
            per_element += sum(_measured(reference.part(given))[0] for reference in self._inside)
            operations += elements * per_element
        if operations > MAX_OPERATIONS:
            raise TooCostly("it could take too long on a record of this size")


def _references(code: str) -> list[_Reference]:
    return [
        _Reference(variable, tuple(name.strip() for name in path.split(".")[1:]))
        for variable, path in _REFERENCE.findall(code)
    ]


def _body(code: str, begin: int) -> str:
    depth = 1
    for place in range(begin, len(code)):
        depth += {"(": 1, ")": -1}.get(code[place], 0)
        if depth == 0:
            return code[begin:place]
    return code[begin:]


def _measured(root: Any) -> tuple[int, int]:
    """Its size in parts and characters, and the length of the longest array, object or text in it."""
    size, longest, open_values = 0, 0, [root]
    while open_values:
        value = open_values.pop()
        size += 1
        if isinstance(value, str):
            size += len(value) // _CHARACTERS
        elif isinstance(value, dict | list):
            longest = max(longest, len(value))
            open_values.extend(value.values() if isinstance(value, dict) else value)
    return size, longest
