"""Retries: why somebody asked for one, and whose results it took over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workflow_execution", sa.Column("retry_reason", sa.Text(), nullable=True))
    op.add_column("task_execution", sa.Column("taken_from", sa.Text(collation="C"), nullable=True))
