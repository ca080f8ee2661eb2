"""aiokafka's record batches, read so that a header's name may be any bytes and a compressed batch of any size.

aiokafka decodes names as strict UTF-8 and refuses a record with another name: the fetch fails, the position
stays, and the process would end at every start. Kafka's protocol calls a name a string, and no broker checks it.
It decompresses without a limit, and a few KB may become all memory there is: beyond `MOST_BYTES`, which is what
librdkafka takes, the records of the batch are delivered as lost.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.memory_records import _MemoryRecordsPy

from flowpilot.ports.log import RECORD_LOST

MOST_BYTES = 100_000_000

_MAGIC_WITH_HEADERS = 2
_HEAD = _DefaultRecordBatchPy.HEADER_STRUCT.size
_GZIP = 31  # zlib's name for the format
# Of a batch, how many times its size is tried first.
_RATIO = 16


def read_leniently() -> None:
    """Have every aiokafka consumer of this process read batches in this way."""
    fetcher.MemoryRecords = LenientRecords


class LenientRecords(_MemoryRecordsPy):  # type: ignore[misc]  # it is final, and the only place where batches are made
    """The batches of one fetch."""

    def next_batch(self, *args: Any) -> Any:
        """The next one, None if there is none."""
        data = self._next_slice
        batch = super().next_batch(*args)
        if data is None or batch is None or data[self.MAGIC_OFFSET] < _MAGIC_WITH_HEADERS:
            return batch
        return _Batch(batch, data)


class _Batch:
    """A batch, read by aiokafka's compiled code; from the first record that it refuses on, by the lenient code."""

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch, self._data = batch, data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)  # of a control batch

    def __iter__(self) -> Iterator[Any]:
        batch = self._batch
        if not _fits(batch.compression_type, self._data[_HEAD:]):
            for offset in range(batch.base_offset, batch.next_offset):
                headers = [(RECORD_LOST, None)]
                yield _DefaultRecordPy(offset, batch.max_timestamp, batch.timestamp_type, None, b"", headers)
            return
        read = 0
        try:
            for record in self._batch:
                read += 1
                yield record
        except (UnicodeDecodeError, CorruptRecordException):  # the compiled code, and that in Python
            yield from islice(_LenientBatch(self._data), read, None)


class _LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]  # it is final
    """Raises `CorruptRecordException` only for what is corrupt."""

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer: bytearray = _Buffer(self._buffer)


class _Buffer(bytearray):
    """Its parts are decoded as PEP 383 has it; only names of headers are."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return _Part(found) if isinstance(index, slice) else found


class _Part(bytearray):
    def decode(self, encoding: str = "utf-8", errors: str = "surrogateescape") -> str:
        return super().decode(encoding, errors)


def _fits(codec: int, data: memoryview) -> bool:
    """Whether the records of a batch take `MOST_BYTES` at most. Snappy makes 21 bytes of one: it always fits."""
    if codec == _DefaultRecordBatchPy.CODEC_GZIP:
        return _fits_of_gzip(data)
    if codec not in (_DefaultRecordBatchPy.CODEC_LZ4, _DefaultRecordBatchPy.CODEC_ZSTD):
        return True
    import cramjam  # here, as few producers of events compress

    unpack = cramjam.lz4 if codec == _DefaultRecordBatchPy.CODEC_LZ4 else cramjam.zstd
    room = _RATIO * len(data)
    while True:
        try:
            unpack.decompress_into(data, bytearray(min(room, MOST_BYTES)))
            return True
        except cramjam.DecompressionError:
            if room >= MOST_BYTES:
                return False
            room *= _RATIO


def _fits_of_gzip(data: bytes | memoryview) -> bool:
    left, member = MOST_BYTES, zlib.decompressobj(_GZIP)
    try:
        while data:
            left -= len(member.decompress(data, 1 << 20))
            if left < 0:
                return False
            data = member.unconsumed_tail
            if member.eof:  # there may be another
                data, member = member.unused_data, zlib.decompressobj(_GZIP)
    except zlib.error:
        pass  # whoever decompresses it says so
    return True
