"""Array literals: whatever stands in a value stays within its element."""

from __future__ import annotations

from typing import Any

import pytest

from flowpilot.adapters.postgres.bulk import TASK_TYPES, Shapes, literal, source


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("text", [], "{}"),
        ("text", ["a", "NULL", ""], '{"a","NULL",""}'),
        ("text", ["a", None], '{"a",NULL}'),
        ("text", ['","'], r'{"\",\""}'),
        ("text", ["}", 'a"b', "c\\"], r'{"}","a\"b","c\\"}'),
        ("bigint", [1, None, -5], "{1,NULL,-5}"),
        ("jsonb", [{"a": '"'}, None, "x"], r'{"{\"a\":\"\\\"\"}",NULL,"\"x\""}'),
        ("bytea", [b"\x00\xff", None, b""], r'{"\\x00ff",NULL,"\\x"}'),
        ("timestamptz", ["2026-01-01T00:00:00Z", None], '{"2026-01-01T00:00:00Z",NULL}'),
    ],
)
def test_literals(kind: str, values: list[Any], expected: str) -> None:
    assert literal(kind, values) == expected


@pytest.mark.parametrize(
    ("kind", "value"),
    [("text", 5), ("text", [1]), ("bigint", "1,2"), ("bigint", 1.5), ("jsonb", 2**64), ("jsonb", b"x")],
)
def test_values_of_another_kind_are_refused(kind: str, value: Any) -> None:
    for others in ([], [None]):
        with pytest.raises((TypeError, ValueError)):
            literal(kind, [*others, value])


def test_rows_are_grouped_by_what_they_change() -> None:
    shapes = Shapes(TASK_TYPES)
    shapes.add((1,), {"seq": 1, "status": "ready"})
    shapes.add((2,), {"status": "ready", "seq": 2})
    shapes.add((3,), {"status": "failed", "seq": 3, "error": {}})
    assert {shape: [key for (key,) in keys] for shape, (keys, _) in shapes.groups.items()} == {
        ("status", "seq"): [1, 2],
        ("status", "seq", "error"): [3],
    }
    assert source(shapes.columns(("status", "seq"))) == 'unnest(%s::text[], %s::bigint[]) AS x("status", "seq")'
