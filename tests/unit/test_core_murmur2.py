"""The partitioner, against the vectors of Kafka's own tests."""

from __future__ import annotations

import pytest

from flowpilot.core.murmur2 import murmur2, partition_of

# From Kafka's UtilsTest; they are signed there.
VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize("data", VECTORS)
def test_kafkas_vectors(data: bytes) -> None:
    assert murmur2(data) == VECTORS[data] & 0xFFFFFFFF


@pytest.mark.parametrize("length", range(20))
def test_every_length_of_tail_gives_32_bits(length: int) -> None:
    hashed = murmur2(b"\xff" * length)
    assert 0 <= hashed < 2**32
    assert hashed != murmur2(b"\xfe" * length) or length == 0


def test_the_partition_is_that_of_the_hash_without_its_sign() -> None:
    # Java: (murmur2 & 0x7fffffff) % partitions
    assert partition_of(b"21", 16) == ((-973932308) & 0x7FFFFFFF) % 16
    assert {partition_of(str(i).encode(), 7) for i in range(200)} == set(range(7))
