"""Divergences are told apart by their content, and operators acknowledge them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from flowpilot.ports.audit import Divergence

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_FIELDS = ("reason", "detail", "topic", "partition", "offset", "execution_id", "run", "seq", "key", "body")


def upgrade() -> None:
    op.create_table(
        "audit_acknowledgement",
        sa.Column("fingerprint", sa.Text(collation="C"), nullable=False),
        sa.Column("acknowledged_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("what", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_audit_acknowledgement"),
    )
    op.add_column("audit_divergence", sa.Column("fingerprint", sa.Text(collation="C"), nullable=True))
    table = sa.table("audit_divergence", sa.column("id"), sa.column("fingerprint"), *map(sa.column, _FIELDS))
    connection = op.get_bind()
    for row in connection.execute(sa.select(table.c.id, *(table.c[name] for name in _FIELDS))).all():
        *fields, key, body = row[1:]
        found = Divergence._make([*fields, key and bytes(key), None if body is None else bytes(body)])
        connection.execute(sa.update(table).where(table.c.id == row.id).values(fingerprint=found.fingerprint))
    op.alter_column("audit_divergence", "fingerprint", nullable=False)
    op.drop_constraint("uq_audit_divergence_record", "audit_divergence")
    op.create_unique_constraint("uq_audit_divergence_fingerprint", "audit_divergence", ["fingerprint"])
    op.create_index("ix_audit_divergence_place", "audit_divergence", ["topic", "partition"])
