"""PostgreSQL as the roles and the command line reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy
from sqlalchemy.exc import OperationalError, ProgrammingError, SQLAlchemyError

from flowpilot.adapters.postgres.engine import connect, parsed_url
from flowpilot.core.errors import FlowPilotError
from flowpilot.settings import Settings

if TYPE_CHECKING:
    from flowpilot.adapters.postgres.migrations import SchemaState

Queries = TypeVar("Queries")

_NO_SUCH_DATABASE = "3D000"
_EXISTS_ALREADY = frozenset({"42P04", "23505"})
_NO_SUCH_TABLE = "42P01"


# Of one question of a process that serves others, in seconds; of a connection to ask it on.
_LONGEST_QUESTION, _LONGEST_QUEUE = 10, 5


class DatabaseUnreachable(FlowPilotError):
    """PostgreSQL did not answer, or does not let us in."""


class DatabaseRefused(FlowPilotError):
    """PostgreSQL answered and did not do what was asked; the message says what to do."""


def prepare_database(settings: Settings) -> bool:
    """Create the database if the server has none of that name, and bring it to this release's migrations.

    Idempotent; True if it was created. Raises `DatabaseUnreachable`, `DatabaseRefused`, `DatabaseAddressError`.
    """
    from flowpilot.adapters.postgres.migrations import upgrade  # Alembic is slow to import, and rarely needed

    url = settings.database_url.get_secret_value()
    with explained(settings):
        created = _create_if_missing(url)
        upgrade(url)
        return created


def schema_state(settings: Settings) -> SchemaState:
    """Where the database stands. Raises as `prepare_database` does."""
    from flowpilot.adapters.postgres.migrations import state

    with explained(settings):
        return state(settings.database_url.get_secret_value())


@contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Turns what SQLAlchemy raises into a sentence with what to do next; the password is in none of them."""
    try:
        yield
    except OperationalError as error:
        raise DatabaseUnreachable(
            f"PostgreSQL at {address(settings)} did not let us in: {_reason(error)}; "
            "start it or set FLOWPILOT_DATABASE_URL"
        ) from error
    except ProgrammingError as error:
        if _code(error) == _NO_SUCH_TABLE:
            raise DatabaseRefused(
                f"the database at {address(settings)} has no tables of FlowPilot's: run `flowpilot setup`"
            ) from error
        raise DatabaseRefused(f"PostgreSQL at {address(settings)} refused: {_reason(error)}") from error
    except SQLAlchemyError as error:
        raise DatabaseRefused(f"PostgreSQL at {address(settings)} failed: {_reason(error)}") from error


class Database:
    """PostgreSQL for a process that asks again and again, from several threads. Nothing is connected yet.

    A question takes at most ten seconds, and waits at most five for one of `connections`.
    """

    def __init__(self, settings: Settings, *, application: str, connections: int) -> None:
        self.settings = settings
        self.engine = connect(
            settings.database_url.get_secret_value(),
            application=application,
            options=f"-c statement_timeout={_LONGEST_QUESTION}s",
            pool_size=connections,
            max_overflow=0,
            pool_timeout=_LONGEST_QUEUE,
            pool_pre_ping=True,  # a server that was restarted costs nobody an error
        )

    def close(self) -> None:
        """Let go of all connections."""
        self.engine.dispose()


Asked = Settings | Database
"""Who answers: the database that the settings name, for one command, or one held by the process."""


@contextmanager
def asking(asked: Asked) -> Iterator[sqlalchemy.Engine]:
    """The database, for some questions. Raises `DatabaseUnreachable`, `DatabaseRefused`."""
    if isinstance(asked, Database):
        with explained(asked.settings):
            yield asked.engine
        return
    engine = connect(asked.database_url.get_secret_value(), application="flowpilot-cli")
    try:
        with explained(asked):
            yield engine
    finally:
        engine.dispose()


@contextmanager
def querying(asked: Asked, queries: Callable[[sqlalchemy.Engine], Queries]) -> Iterator[Queries]:
    """`queries` over the database. Raises as `asking`."""
    with asking(asked) as engine:
        yield queries(engine)


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def address(settings: Settings) -> str:
    """host:port/database."""
    url = parsed_url(settings.database_url.get_secret_value())
    return f"{url.host or 'the local socket'}:{url.port or 5432}/{url.database}"


def _create_if_missing(url: str) -> bool:
    engine = connect(url, application="flowpilot-setup")
    try:
        with engine.connect():
            return False
    except OperationalError as error:
        if _code(error) != _NO_SUCH_DATABASE and "does not exist" not in _reason(error):
            raise
        name = engine.url.database
        if not name or f'database "{name}"' not in _reason(error):
            raise
    finally:
        engine.dispose()
    maintenance = parsed_url(url).set(database="postgres")
    server = connect(maintenance.render_as_string(hide_password=False), isolation_level="AUTOCOMMIT")
    try:
        with server.connect() as connection:
            quoted = server.dialect.identifier_preparer.quote_identifier(name)
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {quoted} TEMPLATE template0 ENCODING 'UTF8'"))
    except ProgrammingError as error:
        if _code(error) not in _EXISTS_ALREADY:  # another set-up was quicker
            raise
        return False
    finally:
        server.dispose()
    return True


def _code(error: SQLAlchemyError) -> str | None:
    return getattr(getattr(error, "orig", None), "pgcode", None)


def _reason(error: SQLAlchemyError) -> str:
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
