"""Traces: the W3C traceparent that an execution was started with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workflow_execution", sa.Column("traceparent", sa.Text(collation="C"), nullable=True))
