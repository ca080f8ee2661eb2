"""What giving a record up puts into the overlay: as if nobody had ever folded it, whoever has.

It is the one decision that is not in the log. An earlier owner may have folded the record, and more, and write that
late: it loses against what is put here (`Entry.bars`).
"""

from __future__ import annotations

from flowpilot.engine.keys import RULES_KEY, output_key
from flowpilot.engine.overlay import Overlay
from flowpilot.engine.reading import execution_of, read_or_none, root_of
from flowpilot.ports.log import Fetched
from flowpilot_schemas import messages as m
from flowpilot_schemas.ids import TaskId, retry_id


def give_up(overlay: Overlay, record: Fetched) -> None:
    """The record changes nothing any more. It is read, to know what it concerns."""
    message = read_or_none(record)
    execution = execution_of(message)
    if execution is None or not overlay.bar(execution, record.offset):
        return
    task = TaskId.parse(message.task_id) if isinstance(message, m.StepCompleted) else None
    if task is not None:
        overlay.bar_payload(output_key(task.execution, task.run, task.step), record.offset)


def leave_unread(overlay: Overlay, record: Fetched) -> None:
    """The same without reading it: its key tells the family of executions that it may concern."""
    if record.key == RULES_KEY:
        overlay.bar_rule_sets(record.offset)
    root = root_of(record)
    if root is None:
        return
    overlay.bar(root, record.offset)
    state = overlay.state(root)
    for retry in state.retries if state is not None else ():
        overlay.bar(retry_id(root, retry.number), record.offset)
