"""The headers of the records that became dead letters. Of those that were stored before they are not known."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("dead_letter", sa.Column("headers", JSONB(none_as_null=True), nullable=True))
    op.add_column("dead_letter", sa.Column("headers_left_out", sa.Integer, nullable=True))
