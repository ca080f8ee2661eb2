"""A tracer of this process's OpenTelemetry provider, whoever set it and whenever.

OpenTelemetry is looked for among what is imported already: nobody has a provider or a span without it, and a
process without it does not pay for the import.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from flowpilot.ports.tracer import Span, SpanOf

_API = "opentelemetry.trace"
_SCOPE = "flowpilot"


class OpenTelemetryTracer:
    """See `flowpilot.ports.tracer.Tracer`."""

    def __init__(self) -> None:
        self._provider: Any = None
        self._tracer: Any = None

    @property
    def is_on(self) -> bool:
        """Whether a provider was set that is more than OpenTelemetry's own stand-in for one."""
        api = sys.modules.get(_API)
        if api is None:
            return False
        return not isinstance(api.get_tracer_provider(), api.ProxyTracerProvider | api.NoOpTracerProvider)

    def current(self) -> str | None:
        """See the port."""
        api = sys.modules.get(_API)
        return None if api is None else _told(api.get_current_span().get_span_context())

    def begin(self, what: SpanOf, parent: str | None) -> Span:
        """See the port."""
        api = sys.modules[_API]
        provider = api.get_tracer_provider()
        if provider is not self._provider:
            self._provider, self._tracer = provider, provider.get_tracer(_SCOPE)
        above = api.set_span_in_context(_remote(api, parent))
        kind = api.SpanKind.PRODUCER if what.kind == "producer" else api.SpanKind.CONSUMER
        span = self._tracer.start_span(what.name, above, kind=kind, attributes=what.attributes)
        return _Opened(span, parent)


class _Opened:
    """See `flowpilot.ports.tracer.Span`."""

    def __init__(self, span: Any, parent: str | None) -> None:
        self._span = span
        self._is_open = True
        # A provider that is switched off opens spans without an id.
        self.traceparent = _told(span.get_span_context()) or parent

    def enter(self) -> None:
        context = import_module("opentelemetry.context")
        context.attach(sys.modules[_API].set_span_in_context(self._span))

    def end(self, error: str | None = None, detail: str = "") -> None:
        if not self._is_open:
            return
        self._is_open = False
        if error is not None:
            api = sys.modules[_API]
            self._span.set_attribute("error.type", error)
            self._span.set_status(api.Status(api.StatusCode.ERROR, detail))
        self._span.end()


def _told(context: Any) -> str | None:
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _remote(api: Any, parent: str | None) -> Any:
    """The span that `parent` names, elsewhere."""
    if parent is None:
        return api.INVALID_SPAN
    _, trace, span, flags = parent.split("-")
    context = api.SpanContext(int(trace, 16), int(span, 16), True, api.TraceFlags(int(flags, 16)))
    return api.NonRecordingSpan(context)
