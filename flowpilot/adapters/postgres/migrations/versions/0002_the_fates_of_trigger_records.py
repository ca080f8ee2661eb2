"""The fates of trigger records: what started nothing, and the way from a record to what it started."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "trigger_fate",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("topic", sa.Text(collation="C"), nullable=False),
        sa.Column("topic_id", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("offsets", postgresql.INT8MULTIRANGE(), nullable=False),
        sa.Column("workflow", sa.Text(collation="C"), nullable=True),
        sa.Column("fate", sa.Text(collation="C"), nullable=False),
        sa.Column("reason", sa.Text(collation="C"), nullable=True),
        sa.Column("execution_id", sa.Text(collation="C"), nullable=True),
        sa.Column("run", sa.BigInteger(), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trigger_fate")),
        sa.UniqueConstraint("execution_id", "run", "seq", name="uq_trigger_fate_event"),
    )
    op.create_index("ix_trigger_fate_offsets", "trigger_fate", ["offsets"], unique=False, postgresql_using="gist")
    op.create_index(
        "ix_workflow_execution_origin",
        "workflow_execution",
        ["origin_topic", "origin_partition", "origin_offset"],
        unique=False,
        postgresql_where=sa.text("origin_topic IS NOT NULL"),
    )
