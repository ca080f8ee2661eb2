"""Connections to PostgreSQL: the one place where an address becomes an engine."""

from __future__ import annotations

import re
from typing import Any

import orjson
import sqlalchemy
from sqlalchemy.exc import ArgumentError

from flowpilot.core.errors import FlowPilotError

_DRIVER = "postgresql+psycopg2://"

# A server that vanishes without a word is noticed after seconds, not after the kernel's quarter of an hour.
_CONNECT = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}


class DatabaseAddressError(FlowPilotError):
    """FLOWPILOT_DATABASE_URL is not an address of a PostgreSQL database; the message says what one looks like."""


def driver_url(url: str) -> str:
    """`url` with the driver that is installed; an address that names a driver is left alone.

    SQLAlchemy 2.1 takes `postgresql://` for psycopg 3, and never took `postgres://`.
    """
    return re.sub(r"\Apostgres(?:ql)?://", _DRIVER, url)


def parsed_url(url: str) -> sqlalchemy.URL:
    """The parts of `url`. Raises `DatabaseAddressError`, which does not quote it."""
    try:
        address = sqlalchemy.make_url(driver_url(url))
        is_postgres = address.get_backend_name() == "postgresql"
    except (ArgumentError, ValueError):
        is_postgres = False
    if not is_postgres:
        raise DatabaseAddressError(
            "FLOWPILOT_DATABASE_URL cannot be used: it should look like postgresql://user@host:5432/database"
        )
    if url.count("@") > 1:
        # Which one ends the password is a guess, and a wrong one makes a part of it the host, for errors to quote.
        raise DatabaseAddressError("FLOWPILOT_DATABASE_URL has more than one @: write one in the password as %40")
    return address


def connect(url: str, *, application: str = "flowpilot", options: str = "", **more: Any) -> sqlalchemy.Engine:
    """An engine for `url`. Nothing is connected yet; `options` are server settings (`-c name=value`).

    Raises DatabaseAddressError.
    """
    address = parsed_url(url)
    arguments = {**_CONNECT, "application_name": application, "options": f"-c timezone=UTC {options}".strip()}
    return sqlalchemy.create_engine(
        address,
        connect_args=arguments,
        json_serializer=lambda value: orjson.dumps(value).decode(),
        # jsonb writes 1e300 with all its digits: those are a float again, as they were.
        json_deserializer=orjson.loads,
        **more,
    )
