"""What the test kit raises, beside what a workflow's client would raise."""

from __future__ import annotations

from flowpilot.core.errors import FlowPilotError


class KitMisused(FlowPilotError):
    """The test asks for what cannot be; the message says what to write."""


class NotFinished(FlowPilotError):
    """A result is asked for, or waited for, that is not there."""


class HandlerHangs(FlowPilotError):
    """A handler took longer, by the real clock, than a test should wait."""

    def __init__(self, step: str, seconds: float) -> None:
        self.step = step
        super().__init__(
            f"the handler of step {step!r} has run for {seconds:g} s of real time; mock what it waits for with "
            f"env.replace({step!r}, …), play a time-out with env.hang({step!r}), or raise patience=…"
        )


class InjectedFailure(Exception):
    """What an attempt raises that `env.fail` made fail, unless another error is given."""
