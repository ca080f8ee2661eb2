"""A meter of prometheus-client's, served on a port of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from flowpilot.ports.meter import Metric

Family = Counter | Gauge | Histogram


class PrometheusMeter:
    """Holds the values of `metrics`, and what the system knows of this process."""

    is_on = True

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._families = {metric.name: self._family(metric) for metric in metrics}
        self._children: dict[tuple[str, tuple[str, ...]], Family] = {}

    def _family(self, metric: Metric) -> Family:
        name, meaning, labels = metric.name, metric.meaning, metric.labels
        if metric.kind == "histogram":
            return Histogram(name, meaning, labels, registry=self.registry, buckets=metric.buckets)
        return (Counter if metric.kind == "counter" else Gauge)(name, meaning, labels, registry=self.registry)

    def _child(self, metric: Metric, labels: tuple[str, ...]) -> Family:
        # Looking one up in its family takes eight times as long.
        child = self._children.get((metric.name, labels))
        if child is None:
            family = self._families[metric.name]
            child = self._children[metric.name, labels] = family.labels(*labels) if labels else family
        return child

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """See the port."""
        cast(Counter, self._child(metric, labels)).inc(amount)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """See the port."""
        cast(Gauge, self._child(metric, labels)).set(value)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """See the port."""
        cast(Histogram, self._child(metric, labels)).observe(value)

    def forget(self, metric: Metric, *labels: str) -> None:
        """See the port."""
        if self._children.pop((metric.name, labels), None) is not None and labels:
            self._families[metric.name].remove(*labels)


class MetricsServer:
    """Answers `GET /metrics` from threads of its own until `close`. Raises OSError if it cannot listen there."""

    def __init__(self, meter: PrometheusMeter, host: str, port: int) -> None:
        self._server, self._thread = start_http_server(port, host, meter.registry)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
