"""A step message that its reader does not serve is sent again, to another partition, under the same attempt.

Which worker reads which partition is Kafka's business, so the partitions of the queue's topic are tried one after
another: from the one that the report names to the next, 100 ms apart until each was tried once, then with
exponential back-off. The wait ends with the attempt's `schedule_to_start`, which runs from its first dispatch.

Each dispatch of an attempt has a number, which the step message carries and the report repeats: a report of an
earlier dispatch (a redelivery, a replay) changes nothing, so that one attempt has one chain of dispatches. History
has the first report of an attempt; later ones move the state only.
"""

from __future__ import annotations

from flowpilot.core import events as e
from flowpilot.core.clip import clipped, clipped_or_none
from flowpilot.core.draft import Draft
from flowpilot.core.state import StepState
from flowpilot.core.status import StepStatus
from flowpilot_schemas.messages import NOT_SERVED, StepFailed
from flowpilot_schemas.topics import STEP_RETENTION

SWEEP_DELAY_MS = 100
LONGEST_DELAY_MS = 5_000
# As bytes of JSON, like a worker's other names and places.
_PLACE_LIMIT = 300
_DETAIL_LIMIT = 2_000


def is_not_served(message: object) -> bool:
    """Whether a report says that its worker does not run the step, and nothing about the attempt."""
    return isinstance(message, StepFailed) and message.error.kind == NOT_SERVED


def not_served(draft: Draft, order: int, message: StepFailed) -> None:
    """Schedule the next dispatch of the step at `order`, which is in flight; or nothing, if the report is stale."""
    step = draft.steps[order]
    partition = partition_of(message, draft.definition.steps[order].queue)
    if not is_current(step, message.dispatch, partition):
        return
    name = draft.name(order)
    if step.dispatch == 1:
        detail = clipped(message.error.message, _DETAIL_LIMIT)
        worker = clipped_or_none(message.worker_id, _PLACE_LIMIT)
        place = clipped_or_none(message.broker_task_id, _PLACE_LIMIT)
        draft.emit(e.StepNotServed(name, step.attempt, detail, worker, place))
    following = next_partition(partition, message.partitions)
    count = 1 if following is None or message.partitions is None else message.partitions
    draft.emit(e.RedispatchScheduled(name, draft.at + delay_ms(step.dispatch, count), following))


def send_on(draft: Draft, order: int) -> None:
    """The time of the next dispatch has come."""
    step, definition = draft.steps[order], draft.definition.steps[order]
    limit = draft.at + STEP_RETENTION
    not_after = limit if definition.on_schedule_to_start == "record" or step.deadline is None else step.deadline
    draft.emit(
        e.StepRedispatched(
            *(definition.name, step.attempt, definition.queue, step.dispatch + 1),
            *(step.partition, not_after, step.heartbeat),
        )
    )


def is_current(step: StepState, dispatch: int | None, partition: int | None) -> bool:
    """Whether a report is about the dispatch that is under way.

    One without a number, of a worker in another language, is told by its partition, as far as that is known.
    """
    if step.status is not StepStatus.READY or step.resend_at is not None:
        return False
    if dispatch is not None:
        return dispatch == step.dispatch
    return partition is None or step.partition is None or partition == step.partition


def partition_of(message: StepFailed, queue: str) -> int | None:
    """The partition of the queue's topic that the step message was read from; None if the report has none."""
    topic, _, rest = (message.broker_task_id or "").rpartition("/")[0].rpartition("/")
    if not topic.endswith(f".steps.{queue}") or not (rest.isascii() and rest.isdecimal()) or len(rest) > 9:
        return None
    return int(rest)


def next_partition(partition: int | None, partitions: int | None) -> int | None:
    """The next of `partitions`, round robin; None (the one that the task's key names) where these make no sense."""
    if partition is None or partitions is None or partition >= partitions:
        return None
    return (partition + 1) % partitions


def delay_ms(dispatch: int, partitions: int) -> int:
    """How long after the report on dispatch number `dispatch` (from 1) the next one is sent, in ms."""
    rounds = dispatch - partitions + 1
    return SWEEP_DELAY_MS if rounds <= 0 else min(LONGEST_DELAY_MS, SWEEP_DELAY_MS * 2 ** min(rounds, 10))
