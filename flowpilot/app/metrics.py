"""A role's meter: off, or served where `FLOWPILOT_METRICS_PORT` says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

from flowpilot.core.errors import FlowPilotError
from flowpilot.ports.meter import OFF, Meter
from flowpilot.ports.metrics import METRICS
from flowpilot.settings import Settings

Role = Literal["engine", "router", "worker", "audit", "api"]


class MetricsUnavailable(FlowPilotError):
    """Metrics are asked for and cannot be served."""


@contextmanager
def serving_metrics(settings: Settings, role: Role) -> Iterator[Meter]:
    """The meter of this process's role; while this is open, its port answers. Raises `MetricsUnavailable`."""
    port, host = settings.metrics_port, settings.metrics_host
    if port is None:
        yield OFF
        return
    if find_spec("prometheus_client") is None:
        raise MetricsUnavailable(
            "FLOWPILOT_METRICS_PORT is set and prometheus-client is not there: install flowpilot[metrics]"
        )
    from flowpilot.adapters.prometheus import MetricsServer, PrometheusMeter  # slow, and may not be there

    meter = PrometheusMeter(metric for metric in METRICS if metric.role == role)
    try:
        server = MetricsServer(meter, host, port)
    except OSError as error:
        raise MetricsUnavailable(
            f"the {role}'s metrics cannot be served on {host}:{port} ({error.strerror or error}): give every "
            "process a FLOWPILOT_METRICS_PORT of its own"
        ) from None
    try:
        yield meter
    finally:
        server.close()
