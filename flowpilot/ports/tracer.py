"""How rooms are traced: a tracer opens the spans that `flowpilot.ports.spans` declares.

A trace is handed on as a W3C `traceparent`, as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol


class SpanOf(NamedTuple):
    """What a span is of. Names have few values, attributes any."""

    kind: Literal["producer", "consumer"]
    name: str
    attributes: Mapping[str, str | int]


class Span(Protocol):
    """One span that is open."""

    @property
    def traceparent(self) -> str | None:
        """What whoever works for it is given; None if nobody keeps the trace and there was none before."""
        ...

    def enter(self) -> None:
        """Make it the current span of the calling `contextvars.Context`, for as long as that is used."""
        ...

    def end(self, error: str | None = None, detail: str = "") -> None:
        """It is over; with `error`, a word of few, it failed. Only the first call counts."""
        ...


class Tracer(Protocol):
    """Opens spans, from any thread."""

    @property
    def is_on(self) -> bool:
        """Whether anybody wants spans; if not, none need be opened."""
        ...

    def current(self) -> str | None:
        """The traceparent of the span that is current here, whoever opened it."""
        ...

    def begin(self, what: SpanOf, parent: str | None) -> Span:
        """Open a span below `parent` (a traceparent), or the first one of a new trace. It is not current yet."""
        ...


class _Off:
    """Nobody asks."""

    is_on = False

    def current(self) -> str | None:
        return None

    def begin(self, what: SpanOf, parent: str | None) -> Span:
        raise NotImplementedError("no spans are opened while tracing is off")


OFF: Tracer = _Off()
