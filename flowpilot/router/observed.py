"""What the router tells its meter: once a batch, after what it starts is acknowledged."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence

from flowpilot.ports import metrics
from flowpilot.ports.log import Fetched, TopicPartition
from flowpilot.ports.meter import Meter, Metric
from flowpilot.router.reading import Served
from flowpilot_schemas.messages import StartExecution


class Observed:
    """Costs nothing while the meter is off. What is routed again after a crash is counted again."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._closed: set[str] = set()

    def arrived(self, records: Sequence[Fetched]) -> None:
        """What the group delivered is done."""
        meter = self._meter
        if not meter.is_on:
            return
        meter.observe(metrics.ROUTER_BATCH, len(records))
        now = time.time()
        last = {(record.topic, record.partition): record.timestamp for record in records}
        oldest: dict[str, int] = {}
        for (topic, _), timestamp in last.items():
            oldest[topic] = min(timestamp, oldest.get(topic, timestamp))
        for topic, timestamp in oldest.items():
            meter.set(metrics.ROUTER_LAG, max(0.0, now - timestamp / 1_000), topic)

    def closed(self, partitions: Iterable[TopicPartition]) -> None:
        """These are assigned and not read."""
        if not self._meter.is_on:
            return
        found = Counter(partition.topic for partition in partitions)
        for topic, count in found.items():
            self._meter.set(metrics.ROUTER_CLOSED, count, topic)
        for topic in self._closed - found.keys():
            self._meter.set(metrics.ROUTER_CLOSED, 0, topic)
        self._closed = set(found)

    def served(self, batch: Sequence[Served]) -> None:
        """The fates of records, for each workflow that reads them."""
        if not self._meter.is_on:
            return
        found: Counter[tuple[Metric, str]] = Counter()
        for served in batch:
            for _, outcome in served.outcomes:
                if isinstance(outcome, StartExecution):
                    found[metrics.ROUTER_STARTED, outcome.workflow] += 1
                else:
                    # A record may name any workflow: only the reason is one of few.
                    found[metrics.ROUTER_DEAD_LETTERS, outcome.reason] += 1
            found.update((metrics.ROUTER_FILTERED, omitted.reason) for omitted, _ in served.omitted)
        for (metric, label), amount in found.items():
            self._meter.add(metric, amount, label)
