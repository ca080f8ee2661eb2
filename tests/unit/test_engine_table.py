"""What the table keeps, and how much of it."""

from __future__ import annotations

import tracemalloc

import orjson

from flowpilot.engine.table import Entry, PartitionTable


def test_a_value_takes_no_more_memory_than_its_length() -> None:
    # An encoder gives bytes with the room of its whole buffer: kept as they are, each state took 4 KiB.
    table = PartitionTable(0)
    tracemalloc.start()
    try:
        for number in range(500):
            value = orjson.dumps({"number": number, "text": "x" * 200})
            table.put(b"%d" % number, Entry(value, number, 1))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept / 500 < 700
    assert table.get(b"7") == orjson.dumps({"number": 7, "text": "x" * 200})
