"""A role from its start to its signal."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Protocol

INTERRUPTED = 130


class Role(Protocol):
    """What runs until it is told to stop."""

    async def run(self) -> None:
        """Returns after `stop`, with everything in order."""
        ...

    def stop(self) -> None:
        """Ask `run` to return. May be called at any time, also before `run`."""
        ...


async def run_until_signalled(role: Role) -> int:
    """Run `role` until it ends or SIGTERM or SIGINT asks it to; the exit code. A second signal ends at once."""
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def ask(number: signal.Signals) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        role.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask, number)
    try:
        await role.run()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return INTERRUPTED if received == [signal.SIGINT] else 0
