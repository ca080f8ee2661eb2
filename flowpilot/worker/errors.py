"""What ends a worker."""

from __future__ import annotations

from flowpilot.core.errors import FlowPilotError


class WorkerExhausted(FlowPilotError):
    """So many handlers hang that the worker cannot go on: it has finished the others and must be restarted.

    `given_up`: how many handlers ran beyond their time-out and did not end.
    """

    def __init__(self, given_up: int) -> None:
        self.given_up = given_up
        super().__init__(
            f"{given_up} handlers ran beyond their time-out and do not end, as many as this worker runs at once; "
            "it stopped so that it is started again: look for calls without a time-out of their own"
        )


class UnknownQueue(FlowPilotError):
    """A worker is to serve a queue that none of its workflows' steps goes to."""

    def __init__(self, queue: str, known: list[str]) -> None:
        self.queue, self.known = queue, known
        listed = ", ".join(known)
        super().__init__(f"no step of these workflows goes to the queue {queue!r}; choose among: {listed}")
