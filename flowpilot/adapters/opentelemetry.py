"""A tracer of this process's OpenTelemetry provider, whoever set it and whenever.

OpenTelemetry is looked for among what is imported already: nobody has a provider or a span without it, and a
process without it does not pay for the import.

Samplers and span processors are the user's code, called in the middle of the work: whatever they raise ends here.
"""

from __future__ import annotations

import sys
from importlib import import_module
from traceback import extract_tb
from typing import Any

import structlog

from flowpilot.ports.tracer import Span, SpanOf

_log = structlog.get_logger("flowpilot.tracing")

_API = "opentelemetry.trace"
_SCOPE = "flowpilot"


class OpenTelemetryTracer:
    """See `flowpilot.ports.tracer.Tracer`. Of each kind of error the first is logged."""

    def __init__(self) -> None:
        self._provider: Any = None
        self._tracer: Any = None
        self._logged: set[tuple[str, str]] = set()

    @property
    def is_on(self) -> bool:
        """Whether a provider was set that is more than OpenTelemetry's own stand-in for one."""
        api = sys.modules.get(_API)
        if api is None:
            return False
        try:
            return not isinstance(api.get_tracer_provider(), api.ProxyTracerProvider | api.NoOpTracerProvider)
        except Exception as error:  # noqa: BLE001 - see the module
            self.failed("find the provider", error)
            return False

    def current(self) -> str | None:
        """See the port."""
        api = sys.modules.get(_API)
        try:
            return None if api is None else _told(api.get_current_span().get_span_context())
        except Exception as error:  # noqa: BLE001 - see the module
            self.failed("read the current span", error)
            return None

    def begin(self, what: SpanOf, parent: str | None) -> Span:
        """See the port."""
        try:
            return self._begin(what, parent)
        except Exception as error:  # noqa: BLE001 - see the module
            self.failed("begin a span", error)
            return _Missing(parent)

    def _begin(self, what: SpanOf, parent: str | None) -> Span:
        api = sys.modules[_API]
        provider = api.get_tracer_provider()
        if provider is not self._provider:
            self._provider, self._tracer = provider, provider.get_tracer(_SCOPE)
        above = api.set_span_in_context(_remote(api, parent))
        kind = api.SpanKind.PRODUCER if what.kind == "producer" else api.SpanKind.CONSUMER
        span = self._tracer.start_span(what.name, above, kind=kind, attributes=what.attributes)
        return _Opened(self, span, parent)

    def failed(self, doing: str, error: Exception) -> None:
        """Log what was raised while `doing`, unless that was said already."""
        kind = (doing, type(error).__name__)
        if kind not in self._logged:
            self._logged.add(kind)
            frame = extract_tb(error.__traceback__)[-1]
            _log.warning(
                f"OpenTelemetry could not {doing}: the work goes on without, and this is said once",
                error=f"{kind[1]}: {error}",
                at=f"{frame.filename}:{frame.lineno}",
            )


class _Opened:
    """See `flowpilot.ports.tracer.Span`."""

    def __init__(self, tracer: OpenTelemetryTracer, span: Any, parent: str | None) -> None:
        self._tracer, self._span = tracer, span
        self._is_open = True
        # A provider that is switched off opens spans without an id.
        self.traceparent = _told(span.get_span_context()) or parent

    def enter(self) -> None:
        try:
            context = import_module("opentelemetry.context")
            context.attach(sys.modules[_API].set_span_in_context(self._span))
        except Exception as error:  # noqa: BLE001 - see the module
            self._tracer.failed("make a span the current one", error)

    def end(self, error: str | None = None, detail: str = "") -> None:
        if not self._is_open:
            return
        self._is_open = False
        try:
            if error is not None:
                api = sys.modules[_API]
                self._span.set_attribute("error.type", error)
                self._span.set_status(api.Status(api.StatusCode.ERROR, detail))
            self._span.end()
        except Exception as raised:  # noqa: BLE001 - see the module
            self._tracer.failed("end a span", raised)


class _Missing:
    """In the place of a span that could not be begun: the trace goes on above it."""

    def __init__(self, parent: str | None) -> None:
        self.traceparent = parent

    def enter(self) -> None:
        pass

    def end(self, error: str | None = None, detail: str = "") -> None:
        pass


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
