"""What became of trigger records: kept as ranges of offsets, asked for one by one."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import BigInteger, Connection, cast, select
from sqlalchemy.orm import Session

from flowpilot.adapters.postgres.bulk import column_types, identifiers, literal, run, source
from flowpilot.adapters.postgres.models import DeadLetterRow, TriggerFate, WorkflowExecution
from flowpilot.core.outcomes import Fate, begun, current
from flowpilot.ports.audit import Repeat
from flowpilot_schemas.triggers import TriggerFiltered

_TYPES = [(name, kind) for name, kind in column_types(TriggerFate).items() if name != "id"]
_INSERT = (
    f"INSERT INTO trigger_fate ({identifiers(name for name, _ in _TYPES)}) "
    f"SELECT * FROM {source(_TYPES)} ON CONFLICT DO NOTHING"
)


def insert_fates(connection: Connection, filtered: Iterable[TriggerFiltered], repeats: Iterable[Repeat]) -> None:
    """One row for each workflow and reason of each message, and for each repeat."""
    rows = [
        {
            "topic": message.topic,
            "topic_id": message.topic_id,
            "partition": message.partition,
            "offsets": "{" + ",".join(f"[{first},{last}]" for first, last in part.ranges) + "}",
            "workflow": part.workflow,
            "fate": "filtered",
            "reason": part.reason,
        }
        for message in filtered
        for part in message.filtered
    ]
    for repeat in repeats:
        row = repeat._asdict()
        row["execution_id"] = row.pop("execution")
        row["offsets"] = f"{{[{row['offset']:d},{row['offset']:d}]}}"
        rows.append(row)
    run(connection, _INSERT, *(literal(kind, [row.get(name) for row in rows]) for name, kind in _TYPES))


def fates_of(session: Session, topic: str, partition: int, offset: int) -> list[Fate]:
    """The current outcomes of a record, by workflow; three queries."""
    execution = WorkflowExecution
    started = session.execute(
        select(execution).where(
            execution.origin_topic == topic,
            execution.origin_partition == partition,
            execution.origin_offset == offset,
        )
    ).scalars()
    found = [
        begun(row.workflow_name, row.execution_id, row.run, row.origin_topic_id, row.status, row.reason, row.errors)
        for row in started
    ]
    kept = TriggerFate
    of_record = (kept.topic == topic, kept.partition == partition, kept.offsets.contains(cast(offset, BigInteger)))
    others = session.execute(
        select(kept, execution.workflow_name)
        .outerjoin(execution, (execution.execution_id == kept.execution_id) & (execution.run == kept.run))
        .where(*of_record)
        .order_by(kept.id)
    )
    for row, workflow in others:
        found.append(
            Fate(workflow or row.workflow, row.fate, row.reason, None, row.execution_id, row.run, row.topic_id)
        )
    letter = DeadLetterRow
    letters = session.execute(
        select(letter.workflow, letter.reason, letter.detail, letter.topic_id)
        .where(letter.topic == topic, letter.partition == partition, letter.offset == offset)
        .order_by(letter.id)
    )
    found += [
        Fate(workflow, "dead_letter", reason, detail, topic_id=topic_id)
        for workflow, reason, detail, topic_id in letters
    ]
    return current(found)
