"""What should not be, as rows: bounded however many there are, and acknowledged by operators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC

from sqlalchemy import Engine, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from flowpilot.adapters.postgres.models import AuditAcknowledgement, AuditDivergence
from flowpilot.ports.audit import FURTHER, KEPT_DIVERGENCES, Acknowledgement, Divergence, further


def insert_divergences(session: Session, divergences: Sequence[Divergence]) -> None:
    """Store what is not stored yet. The writer of a partition has its position locked: nobody else counts."""
    by_place: dict[tuple[str, int], dict[str, Divergence]] = {}
    for divergence in divergences:
        of_place = by_place.setdefault((divergence.topic, divergence.partition), {})
        of_place.setdefault(divergence.fingerprint, divergence)
    for place, found in by_place.items():
        _insert_of(session, *place, found)


def _insert_of(session: Session, topic: str, partition: int, found: Mapping[str, Divergence]) -> None:
    known = set(
        session.scalars(select(AuditDivergence.fingerprint).where(AuditDivergence.fingerprint.in_(list(found))))
    )
    new = [divergence for fingerprint, divergence in found.items() if fingerprint not in known]
    here = (AuditDivergence.topic == topic) & (AuditDivergence.partition == partition)
    listed = select(func.count()).select_from(AuditDivergence).where(here, AuditDivergence.reason != FURTHER)
    room = max(0, KEPT_DIVERGENCES - (session.scalar(listed) or 0))
    if new[:room]:
        session.execute(insert(AuditDivergence).on_conflict_do_nothing(), [_row(each) for each in new[:room]])
    if new[room:]:
        stood = select(func.coalesce(func.sum(AuditDivergence.seq), 0)).where(
            here, AuditDivergence.reason == FURTHER
        )
        count = int(session.scalar(stood) or 0) + len(new[room:])
        session.execute(delete(AuditDivergence).where(here, AuditDivergence.reason == FURTHER))
        session.execute(insert(AuditDivergence), [_row(further(topic, partition, new[-1].offset, count))])


def _row(divergence: Divergence) -> dict[str, object]:
    row = divergence.cut()._asdict()
    row["execution_id"] = row.pop("execution")
    return {**row, "fingerprint": divergence.fingerprint}


class PostgresAcknowledgements:
    """See `flowpilot.ports.audit.Acknowledgements`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def acknowledged(self) -> dict[str, Acknowledgement]:
        """See the port."""
        with Session(self._engine) as session:
            rows: Iterable[AuditAcknowledgement] = session.scalars(select(AuditAcknowledgement)).all()
        return {
            row.fingerprint: Acknowledgement(
                row.fingerprint,
                row.actor,
                row.reason,
                row.acknowledged_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            )
            for row in rows
        }

    def acknowledge(self, findings: Mapping[str, str], actor: str, reason: str) -> int:
        """See the port."""
        if not findings:
            return 0
        rows = [
            {"fingerprint": fingerprint, "actor": actor, "reason": reason, "what": what}
            for fingerprint, what in findings.items()
        ]
        added = insert(AuditAcknowledgement).values(rows).on_conflict_do_nothing()
        with Session(self._engine) as session, session.begin():
            return len(session.scalars(added.returning(AuditAcknowledgement.fingerprint)).all())
