"""Durations as users write them: `"30s"`, `"1h30m"`, or a timedelta."""

from __future__ import annotations

import re
from datetime import timedelta
from fractions import Fraction

Duration = str | timedelta

_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PART = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)(ms|s|m|h|d)", re.ASCII)
_WHOLE = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)


def milliseconds(duration: Duration) -> int:
    """`duration` in whole ms. Raises ValueError with the forms that are taken."""
    if isinstance(duration, timedelta):
        ms = duration // timedelta(milliseconds=1)
    elif isinstance(duration, str) and _WHOLE.fullmatch(duration.strip()):
        ms = int(sum(Fraction(number) * _UNITS[unit] for number, unit in _PART.findall(duration)))
    else:
        raise ValueError(f'{duration!r} is not a duration: write "500ms", "30s", "1h30m", "7d" or a timedelta')
    if ms < 0:
        raise ValueError(f"{duration!r} is a negative duration")
    return ms


def as_text(ms: int) -> str:
    """`ms` in the largest unit that keeps it whole: 90000 is `90s`."""
    for unit in ("d", "h", "m", "s"):
        if ms and ms % _UNITS[unit] == 0:
            return f"{ms // _UNITS[unit]}{unit}"
    return f"{ms}ms"
