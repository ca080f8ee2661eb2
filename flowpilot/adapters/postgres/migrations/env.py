"""What Alembic runs: the migrations, on the connection that `upgrade` gives it."""

from __future__ import annotations

from alembic import context

from flowpilot.adapters.postgres.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
