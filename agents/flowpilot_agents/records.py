"""aiokafka's record batches, read so that a header's name may be any bytes.

aiokafka decodes names as strict UTF-8 and refuses a record with another name: the fetch fails, the position
stays, and the process would end at every start. Kafka's protocol calls a name a string, and no broker checks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy

_MAGIC_WITH_HEADERS = 2


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
