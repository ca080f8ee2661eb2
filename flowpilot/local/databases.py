"""Databases on a PostgreSQL server, named by the address of the server or of any database on it."""

from __future__ import annotations

import re


def create_database(server_url: str, name: str) -> str:
    """Create the database `name` unless it is there; its address."""
    from psycopg2 import errors

    try:
        _execute(server_url, "CREATE DATABASE {}", name)
    except (errors.DuplicateDatabase, errors.UniqueViolation):  # the latter: somebody else, at the same moment
        pass
    return _address(server_url, name)


def drop_database(server_url: str, name: str) -> None:
    """Drop the database `name` if it is there, ending the sessions in it."""
    _execute(server_url, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


def _execute(server_url: str, statement: str, name: str) -> None:
    import psycopg2
    from psycopg2 import sql

    connection = psycopg2.connect(_address(server_url, "postgres"))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(sql.Identifier(name)))
    finally:
        connection.close()


def _address(server_url: str, name: str) -> str:
    server = re.sub(r"(://[^/]+)(/.*)?$", r"\1", server_url)
    return f"{server}/{name}"
