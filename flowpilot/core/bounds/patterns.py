"""What a regular expression costs for each character of the text it is looked for in.

The linear engine (Rust's, which jsonschema-rs and pydantic use) takes time in proportion to the states of the
expression times the length of the text. Python's backtracks: a quantifier multiplies the time by the length, and
one inside another is exponential.
"""

from __future__ import annotations

import re
import re._constants as sre  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
from functools import lru_cache
from typing import Any

import jsonschema_rs

from flowpilot.core.bounds.checks import TooCostly

MAX_STATES = 1_500
_SIZE = 1 << 20  # bytes that an expression may compile to
_OPTIONS = jsonschema_rs.RegexOptions(size_limit=_SIZE, dfa_size_limit=_SIZE)
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?[^():]*:?|\{(\d+)(,?)(\d*)\}|.", re.DOTALL)


def options() -> jsonschema_rs.RegexOptions:
    """The linear engine, for `jsonschema_rs.validator_for`."""
    return _OPTIONS


@lru_cache(maxsize=4_096)
def is_linear(pattern: str) -> bool:
    """Whether the linear engine takes it: look-around and back-references it does not."""
    try:
        jsonschema_rs.validator_for({"pattern": pattern}, offline=True, pattern_options=_OPTIONS)
    except (jsonschema_rs.ValidationError, ValueError):
        return False
    return True


def per_char(pattern: str) -> int:
    """Characters' worth of the linear engine for each character. Raises `TooCostly`."""
    if (states := _states(pattern)) > MAX_STATES:
        raise TooCostly(f"the pattern {shown(pattern)} repeats to {states} characters; at most {MAX_STATES}")
    return 1 + states // 8


def _states(pattern: str) -> int:
    """The characters and classes of `pattern`, those in a counted repetition as often as it repeats."""
    open_groups = [0]
    last = 0  # states of the item before the token: what a repetition repeats
    for token in _TOKEN.finditer(pattern):
        text = token[0]
        if text.startswith("("):
            open_groups.append(0)
            last = 0
        elif text == ")" and len(open_groups) > 1:
            last = open_groups.pop()
            open_groups[-1] = min(open_groups[-1] + last, MAX_STATES * 10)
        elif token[1] is not None:
            times = max(int(token[1][:6]), int(token[3][:6] or 0), 1)
            open_groups[-1] = min(open_groups[-1] + last * (times - 1), MAX_STATES * 10)
        elif text not in "|*+?^$":
            last = 1
            open_groups[-1] += 1
    return sum(open_groups)


def power(pattern: str, flags: int = 0) -> int:
    """To which power of a text's length Python's engine takes time. Raises `TooCostly` if that has no bound."""
    try:
        parsed = parser.parse(pattern, flags & ~re.DEBUG)
    except (re.error, RecursionError, OverflowError, ValueError):
        raise TooCostly(f"the pattern {shown(pattern)} cannot be read") from None
    items = list(parsed)
    is_anchored = bool(items) and items[0] in ((sre.AT, sre.AT_BEGINNING), (sre.AT, sre.AT_BEGINNING_STRING))
    try:
        found, _ = _choices(items)
    except _Nested:
        raise TooCostly(
            f"the pattern {shown(pattern)} is matched by Python's engine, which may take exponential time for a "
            "repetition within a repetition"
        ) from None
    return max(1, found + (not is_anchored))


class _Nested(Exception):
    pass


def _choices(items: Any) -> tuple[int, bool]:
    """Quantifiers of variable length one after the other; and whether anything can match in several ways."""
    found, most, is_open = 0, 0, False
    for kind, value in items:
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            low, high, body = value
            inner, open_body = _choices(body)
            if high > 1 and (inner or open_body):
                raise _Nested
            found += inner + (low != high)
            is_open = is_open or open_body or low != high
        elif kind is sre.BRANCH:
            branches = [_choices(branch) for branch in value[1]]
            found += max(inner for inner, _ in branches)
            firsts = [branch[0] if len(branch) else None for branch in value[1]]
            literal = all(first is not None and first[0] is sre.LITERAL for first in firsts)
            distinct = literal and len(set(firsts)) == len(firsts)
            is_open = is_open or not distinct or any(open_one for _, open_one in branches)
        elif kind is sre.SUBPATTERN:
            inner, open_body = _choices(value[3])
            found, is_open = found + inner, is_open or open_body
        elif kind is sre.ATOMIC_GROUP:
            inner, open_body = _choices(value)
            found, is_open = found + inner, is_open or open_body
        elif kind in (sre.ASSERT, sre.ASSERT_NOT):
            # What was looked at is not tried in another way: it takes its own time, once for each position.
            most = max(most, _choices(value[1])[0])
        elif kind is sre.GROUPREF_EXISTS:
            some = [_choices(part)[0] for part in value[1:] if part is not None]
            found, is_open = found + max(some, default=0), True
        elif kind is sre.GROUPREF:
            found += 1
    return max(found, most), is_open


def shown(pattern: str) -> str:
    """As it stands in a sentence."""
    return repr(pattern if len(pattern) <= 80 else pattern[:79] + "…")
