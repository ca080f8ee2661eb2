"""`where`: what matches, what does not, and what cannot be told."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from flowpilot.core.where import Where, compiled
from flowpilot_schemas.codec import BadRecord

ORDER = {"amount": 150, "kind": "paid", "tags": ["new", "eu"], "vip": None, "at": "2026-01-31T00:00:00Z"}
EVENT = {"type": "order.paid", "source": "/shop", "id": "1"}


@pytest.mark.parametrize(
    ("where", "matches"),
    [
        ("data.amount > 100", True),
        ("data.amount > 100.5", True),
        ("data.amount > 1000", False),
        ('data.kind == "paid" && data.amount >= 150', True),
        ('data.kind in ["paid", "settled"]', True),
        ('data.tags.exists(t, t == "eu")', True),
        ("data.tags.all(t, size(t) < 3)", False),
        ('data.kind.matches("^p.*d$")', True),
        ("data.vip == null", True),
        ('timestamp(data.at) < timestamp("2027-01-01T00:00:00Z")', True),
        ("type(data.amount) == int", True),
        ('event.type.startsWith("order.")', True),
        ('event.type == "order.paid" || data.missing', True),
        # what is missing does not match, however it is asked for
        ("data.missing == 1", False),
        ("data.missing.deeper == 1", False),
        ("has(data.missing) && data.missing == 1", False),
        ("!has(data.missing)", True),
        ('data["missing"] == 1', False),
        ('data.tags[7] == "eu"', False),
        ("event.subject == null", False),
        # a macro's name in a text or a comment is none
        ('data.kind != ".map(" && data.kind != r"\\" // .filter(', True),
    ],
)
def test_what_matches(where: str, matches: bool) -> None:
    assert Where(where)(ORDER, EVENT) is matches


def test_a_plain_record_has_no_event() -> None:
    assert not Where('event.type == "order.paid"')(ORDER, None)


@pytest.mark.parametrize(
    ("where", "data"),
    [
        ("data.amount > 100", {"amount": "150"}),
        ("data.amount > 100", {"amount": None}),
        ("data.amount > 100", [1]),
        ("data.amount > 100", None),
        ("data.amount", {"amount": 150}),
        ("data.amount + 9223372036854775807 > 0", {"amount": 1}),
        ("1 / data.amount > 0", {"amount": 0}),
        ("int(data.amount) > 0", {"amount": "x"}),
        ("timestamp(data.amount) > timestamp(data.amount)", {"amount": "yesterday"}),
        ("data.a.matches(data.b)", {"a": "x", "b": "["}),
    ],
)
def test_what_cannot_be_told_is_a_reason_and_no_silence(where: str, data: Any) -> None:
    with pytest.raises(BadRecord) as raised:
        Where(where)(data, None)
    assert raised.value.reason == "where_failed"
    assert where in raised.value.detail


@pytest.mark.parametrize(
    "where",
    [
        *("", "data.", "x == 1", "data.f(1)", "data.a.filter(x, x) == []", "data.a.existsOne(x, x)", "\ud800"),
        *("data.a.//\nmap(x, x) == []", "data.a . map (data, data) == []", "data.a.exists(x, data.a.all(y, y))"),
        *("data.?a", "[1].map(data, data) == []", "'a' + \"'\".map(x, x)", "!" * 1_001),
    ],
)
def test_what_is_refused(where: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Where(where)
    assert isinstance(compiled(where), str)


def test_a_large_record_takes_no_long_time() -> None:
    """Bounds on a loaded machine: a filter over this list took twenty seconds."""
    data = {"items": [{"sku": f"s{number}"} for number in range(10_000)]}
    began = time.monotonic()
    assert not Where('data.items.exists(i, i.sku == "none")')(data, None)
    assert Where("!" * 996 + "true")(data, None)
    assert time.monotonic() - began < 3


def test_the_examples_of_the_documentation_can_be_used() -> None:
    text = (Path(__file__).parents[2] / "docs" / "triggers.md").read_text()
    examples = re.findall(r"""where=(?:'([^']+)'|"([^"]+)")""", text)
    assert len(examples) == 5
    for example in examples:
        assert isinstance(compiled("".join(example)), Where), example


@pytest.mark.parametrize(
    "where",
    [
        *(
            "data.l.all(x, data.l == data.l)",
            "data.l.exists(x, x in data.l && x < 0)",
            'data.l.all(x, data["l"] != [])',
        ),
        *("data.l.all(x, data.s + data.s != '')", "data.l.all(x, data.s.contains('b' + data.s) || true)"),
        *("(data.l + data.l).all(x, size(data.s) > 0)", "data.l.all(x, [x] != data.l)"),
        'data.t.exists(x, x.matches("[ab]*a[ab]{200}x"))',
        " && ".join(["data.l == data.l"] * 40),
        "[data].all(x, " + " && ".join(["x == x"] * 80) + ")",
    ],
)
def test_a_loop_over_what_is_large_is_refused_beforehand(where: str) -> None:
    data = {"l": list(range(30_000)), "s": "a" * 100_000, "t": ["ab" * 5] * 10_000, "limit": 3}
    begun = time.monotonic()
    with pytest.raises(BadRecord, match="too long on a record of this size"):
        Where(where)(data, None)
    assert time.monotonic() - begun < 2
    small = {"l": [1, 2, 3], "s": "a", "t": ["ab"], "limit": 3}
    assert Where(where)(small, None) in (True, False)


def test_an_ordinary_loop_over_a_large_record_is_evaluated() -> None:
    data = {"items": [{"sku": f"A-{i}", "n": i} for i in range(4_000)], "limit": 4_000}
    assert Where("data.items.all(item, item.n < data.limit)")(data, None)
    assert Where('data.items.exists(item, item.sku.matches("^A-39+$"))')(data, None)


def test_a_pattern_of_the_records_is_not_compiled_in_a_loop() -> None:
    with pytest.raises(ValueError, match="other patterns take long"):
        Where("data.l.exists(x, x.matches(data.p))")
    assert Where("data.s.matches(data.p)")({"s": "aa", "p": "^a+$"}, None)
