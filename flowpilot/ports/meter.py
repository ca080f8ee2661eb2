"""How rooms are measured: a meter takes numbers for the metrics that `flowpilot.ports.metrics` declares."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

Kind = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    """One metric. `labels` have few values: names that somebody declared, reasons, partitions; never ids.

    `buckets`: the upper bounds of a histogram's, in its own unit.
    """

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def role(self) -> str:
        """The role that has it: the second word of its name."""
        return self.name.split("_", 2)[1]


class Meter(Protocol):
    """Takes numbers, from any thread. `labels` are values in the order of the metric's labels."""

    @property
    def is_on(self) -> bool:
        """Whether anybody wants the numbers; if not, they need not be made."""
        ...

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """To a counter."""
        ...

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Of a gauge."""
        ...

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """One value more in a histogram."""
        ...

    def forget(self, metric: Metric, *labels: str) -> None:
        """These labels have no value here any more. Harmless if they had none."""
        ...


class _Off:
    """Nobody asks."""

    is_on = False

    def add(self, metric: Metric, amount: float, *labels: str) -> None: ...
    def set(self, metric: Metric, value: float, *labels: str) -> None: ...
    def observe(self, metric: Metric, value: float, *labels: str) -> None: ...
    def forget(self, metric: Metric, *labels: str) -> None: ...


OFF: Meter = _Off()
