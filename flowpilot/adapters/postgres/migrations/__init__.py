"""The schema's history (Alembic), applied by `upgrade`; shipped with the package, so that no checkout is needed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from flowpilot.adapters.postgres.engine import connect

# One upgrade at a time in a database, whoever starts it. Any constant does; this is "flowpilo" in ASCII.
_LOCK = int.from_bytes(b"flowpilo", "big")


def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the database to `revision`. Idempotent; concurrent calls wait for one another.

    Raises DatabaseAddressError, and SQLAlchemy's OperationalError if the server cannot be reached.
    """
    engine = connect(database_url, application="flowpilot-setup")
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
            connection.commit()  # the lock is the session's; a migration has a transaction of its own
            try:
                run(connection, revision)
            finally:
                connection.rollback()
                connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _LOCK})
                connection.commit()
    finally:
        engine.dispose()


class SchemaState(NamedTuple):
    """`current`: the database's revision, None without tables of ours. `known`: whether this release has it."""

    current: str | None
    newest: str
    known: bool


def state(database_url: str) -> SchemaState:
    """Where the database stands. Raises as `upgrade` does."""
    scripts = ScriptDirectory.from_config(configuration())
    engine = connect(database_url, application="flowpilot-setup")
    try:
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()
    revisions = {script.revision for script in scripts.walk_revisions()}
    return SchemaState(current, scripts.get_current_head() or "", current is None or current in revisions)


def configuration() -> Config:
    """Alembic's configuration, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def run(connection: Connection, revision: str) -> None:
    """Upgrade on a connection that holds the lock."""
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
