"""The records of step messages: how one is read, and how it is finished, which is when it may be committed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import structlog

from flowpilot.core.dead_letters import dead_letter, dead_letter_key
from flowpilot.ports.log import Fetched, Record, refuse_lost
from flowpilot.worker.answers import Answers
from flowpilot.worker.dropped import Dropped
from flowpilot.worker.intake import Intake
from flowpilot.worker.partition import AssignedPartition, Entry
from flowpilot_schemas.codec import BadRecord, decode_object, encode_message, parse
from flowpilot_schemas.history import from_iso
from flowpilot_schemas.ids import TaskId
from flowpilot_schemas.mac import HEADER_MAC, NO_SECRETS, StepSecrets
from flowpilot_schemas.messages import StepReady

_log = structlog.get_logger("flowpilot.worker")


def read_step(record: Fetched) -> tuple[StepReady, TaskId, int]:
    """The step message, its task id, and its `not_after` in ms since the epoch. Raises `BadRecord`."""
    refuse_lost(record)
    message = parse(StepReady, decode_object(record.value))
    task_id = TaskId.parse(message.task_id)
    if task_id is None:
        raise BadRecord("wrong_shape", "task_id is not <execution>/<run>/<step>/<attempt>")
    try:
        return message, task_id, from_iso(message.not_after)
    except (ValueError, OverflowError):
        raise BadRecord("wrong_shape", f"not_after: {message.not_after!r} is not a time in ISO 8601") from None


def _named(record: Fetched) -> str | None:
    """The attempt that the record's key names, as those of the engine do."""
    key = (record.key or b"").decode(errors="replace")
    return key if TaskId.parse(key) is not None else None


class Records:
    """Sees to it that each record taken is finished: by an answer or a dead letter that is in, or as it is.

    `intakes`: by topic; they are told of what is finished. `dead_letters`: the topic of what cannot be read.
    With `secrets`, what none of them signed is not read at all.
    """

    def __init__(
        self,
        answers: Answers,
        intakes: Mapping[str, Intake],
        dead_letters: str,
        *,
        dropped: Dropped,
        secrets: StepSecrets = NO_SECRETS,
    ) -> None:
        self._answers, self._intakes, self._dead_letters = answers, intakes, dead_letters
        self._dropped, self._secrets = dropped, secrets
        self._warned = False

    def read(self, record: Fetched) -> tuple[StepReady, TaskId, int]:
        """See `read_step`. Raises `BadRecord`, also for what is not trusted, whatever it holds."""
        distrust = self._secrets.distrust(record.topic, record.value, record.headers)
        if distrust is not None:
            raise BadRecord(*distrust)
        if not (self._secrets or self._warned) and any(name == HEADER_MAC for name, _ in record.headers):
            self._warned = True
            _log.warning(
                "step messages are signed, and this worker does not verify them: set FLOWPILOT_STEP_SECRET here too"
            )
        return read_step(record)

    def drop(self, record: Fetched, entry: Entry, partition: AssignedPartition, reason: str, task_id: str) -> None:
        """Finish the record without running it: nobody wants the attempt any more."""
        self._dropped.step(record, reason, task_id)
        self.finish(entry, partition)

    def answer(self, answer: Record, record: Fetched, entry: Entry, partition: AssignedPartition) -> None:
        """Send an answer that finishes the record once it is in."""
        self._answers.put(answer, partial(self.answered, record, entry, partition))

    def answered(self, record: Fetched, entry: Entry, partition: AssignedPartition, error: str | None) -> None:
        """An answer that finishes a record is in; or it never will be, which nobody could act upon but a human."""
        if error is not None and not entry.finished:
            self.bury(record, entry, partition, BadRecord("answer_refused", f"the answer cannot be sent: {error}"))
            return
        self.finish(entry, partition)

    def bury(self, record: Fetched, entry: Entry, partition: AssignedPartition, bad: BadRecord) -> None:
        """Send the record to the dead letters; it is finished then, even if they refuse it."""
        self._dropped.step(record, bad.reason, _named(record), bad.detail)
        letter = dead_letter(record, bad.reason, bad.detail, "worker")
        buried = Record(self._dead_letters, dead_letter_key(record), encode_message(letter))
        self._answers.put(buried, partial(self._buried, record, entry, partition))

    def _buried(self, record: Fetched, entry: Entry, partition: AssignedPartition, error: str | None) -> None:
        if error is not None:
            _log.error("a dead letter was refused", topic=record.topic, offset=record.offset, error=error)
        self.finish(entry, partition)

    def finish(self, entry: Entry, partition: AssignedPartition) -> None:
        """The record need not be delivered again. Twice is once."""
        if not entry.finished:
            partition.finish(entry)
            intake = self._intakes[partition.tp.topic]
            intake.progressed()
            if partition.blocked:
                intake.commit_soon()
