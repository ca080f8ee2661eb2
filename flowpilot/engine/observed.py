"""What the engine tells its meter: once a batch, after all of it is acknowledged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from flowpilot.core import events as e
from flowpilot.core.events import unpack
from flowpilot.core.state import Execution
from flowpilot.engine.owned import OwnedPartition
from flowpilot.ports import metrics
from flowpilot.ports.log import Fetched
from flowpilot.ports.meter import Meter, Metric

_Count = tuple[Metric, tuple[str, ...]]
_OF_A_PARTITION = (
    metrics.ENGINE_LAG,
    metrics.ENGINE_FOLDED,
    metrics.ENGINE_RUNNING,
    metrics.ENGINE_KEPT,
    metrics.ENGINE_ENTRIES,
    metrics.ENGINE_STOPPED,
)


class Observed:
    """Costs nothing while the meter is off. What a batch decided is read from the outboxes that it leaves."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def batch(
        self, owned: OwnedPartition, records: Sequence[Fetched], changed: Iterable[Execution], now: int
    ) -> None:
        """`records`, of which there is at least one, are folded and `changed` with them; `now` in ms."""
        meter = self._meter
        if not meter.is_on:
            return
        partition, newest = str(owned.partition), records[-1].timestamp
        meter.observe(metrics.ENGINE_BATCH, len(records))
        meter.set(metrics.ENGINE_LAG, max(0, now - newest) / 1_000, partition)
        meter.set(metrics.ENGINE_FOLDED, newest / 1_000, partition)
        self._table(owned)
        for (metric, labels), amount in counts(changed).items():
            meter.add(metric, amount, *labels)

    def ignored(self, reports: Mapping[str, int]) -> None:
        """So many reports were ignored, by reason."""
        for reason, amount in reports.items():
            self._meter.add(metrics.ENGINE_IGNORED, amount, reason)

    def claimed(self, owned: OwnedPartition) -> None:
        """The partition is this process's."""
        if self._meter.is_on:
            self._meter.set(metrics.ENGINE_STOPPED, 0, str(owned.partition))
            self._table(owned)

    def _table(self, owned: OwnedPartition) -> None:
        partition = str(owned.partition)
        # Whatever runs has a step with a deadline, and whatever has ended a time to be forgotten at.
        self._meter.set(metrics.ENGINE_RUNNING, len(owned.deadlines), partition)
        self._meter.set(metrics.ENGINE_KEPT, len(owned.forgets), partition)
        self._meter.set(metrics.ENGINE_ENTRIES, len(owned.table), partition)

    def stopped(self, partition: int) -> None:
        """The partition does not go on."""
        self._meter.set(metrics.ENGINE_STOPPED, 1, str(partition))

    def gone(self, partition: int) -> None:
        """The partition is another's."""
        for metric in _OF_A_PARTITION:
            self._meter.forget(metric, str(partition))


def counts(changed: Iterable[Execution]) -> Counter[_Count]:
    """What was decided of executions in a batch: all that is in the outboxes of those that it changed, since what
    was sent before is trimmed then. After a crash the same may be counted again, by another process.
    """
    found: Counter[_Count] = Counter()
    for state in changed:
        for entry in state.outbox:
            owner = entry.of or state
            found.update(each for packed in entry.events if (each := _count(owner, packed)) is not None)
    return found


def _count(state: Execution, packed: list[object]) -> _Count | None:
    workflow = state.workflow
    match unpack(packed):
        case e.StepCompleted(step=step):
            return metrics.ENGINE_ATTEMPTS, (workflow, step, "completed")
        case e.StepFailed(step=step):
            return metrics.ENGINE_ATTEMPTS, (workflow, step, "failed")
        case e.StepRetryScheduled(step=step):
            return metrics.ENGINE_ATTEMPTS, (workflow, step, "retried")
        case e.StepTimedOut(step=step, timeout=timeout):
            return metrics.ENGINE_TIMEOUTS, (workflow, step, timeout)
        case e.ExecutionStarted():
            return metrics.ENGINE_STARTED, (workflow,)
        case e.ExecutionCompleted():
            return metrics.ENGINE_ENDED, (workflow, "completed")
        case e.ExecutionFailed():
            return metrics.ENGINE_ENDED, (workflow, "failed")
        case e.ExecutionCancelled():
            return metrics.ENGINE_ENDED, (workflow, "cancelled")
        case e.ExecutionIncident():
            return metrics.ENGINE_ENDED, (workflow, "incident")
        case e.StartRefused(reason=reason):
            # Anybody may ask for any name: only the reason is one of few.
            return metrics.ENGINE_REFUSED, (reason,)
    return None
