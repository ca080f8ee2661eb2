"""The audit writer: what roles leave on the log (history, dead letters, …) into the store, each exactly once.

What is read, and from where, is told in `reading`; here it becomes transactions. The positions live in the store
and move in the transaction that stores what was read, so a crash anywhere, a second writer or a store that went
away lead to the same rows. The group's own commits are for lag displays only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from flowpilot.audit.batches import BATCH, Definitions, batch_of, chunks, set_aside
from flowpilot.audit.observed import Observed
from flowpilot.audit.projection import project
from flowpilot.audit.reading import IDLE_POLL, ConsumerFactory, Reading
from flowpilot.ports.audit import AuditStore, BatchRefused, Outrun, Position, StoreUnavailable
from flowpilot.ports.log import Fetched, LogUnavailable, Reader, TopicCatalog
from flowpilot.ports.meter import OFF, Meter
from flowpilot_schemas.topics import Topics

# All in seconds.
LINGER = 0.2
COMMIT_INTERVAL = 1.0
CHECK_INTERVAL = 10.0
LONGEST_BACKOFF = 5.0
LOG_PATIENCE = 120.0
FIRST_CHECK = 2.0

_log = structlog.get_logger("flowpilot.audit")


class AuditWriter:
    """`run` returns after `stop`, with the batch at hand stored.

    `linger`: the least time in seconds between two transactions while there is little to write. `patience`:
    seconds that the store may take before the group is attended to meanwhile. `on_ready` is called once, when
    the first partitions are being read. Raises `AuditStopped`, `StoreUnusable`, and `LogUnavailable` if the log
    has not answered for `LOG_PATIENCE` seconds. A store that does not answer is waited for.
    """

    def __init__(
        self,
        topics: Topics,
        *,
        store: AuditStore,
        consumer: ConsumerFactory,
        reader: Reader,
        catalog: TopicCatalog,
        linger: float = LINGER,
        patience: float = 5.0,
        on_ready: Callable[[], None] = lambda: None,
        meter: Meter = OFF,
    ) -> None:
        self._topics = topics
        self._observed = Observed(meter)
        self._store = store
        self._linger, self._on_ready = linger, on_ready
        self._stopping = asyncio.Event()
        self._definitions = Definitions()
        self._new_reading = partial(
            Reading,
            topics,
            store=store,
            consumer=consumer,
            reader=reader,
            catalog=catalog,
            definitions=self._definitions,
            patience=patience,
        )
        self._write_due = self._commit_due = 0.0
        self._check_due = time.monotonic() + FIRST_CHECK
        self._told_missing = False
        self._troubled_since: float | None = None
        self._log_silent_since: float | None = None
        self._backoff = 0.0
        self._is_ready = False

    def stop(self) -> None:
        """End `run` after the batch at hand."""
        self._stopping.set()

    async def run(self) -> None:
        """Write until `stop`."""
        self._reading = self._new_reading()
        try:
            while not self._stopping.is_set():
                try:
                    await self._turn()
                except Outrun:
                    _log.warning("the store is not where this writer left it; going on from the stored positions")
                    self._reading.start_over()
                except StoreUnavailable as error:
                    self._log_silent_since = None
                    await self._trouble("PostgreSQL does not answer; executions go on, the audit catches up", error)
                except LogUnavailable as error:
                    self._log_silent_since = self._log_silent_since or time.monotonic()
                    if time.monotonic() - self._log_silent_since > LOG_PATIENCE:
                        raise
                    await self._trouble("Kafka does not answer; trying again", error)
        finally:
            await self._reading.close()

    async def _turn(self) -> None:
        reading = self._reading
        if reading.waiting:
            await reading.open()
            if not self._is_ready:
                self._is_ready = True
                self._on_ready()
        if self._troubled_since is not None and reading.stored:
            _log.warning("going on", after_seconds=round(time.monotonic() - self._troubled_since, 1))
            self._troubled_since = self._log_silent_since = None
            self._backoff = 0.0
        # What is written a little later is written together.
        await self._pause(self._write_due - time.monotonic())
        await reading.poll(BATCH, IDLE_POLL)
        if taken := reading.taken():
            self._write_due = time.monotonic() + (self._linger if len(taken) < BATCH // 2 else 0.0)
            for records in chunks(taken):
                await self._write(records)
            self._check_due = time.monotonic() + CHECK_INTERVAL
        elif time.monotonic() >= self._check_due:
            self._check_due = time.monotonic() + CHECK_INTERVAL
            await (reading.check_store() if reading.stored else self._check_log())
        if reading.uncommitted and time.monotonic() >= self._commit_due:
            self._commit_due = time.monotonic() + COMMIT_INTERVAL
            await reading.commit()

    async def _check_log(self) -> None:
        """Nothing is assigned: others have it all, or log or topics are not there, and a consumer is silent."""
        missing = await self._reading.missing_topics()
        self._log_silent_since = None
        if missing and not self._told_missing:
            self._told_missing = True
            _log.warning("topics are not there; waiting for `flowpilot setup`", topics=missing)

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            try:
                await asyncio.wait_for(self._stopping.wait(), seconds)
            except TimeoutError:
                pass

    async def _trouble(self, what: str, error: Exception) -> None:
        """Log it once, go back to the stored positions, and stay in the group until it is time to try again."""
        if self._troubled_since is None:
            self._troubled_since = time.monotonic()
            _log.warning(what, error=str(error))
        self._reading.start_over()
        self._backoff = min(2 * self._backoff or 0.2, LONGEST_BACKOFF)
        until = time.monotonic() + self._backoff
        while (left := until - time.monotonic()) > 0 and not self._stopping.is_set():
            try:
                await self._reading.poll(1, min(left, IDLE_POLL))
            except LogUnavailable:
                await self._pause(min(left, IDLE_POLL))

    async def _write(self, records: Sequence[Fetched]) -> None:
        # A partition that was revoked meanwhile is another writer's.
        stored = self._reading.stored
        records = [record for record in records if record[:2] in stored]
        if not records:
            return
        batch = batch_of(records, stored, self._topics, self._definitions)
        began = time.monotonic()
        try:
            divergences = await self._reading.attended(self._store.write(batch, project))
        except BatchRefused as refused:
            if len(records) > 1:
                half = len(records) // 2
                await self._write(records[:half])
                await self._write(records[half:])
                return
            _log.warning(
                "record set aside",
                topic=records[0].topic,
                partition=records[0].partition,
                offset=records[0].offset,
                error=str(refused),
            )
            batch = set_aside(records[0], stored, str(refused))
            divergences = await self._reading.attended(self._store.write(batch, project))
        self._observed.batch(records, divergences, time.monotonic() - began)
        for partition, topic_id, _, next_offset in batch.advances:
            self._reading.advance(partition, Position(topic_id, next_offset))
