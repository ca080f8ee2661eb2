"""What of the interpreter and of the production modules is replaced while a simulation runs: clocks, chance, ends.

Nothing of what the protocols do. Constants that only say how often somebody looks are larger, since each look of
the real ones costs time here too.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest import mock

import structlog

from flowpilot.client import replies
from flowpilot.engine import trial
from flowpilot.worker import control, intake
from flowpilot.worker import watch as worker_watch
from flowpilot.worker.attempt import Attempt
from flowpilot.worker.threads import HandlerThreads
from flowpilot_agents import execution, watch
from tests.simulation.loop import BEGIN, PROCESS, Ended, Loop
from tests.simulation.plan import Plan


def _at_once(threads: HandlerThreads, job: Any, function: Callable[[], Any]) -> None:
    """What a handler's thread does, as the loop's next turn."""
    threads._loop.call_soon(lambda: threads._done(job, function()))


@contextmanager
def simulated(loop: Loop, plan: Plan, ended: Any) -> Iterator[None]:
    """Replace them. `ended(process, sentence)` is called when a process ends itself."""
    chance = random.Random(f"{plan.seed}/ids")

    def end_process(sentence: str, error: BaseException | None = None) -> NoReturn:
        ended(PROCESS.get(), sentence, error)
        raise Ended(sentence)

    def wall() -> float:
        return BEGIN + loop._now + PROCESS.get().skew

    changes: list[tuple[Any, str, Any]] = [
        (time, "monotonic", lambda: loop._now),
        (time, "time", wall),
        (time, "time_ns", lambda: int(wall() * 1_000_000) * 1_000),
        (uuid, "uuid4", lambda: uuid.UUID(int=chance.getrandbits(128), version=4)),
        (execution, "end_process", end_process),
        (watch, "end_process", end_process),
        (trial, "CRASHES", plan.crashes),
        (watch, "PULSE_SECONDS", plan.session / 8),
        (intake, "_POLL", 0.25),
        (worker_watch, "_TICK", 0.2),
        (control, "_INTERVAL", 0.5),
        (replies, "EAGER", 0.2),
        (replies, "IDLE", 0.5),
        # A worker keeps its attempts in a set: their order must not be that of their addresses.
        (Attempt, "__hash__", lambda self: hash((self.record.partition, self.record.offset))),
        # No thread here: how long one takes is not the seed's.
        (HandlerThreads, "run", _at_once),
    ]
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    patches = [mock.patch.object(*change) for change in changes]
    try:
        for patch in patches:
            patch.start()
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()
        structlog.configure(**before)
