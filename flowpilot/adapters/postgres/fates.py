"""What became of trigger records: kept as ranges of offsets, asked for one by one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import BigInteger, Connection, cast, select
from sqlalchemy.orm import Session

from flowpilot.adapters.postgres.bulk import column_types, identifiers, literal, run, source
from flowpilot.adapters.postgres.models import DeadLetterRow, TriggerFate, WorkflowExecution
from flowpilot.ports.audit import Repeat
from flowpilot_schemas.triggers import TriggerFiltered

_REFUSED = "refused"
_TYPES = [(name, kind) for name, kind in column_types(TriggerFate).items() if name != "id"]
_INSERT = (
    f"INSERT INTO trigger_fate ({identifiers(name for name, _ in _TYPES)}) "
    f"SELECT * FROM {source(_TYPES)} ON CONFLICT DO NOTHING"
)


class Fate(NamedTuple):
    """What became of a record for one workflow (None: for all that read the topic).

    `fate`: `started`, `refused`, `duplicate`, `key_conflict` (each of `execution`, `run`), `filtered` or
    `dead_letter`, with the `reason`, and a sentence where there is one. `topic_id` tells topics of one name apart;
    dead letters do not know it.
    """

    workflow: str | None
    fate: str
    reason: str | None = None
    detail: str | None = None
    execution: str | None = None
    run: int | None = None
    topic_id: str | None = None


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
    """All that is known of a record, by workflow; three queries."""
    execution = WorkflowExecution
    started = session.execute(
        select(execution).where(
            execution.origin_topic == topic,
            execution.origin_partition == partition,
            execution.origin_offset == offset,
        )
    ).scalars()
    found = [
        Fate(
            row.workflow_name,
            _REFUSED if row.status == _REFUSED else "started",
            detail=row.reason if row.status == _REFUSED else None,
            execution=row.execution_id,
            run=row.run,
            topic_id=row.origin_topic_id,
        )
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
        select(letter.workflow, letter.reason, letter.detail)
        .where(letter.topic == topic, letter.partition == partition, letter.offset == offset)
        .order_by(letter.id)
    )
    found += [Fate(workflow, "dead_letter", reason, detail) for workflow, reason, detail in letters]
    # A crash between output and commit says some things twice.
    return sorted(dict.fromkeys(found), key=lambda fate: fate.workflow or "")
