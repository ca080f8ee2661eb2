"""What the audit writer tells its meter: once a transaction, after it is done."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from flowpilot.ports import metrics
from flowpilot.ports.audit import Divergence
from flowpilot.ports.log import Fetched
from flowpilot.ports.meter import Meter


class Observed:
    """Costs nothing while the meter is off."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def batch(self, records: Sequence[Fetched], divergences: Sequence[Divergence], seconds: float) -> None:
        """`records`, of which there is at least one, were stored in `seconds`, and `divergences` with them."""
        meter = self._meter
        if not meter.is_on:
            return
        meter.observe(metrics.AUDIT_BATCH, len(records))
        meter.observe(metrics.AUDIT_TRANSACTION, seconds)
        for reason, amount in Counter(divergence.reason for divergence in divergences).items():
            meter.add(metrics.AUDIT_DIVERGENCES, amount, reason)
        last = {(record.topic, record.partition): record.timestamp for record in records}
        now = time.time()
        for topic, amount in Counter(record.topic for record in records).items():
            ends = [timestamp / 1_000 for (name, _), timestamp in last.items() if name == topic]
            meter.add(metrics.AUDIT_RECORDS, amount, topic)
            meter.set(metrics.AUDIT_WRITTEN, max(ends), topic)
            meter.set(metrics.AUDIT_LAG, max(0.0, now - min(ends)), topic)
