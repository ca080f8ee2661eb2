"""The audit record: its tables, and the trigger that keeps `audit_event` append only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_REFUSE = """
CREATE FUNCTION audit_event_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_event is append only: % is refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$
"""
_APPEND_ONLY = """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_event
FOR EACH STATEMENT EXECUTE FUNCTION audit_event_is_append_only()
"""


def upgrade() -> None:
    op.create_table(
        "audit_divergence",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("found_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("reason", sa.Text(collation="C"), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(collation="C"), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("execution_id", sa.Text(collation="C"), nullable=True),
        sa.Column("run", sa.BigInteger(), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("key", sa.LargeBinary(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_divergence")),
        sa.UniqueConstraint("topic", "partition", "offset", "reason", name="uq_audit_divergence_record"),
    )
    op.create_table(
        "audit_event",
        sa.Column("execution_id", sa.Text(collation="C"), nullable=False),
        sa.Column("run", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.Text(collation="C"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("step", sa.Text(collation="C"), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("topic", sa.Text(collation="C"), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("prev_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("execution_id", "run", "seq", name=op.f("pk_audit_event")),
    )
    op.create_table(
        "consumer_offset",
        sa.Column("topic", sa.Text(collation="C"), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("topic_id", sa.Text(collation="C"), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("topic", "partition", name=op.f("pk_consumer_offset")),
    )
    op.create_table(
        "dead_letter",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("topic", sa.Text(collation="C"), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("timestamp", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text(collation="C"), nullable=False),
        sa.Column("reason", sa.Text(collation="C"), nullable=False),
        sa.Column("workflow", sa.Text(collation="C"), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=True),
        sa.Column("value", sa.LargeBinary(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("truncated", sa.Boolean(), nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letter")),
        sa.UniqueConstraint(
            "topic",
            "partition",
            "offset",
            "timestamp",
            "source",
            "reason",
            "workflow",
            name="uq_dead_letter_record",
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_table(
        "workflow",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(collation="C"), nullable=False),
        sa.Column("version", sa.Text(collation="C"), nullable=False),
        sa.Column("definition", sa.Text(collation="C"), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("body", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("is_current", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("registered_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workflow")),
        sa.UniqueConstraint("name", "version", name=op.f("uq_workflow_name_version")),
    )
    op.create_index(op.f("ix_workflow_definition"), "workflow", ["definition"], unique=False)
    op.create_table(
        "step",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("workflow_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(collation="C"), nullable=False),
        sa.Column("step_order", sa.Integer(), nullable=False),
        sa.Column("queue", sa.Text(collation="C"), nullable=False),
        sa.Column("body", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(
            ["workflow_id"], ["workflow.id"], name=op.f("fk_step_workflow_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_step")),
        sa.UniqueConstraint("workflow_id", "name", name=op.f("uq_step_workflow_id_name")),
        sa.UniqueConstraint("workflow_id", "step_order", name=op.f("uq_step_workflow_id_step_order")),
    )
    op.create_table(
        "workflow_execution",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("execution_id", sa.Text(collation="C"), nullable=False),
        sa.Column("run", sa.BigInteger(), nullable=True),
        sa.Column("workflow_id", sa.BigInteger(), nullable=True),
        sa.Column("workflow_name", sa.Text(collation="C"), nullable=True),
        sa.Column("workflow_version", sa.Text(collation="C"), nullable=True),
        sa.Column("definition", sa.Text(collation="C"), nullable=True),
        sa.Column("key", sa.Text(collation="C"), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=True),
        sa.Column("origin_topic", sa.Text(), nullable=True),
        sa.Column("origin_topic_id", sa.Text(), nullable=True),
        sa.Column("origin_partition", sa.Integer(), nullable=True),
        sa.Column("origin_offset", sa.BigInteger(), nullable=True),
        sa.Column("parent_execution_id", sa.BigInteger(), nullable=True),
        sa.Column("status", sa.Text(collation="C"), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("output", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("errors", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["parent_execution_id"],
            ["workflow_execution.id"],
            name=op.f("fk_workflow_execution_parent_execution_id"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["workflow_id"], ["workflow.id"], name=op.f("fk_workflow_execution_workflow_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workflow_execution")),
        sa.UniqueConstraint("execution_id", "run", name=op.f("uq_workflow_execution_execution_id_run")),
        postgresql_with={"fillfactor": "85"},
    )
    op.create_index(
        "ix_workflow_execution_key",
        "workflow_execution",
        ["key"],
        unique=False,
        postgresql_where=sa.text("key IS NOT NULL"),
    )
    op.create_index(
        "ix_workflow_execution_parent",
        "workflow_execution",
        ["parent_execution_id"],
        unique=False,
        postgresql_where=sa.text("parent_execution_id IS NOT NULL"),
    )
    op.create_index("ix_workflow_execution_status_id", "workflow_execution", ["status", "id"], unique=False)
    op.create_index(op.f("ix_workflow_execution_workflow_id"), "workflow_execution", ["workflow_id"], unique=False)
    op.create_index(
        "ix_workflow_execution_workflow_name_id", "workflow_execution", ["workflow_name", "id"], unique=False
    )
    op.create_index(
        "uq_workflow_execution_stub",
        "workflow_execution",
        ["execution_id"],
        unique=True,
        postgresql_where=sa.text("run IS NULL"),
    )
    op.create_table(
        "step_dependency",
        sa.Column("step_id", sa.BigInteger(), nullable=False),
        sa.Column("depends_on_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["depends_on_id"], ["step.id"], name=op.f("fk_step_dependency_depends_on_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["step_id"], ["step.id"], name=op.f("fk_step_dependency_step_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("step_id", "depends_on_id", name=op.f("pk_step_dependency")),
    )
    op.create_index(op.f("ix_step_dependency_depends_on_id"), "step_dependency", ["depends_on_id"], unique=False)
    op.create_table(
        "task_execution",
        sa.Column("workflow_execution_id", sa.BigInteger(), nullable=False),
        sa.Column("step_name", sa.Text(collation="C"), nullable=False),
        sa.Column("step_id", sa.BigInteger(), nullable=True),
        sa.Column("status", sa.Text(collation="C"), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=True),
        sa.Column("broker_task_id", sa.Text(), nullable=True),
        sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("output", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.ForeignKeyConstraint(
            ["step_id"], ["step.id"], name=op.f("fk_task_execution_step_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["workflow_execution_id"],
            ["workflow_execution.id"],
            name=op.f("fk_task_execution_workflow_execution_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("workflow_execution_id", "step_name", name=op.f("pk_task_execution")),
        postgresql_with={"fillfactor": "85"},
    )
    op.create_index(op.f("ix_task_execution_step_id"), "task_execution", ["step_id"], unique=False)
    op.execute(_REFUSE)
    op.execute(_APPEND_ONLY)
