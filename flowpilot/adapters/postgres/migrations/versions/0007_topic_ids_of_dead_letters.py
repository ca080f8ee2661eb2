"""Which topic of its name a dead letter's record was on: places of a topic that was made again are others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("dead_letter", sa.Column("topic_id", sa.Text(), nullable=True))
