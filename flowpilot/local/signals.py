"""Signals that end a process, answered as Ctrl-C is: `with` blocks are left in order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def terminate_cleanly() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise SystemExit in the main thread, so that `with` blocks end as
    they do on Ctrl-C. For the main thread only."""

    def leave(signum: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before = {signum: signal.signal(signum, leave) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
