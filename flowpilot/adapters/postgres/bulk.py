"""Many rows in one statement: columns travel as array literals and come out of `unnest`.

An array literal is one constant for the server to parse and one string for the driver to quote; a list of
values would be thousands of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection, CursorResult
from sqlalchemy.dialects import postgresql

from flowpilot.adapters.postgres.models import AuditEvent, TaskExecution, WorkflowExecution

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


def column_types(model: type[Any]) -> dict[str, str]:
    """Column name to PostgreSQL type of a model's table."""
    found = {}
    for column in model.__table__.columns:
        name = column.type.compile(dialect=_DIALECT).partition(" COLLATE")[0].lower()
        found[column.name] = "timestamptz" if name == "timestamp with time zone" else name
    return found


EXECUTION_TYPES = column_types(WorkflowExecution)
TASK_TYPES = column_types(TaskExecution)
EVENT_TYPES = column_types(AuditEvent)


def run(connection: Connection, sql: str, *arrays: str) -> CursorResult[*tuple[Any, ...]]:
    """Execute `sql`, whose `%s` are array literals."""
    return connection.exec_driver_sql(sql, arrays)


def source(columns: Iterable[tuple[str, str]]) -> str:
    """`unnest(%s::type[], …) AS x(name, …)` of (name, type) pairs."""
    columns = list(columns)
    arrays = ", ".join(f"%s::{kind}[]" for _, kind in columns)
    return f"unnest({arrays}) AS x({identifiers(name for name, _ in columns)})"


def identifiers(names: Iterable[str]) -> str:
    """`names` quoted and separated by commas."""
    return ", ".join(f'"{name}"' for name in names)


def literal(kind: str, values: Iterable[Any]) -> str:
    """`values` as the literal of a `kind[]`. Raises TypeError or ValueError for one of another kind."""
    return "{" + _ELEMENTS[kind](values) + "}"


def _numbers(values: Iterable[Any]) -> str:
    return ",".join(["NULL" if value is None else f"{value:d}" for value in values])


def _texts(values: Iterable[Any]) -> str:
    items = list(values)
    if None not in items:
        # Names and times need no escapes: one look at all of them instead of two at each.
        joined = '","'.join(items)
        if "\\" not in joined and joined.count('"') == 2 * len(items) - 2:
            return f'"{joined}"'
    return ",".join(["NULL" if value is None else _quoted(value) for value in items])


def _quoted(value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where text belongs")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _jsons(values: Iterable[Any]) -> str:
    return ",".join(["NULL" if value is None else _quoted(orjson.dumps(value).decode()) for value in values])


def _bytes(values: Iterable[Any]) -> str:
    return ",".join(["NULL" if value is None else f'"\\\\x{value.hex()}"' for value in values])


_ELEMENTS: dict[str, Callable[[Iterable[Any]], str]] = {
    "bigint": _numbers,
    "integer": _numbers,
    "text": _texts,
    "timestamptz": _texts,
    "int8multirange": _texts,
    "jsonb": _jsons,
    "bytea": _bytes,
}


class Shapes:
    """Rows grouped by which columns they change: each group is one statement that names no other column."""

    def __init__(self, types: Mapping[str, str]) -> None:
        self._types = types
        self.groups: dict[tuple[str, ...], tuple[list[tuple[Any, ...]], list[dict[str, Any]]]] = {}

    def add(self, key: tuple[Any, ...], row: dict[str, Any]) -> None:
        """A row and what identifies it."""
        # In the table's order, so that equal sets of columns are one group whatever was set first.
        shape = tuple(name for name in self._types if name in row)
        group = self.groups.get(shape)
        if group is None:
            group = self.groups[shape] = ([], [])
        group[0].append(key)
        group[1].append(row)

    def columns(self, shape: Sequence[str]) -> list[tuple[str, str]]:
        """(name, type) of the columns of a shape."""
        return [(name, self._types[name]) for name in shape]

    def arrays(self, shape: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """The rows' values, an array literal a column."""
        return [literal(self._types[name], [row.get(name) for row in rows]) for name in shape]
