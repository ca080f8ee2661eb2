"""What the worker tells its tracer: a span for each attempt, from the handler's call to the answer."""

from __future__ import annotations

from flowpilot.ports.spans import of_attempt
from flowpilot.ports.tracer import Tracer
from flowpilot.worker.attempt import Attempt
from flowpilot.worker.invoke import Outcome

CANCELLED, HANDED_BACK = "cancelled", "handed_back"
"""How an attempt ends that gets no answer: nobody wants it any more, or another worker takes it up."""


class Traced:
    """Costs next to nothing while the tracer is off."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begun(self, attempt: Attempt) -> None:
        """Its handler is called now, in the calling `contextvars.Context`: its span is the current one there."""
        if not self._tracer.is_on:
            return
        what = of_attempt(attempt.record, attempt.message, attempt.task_id)
        attempt.span = self._tracer.begin(what, attempt.traceparent)
        attempt.span.enter()
        if attempt.context is not None:
            attempt.context.traceparent = attempt.span.traceparent

    def ended(self, attempt: Attempt, outcome: Outcome) -> None:
        """It is answered."""
        if attempt.span is None:
            return
        if isinstance(outcome, bytes):
            attempt.span.end()
        else:
            attempt.span.end(outcome.kind, outcome.message)

    def unanswered(self, attempt: Attempt, why: str) -> None:
        """It is over without an answer, unless it has one already."""
        if attempt.span is not None:
            attempt.span.end(why)
