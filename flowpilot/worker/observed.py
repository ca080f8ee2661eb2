"""What the worker tells its meter: of an attempt when it begins and when it is answered."""

from __future__ import annotations

import time

from flowpilot.ports import metrics
from flowpilot.ports.meter import Meter
from flowpilot.worker.attempt import Attempt
from flowpilot.worker.invoke import Outcome
from flowpilot_schemas.messages import RESERVED_KINDS


class Observed:
    """Costs nothing while the meter is off. `concurrency`: handlers that run at once."""

    def __init__(self, meter: Meter, concurrency: int) -> None:
        self._meter = meter
        meter.set(metrics.WORKER_SLOTS, concurrency)

    def begun(self, attempt: Attempt) -> None:
        """Its handler is called now."""
        if self._meter.is_on:
            message, waited = attempt.message, time.time() - attempt.record.timestamp / 1_000
            self._meter.observe(metrics.WORKER_WAITED, max(0.0, waited), message.workflow, message.step)

    def ended(self, attempt: Attempt, outcome: Outcome) -> None:
        """It is answered."""
        if self._meter.is_on and attempt.began:
            message, ran = attempt.message, time.monotonic() - attempt.began
            if isinstance(outcome, bytes):
                word = "completed"
            else:  # the other kinds are names of exceptions, and may be any
                word = outcome.kind if outcome.kind in RESERVED_KINDS else "failed"
            self._meter.observe(metrics.WORKER_RAN, ran, message.workflow, message.step, word)

    def places(self, running: int, hanging: int) -> None:
        """How many attempts have one of the places, and how many went on beyond their time-out."""
        if self._meter.is_on:
            self._meter.set(metrics.WORKER_RUNNING, running)
            self._meter.set(metrics.WORKER_HANGING, hanging)
