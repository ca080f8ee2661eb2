"""Kafka's own choice of a partition for a key: that of Java clients and of librdkafka's `murmur2*`."""

from __future__ import annotations

_SEED = 0x9747B28C
_M = 0x5BD1E995
_32_BITS = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """MurmurHash2 with Kafka's seed, as an unsigned 32-bit number."""
    length = len(data)
    whole = length & ~3
    hashed = (_SEED ^ length) & _32_BITS
    for start in range(0, whole, 4):
        k = int.from_bytes(data[start : start + 4], "little") * _M & _32_BITS
        k = (k ^ k >> 24) * _M & _32_BITS
        hashed = hashed * _M & _32_BITS ^ k
    if length > whole:
        hashed = (hashed ^ int.from_bytes(data[whole:], "little")) * _M & _32_BITS
    hashed = (hashed ^ hashed >> 13) * _M & _32_BITS
    return hashed ^ hashed >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of `key` in a topic of so many `partitions`."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
