"""Indexes for what lists are narrowed by: when executions began; dead letters by reason, workflow and report."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_workflow_execution_started_at", "workflow_execution", ["started_at"])
    op.create_index("ix_dead_letter_reason_id", "dead_letter", ["reason", "id"])
    op.create_index(
        "ix_dead_letter_workflow_id",
        "dead_letter",
        ["workflow", "id"],
        postgresql_where=sa.text("workflow IS NOT NULL"),
    )
    op.create_index("ix_dead_letter_reported_at", "dead_letter", ["reported_at"])
