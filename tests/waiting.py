"""Waiting for a condition, which is what a test does instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Value = TypeVar("Value")

_INTERVAL = 0.01


def eventually(condition: Callable[[], Value], timeout: float = 20.0, *, what: str = "") -> Value:
    """The first truthy value of `condition`; AssertionError with the last one after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, _message(condition, value, timeout, what)
        time.sleep(_INTERVAL)


async def eventually_async(
    condition: Callable[[], Value | Awaitable[Value]], timeout: float = 20.0, *, what: str = ""
) -> Value:
    """`eventually` within a running loop; `condition` may be a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        value: Value = await result if inspect.isawaitable(result) else result
        if value:
            return value
        assert time.monotonic() < deadline, _message(condition, value, timeout, what)
        await asyncio.sleep(_INTERVAL)


def _message(condition: object, value: object, timeout: float, what: str) -> str:
    return f"{what or getattr(condition, '__qualname__', condition)}: still {value!r} after {timeout:.0f} s"
