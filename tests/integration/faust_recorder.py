"""The engine's process with a tiny engine that records what the binding does with it.

Run as a program; settings from the environment. `RECORDER_JOURNAL` is a file of JSON lines, one a call.
An event's value may be JSON with `do`: `fail` (raise), `stop` (stop the partition), `hang` (never end).
`RECORDER_REWIND`: `assign` returns this much less than the committed offset, once.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence

from flowpilot.engine.table import Entry, PartitionTable, headers_of
from flowpilot.ports.log import Fetched, Producer, Record
from flowpilot.ports.meter import Meter
from flowpilot.settings import Settings, load_settings


class CountingTable(PartitionTable):
    """A table that counts what recovery loads into it."""

    loaded = 0

    def load(self, record: Fetched) -> None:
        self.loaded += 1
        super().load(record)


class Recorder:
    """Writes each event as a state record of its key, and each call into the journal."""

    def __init__(self, settings: Settings, producer: Producer, meter: Meter) -> None:
        self._topics = settings.topics
        self._producer = producer
        self._journal = os.open(os.environ["RECORDER_JOURNAL"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._rewind = int(os.environ.get("RECORDER_REWIND", "0"))
        self._tables: dict[int, CountingTable] = {}
        self._epochs: dict[int, int] = {}
        self._busy = False
        self._ticked = False
        self.stopped: Mapping[int, str] = {}

    def note(self, call: str, **what: object) -> None:
        line = json.dumps({"call": call, "pid": os.getpid(), "at": time.time(), **what})
        os.write(self._journal, line.encode() + b"\n")

    def table(self, partition: int) -> CountingTable:
        if partition not in self._tables:
            self._tables[partition] = CountingTable(partition)
        return self._tables[partition]

    async def assign(self, partition: int, committed: int | None) -> int:
        self._enter("assign")
        table = self.table(partition)
        self._epochs[partition] = table.highest_epoch + 1
        entries = {key.decode(): (entry.value or b"").decode() for key, entry in table.items()}
        read_to, loaded, table.loaded = table.next_changelog_offset, table.loaded, 0
        await self._write(partition, b"wm", b"claim", -1)
        start = max(0, (committed or 0) - self._rewind)
        self._rewind = 0
        self.note(
            "assign", partition=partition, committed=committed, start=start, read_to=read_to,loaded=loaded,
            epoch=self._epochs[partition], entries=entries,
        )  # fmt: skip
        self._busy = False
        return start

    def cut_short(self) -> None:
        """It takes no record by itself."""

    async def process(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        self._enter("process")
        finished = []
        for record in batch:
            do = json.loads(record.value or b"{}").get("do")
            if do == "fail":
                raise RuntimeError("told to fail")
            if do == "hang":
                self.note("hang", partition=record.partition, offset=record.offset)
                await asyncio.Event().wait()
            if do == "stop":
                self.stopped = {**self.stopped, record.partition: "told to stop"}
            if record.partition not in self.stopped:
                finished.append(record)
        for delivery in await self._producer.send([self._state(record) for record in finished]):
            self.table(delivery.partition).next_changelog_offset = delivery.offset + 1
        for partition in {record.partition for record in finished}:
            offsets = [record.offset for record in finished if record.partition == partition]
            self.note("process", partition=partition, offsets=offsets)
        self._busy = False
        return finished

    def _state(self, record: Fetched) -> Record:
        headers = headers_of(record.offset, self._epochs[record.partition])
        return Record(self._topics.changelog, record.key, record.value, record.partition, headers)

    async def _write(self, partition: int, key: bytes, value: bytes, src: int) -> None:
        epoch = self._epochs[partition]
        record = Record(self._topics.changelog, key, value, partition, headers_of(src, epoch))
        [delivery] = await self._producer.send([record])
        table = self.table(partition)
        table.put(key, Entry(value, src, epoch))
        table.next_changelog_offset, table.highest_epoch = delivery.offset + 1, epoch

    def revoke(self, partition: int) -> None:
        if self._busy:
            raise RuntimeError("revoke during another call")
        self.note("revoke", partition=partition)
        self._tables.pop(partition, None)

    async def tick(self) -> None:
        self._enter("tick")
        if not self._ticked:
            self._ticked = True
            self.note("tick")
        await asyncio.sleep(0.001)
        self._busy = False

    def _enter(self, call: str) -> None:
        if self._busy:
            raise RuntimeError(f"{call} during another call")
        self._busy = True


if __name__ == "__main__":
    from flowpilot_agents.start import run

    run(load_settings(), Recorder)
