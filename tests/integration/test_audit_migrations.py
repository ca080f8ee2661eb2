"""Migrations: they give the tables that the models describe, once, whoever runs them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, Text, inspect

from flowpilot.adapters.postgres.engine import DatabaseAddressError, connect, driver_url
from flowpilot.adapters.postgres.migrations import state, upgrade
from flowpilot.adapters.postgres.models import Base
from flowpilot.adapters.postgres.revision import is_current, newest

pytestmark = pytest.mark.integration


def _differences(database_url: str) -> list[object]:
    engine = connect(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        found = list(compare_metadata(context, Base.metadata))
    engine.dispose()
    return found


def test_models_and_migrations_agree(database_url: str) -> None:
    upgrade(database_url)
    assert _differences(database_url) == []
    extra: Column[str] = Column("extra", Text)
    table = Base.metadata.tables["workflow"]
    table.append_column(extra)  # the check sees a model that no migration knows
    try:
        assert _differences(database_url) != []
    finally:
        table._columns.remove(extra)  # type: ignore[attr-defined]


def test_what_is_current_is_known_without_alembic(database_url: str) -> None:
    assert newest() == state(database_url).newest
    assert not is_current(database_url)
    upgrade(database_url, "0002")
    assert not is_current(database_url)
    upgrade(database_url)
    assert is_current(database_url)
    assert not is_current(database_url.rpartition("/")[0] + "/no_such_database")


def test_upgrades_at_the_same_time_and_again(database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upgrade, [database_url] * 4))
    upgrade(database_url)
    engine = connect(database_url)
    assert set(inspect(engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}
    engine.dispose()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://u@h/d", "postgresql+psycopg2://u@h/d"),
        ("postgresql://u@h/d", "postgresql+psycopg2://u@h/d"),
        ("postgresql+psycopg://u@h/d", "postgresql+psycopg://u@h/d"),
        ("mysql://postgres://", "mysql://postgres://"),
    ],
)
def test_addresses(given: str, used: str) -> None:
    assert driver_url(given) == used


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://u@h/d", "postgresql://h:port/d"])
def test_addresses_of_no_database(url: str) -> None:
    with pytest.raises(DatabaseAddressError, match="postgresql://user@host"):
        connect(url)
