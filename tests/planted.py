"""Secrets that the suite uses wherever a real one could stand: none may be printed by anything that it runs."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit, urlunsplit

# In every planted secret, and in nothing else.
MARK = "planted-secret-51ab7d"
PASSWORD, TOKEN, PROPERTY = f"{MARK}-password", f"{MARK}-token", f"{MARK}-property"

# For the roles. The broker of the tests asks for no login: librdkafka takes the password and does not use it.
ENVIRONMENT = {"FLOWPILOT_KAFKA_PROPERTIES": f"sasl.password={PROPERTY}"}


def with_password(database_url: str) -> str:
    """The address with a planted password, unless it has one. Embedded PostgreSQL takes any."""
    parts = urlsplit(database_url)
    user, at, place = parts.netloc.rpartition("@")
    if not at or ":" in user:
        return database_url
    return urlunsplit(parts._replace(netloc=f"{user}:{PASSWORD}@{place}"))


def printed_in(texts: Iterable[tuple[str, str]]) -> list[str]:
    """Of (where, text): each line in which a planted secret stands, with where."""
    return [
        f"{where}: {line}" for where, text in texts if MARK in text for line in text.splitlines() if MARK in line
    ]
