"""Whether a database stands at this release's newest migration, asked without SQLAlchemy and Alembic: they take a
second to load, which `flowpilot dev` would spend at every start."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import psycopg2

_VERSIONS = Path(__file__).parent / "migrations" / "versions"
_PATIENCE = 5  # seconds


def is_current(database_url: str) -> bool:
    """`database_url` as libpq takes it. False also in doubt: `migrations.upgrade` knows, and is idempotent."""
    try:
        with (
            closing(psycopg2.connect(database_url, connect_timeout=_PATIENCE)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SELECT to_regclass('alembic_version')")
            if cursor.fetchone() == (None,):  # asked first: a missing table is an error in the server's log
                return False
            cursor.execute("SELECT version_num FROM alembic_version")
            return [row[0] for row in cursor] == [newest()]
    except psycopg2.Error:
        return False


def newest() -> str:
    """The newest revision, by the files' names, which begin with it and are in their order."""
    return max(path.name for path in _VERSIONS.glob("[0-9]*_*.py")).partition("_")[0]
