"""aiokafka's batches as the engine reads them: whatever a name's bytes are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_UNCOMMITTED, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from flowpilot.engine.reading import read as read_event
from flowpilot.ports.log import Fetched, as_time
from flowpilot_agents import records as agent_records
from flowpilot_agents.records import LenientRecords
from flowpilot_agents.transport import fetched
from flowpilot_schemas.codec import BadRecord
from tests import envelopes
from tests.envelopes import GZIP, HOSTILE, LZ4, NONE, ZSTD, Envelope

GOOD = Envelope(headers=((b"a", b"1"),))


def read(data: bytes, made: Any = LenientRecords) -> list[Fetched]:
    tp = TopicPartition("t", 0)
    records = PartitionRecords(tp, made(data), [], 0, None, None, True, READ_UNCOMMITTED)
    return [fetched(record) for record in records]


def as_told(records: Sequence[tuple[Envelope, bytes | None]]) -> list[Fetched]:
    told = [envelope.around(value, offset=offset) for offset, (envelope, value) in enumerate(records)]
    return [record._replace(timestamp=as_time(record.timestamp)) for record in told]


def test_aiokafka_refuses_a_name_that_is_not_utf8() -> None:
    """A canary: what `flowpilot_agents.records` works around."""
    with pytest.raises((UnicodeDecodeError, CorruptRecordException)):
        read(envelopes.batch([(HOSTILE["a name in Latin-1"], b"v")]), MemoryRecords)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_records_are_read_whole_amid_good_ones(name: str) -> None:
    records = [(GOOD, b"1"), (HOSTILE[name], b"2"), (GOOD, None)]
    assert read(envelopes.batch(records)) == as_told(records)


@pytest.mark.parametrize("compression", [NONE, GZIP])
def test_batches_are_read_however_they_are_compressed(compression: int) -> None:
    records = [(GOOD, b"1" * 100), (HOSTILE["a name in Latin-1"], b"2" * 100)]
    assert read(envelopes.batch(records, compression)) == as_told(records)


@given(st.lists(st.tuples(envelopes.envelopes(), st.none() | st.binary(max_size=20)), min_size=1, max_size=5))
def test_any_envelope_is_read_as_it_was_produced(records: list[tuple[Envelope, bytes | None]]) -> None:
    times = [(envelope._replace(timestamp=envelope.timestamp % 2**40), value) for envelope, value in records]
    assert read(envelopes.batch(times)) == as_told(times)


@pytest.mark.parametrize("codec", [GZIP, LZ4, ZSTD])
def test_a_batch_too_large_to_decompress_is_lost_records(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if codec != GZIP:
        pytest.importorskip("cramjam")
    monkeypatch.setattr(agent_records, "MOST_BYTES", 1_000_000)
    fine, large = [(GOOD, bytes(900_000))], [(GOOD, b"1"), (GOOD, bytes(1_100_000)), (GOOD, b"3")]
    assert read(envelopes.batch(fine, codec)) == as_told(fine)
    found = read(envelopes.batch(large, codec))
    assert [record.offset for record in found] == [0, 1, 2]
    for record in found:
        with pytest.raises(BadRecord, match="record_unreadable"):
            read_event(record)


def test_what_is_corrupt_is_still_refused() -> None:
    data = bytearray(envelopes.batch([(GOOD, b"value")]))
    data[-8] ^= 0xFF
    with pytest.raises(CorruptRecordException):
        read(bytes(data))
