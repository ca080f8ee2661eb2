"""The table `executions` as Faust sees it: a changelog, its recovery, and a store that is the engine's.

Recovery hands every changelog record to the partition's table, which keeps per key the record with the highest
(src, epoch); Faust's own stores keep the last one. Nobody writes through Faust: `table[k] = v` would send a
second record that nobody awaits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, cast

import faust
from faust.stores import base as stores
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.types import TP
from mode import Service

from flowpilot.ports.log import Fetched
from flowpilot_agents.execution import Executions
from flowpilot_agents.watch import end_process


class EngineStore(stores.Store[bytes, bytes]):
    """The engine's tables in the place of a Faust store; it only tells how far a changelog is known."""

    def persisted_offset(self, tp: TP) -> int | None:
        """The last changelog offset that is known, None if nothing is. Faust's memory store always says None,
        so that a kept partition would be read again from its beginning in every rebalance."""
        executions: Executions = self.app.executions  # type: ignore[attr-defined]
        offset = executions.engine.table(tp.partition).next_changelog_offset
        return offset - 1 if offset else None

    def apply_changelog_batch(self, batch: Any, to_key: Any, to_value: Any) -> None:
        """Recovery does not come this way."""
        if batch:
            raise RuntimeError("the changelog is loaded by BulkRecovery.load")

    def reset_state(self) -> None:
        """Nothing lies on a disk."""

    async def backup_partition(self, tp: TP | int, flush: bool = True, purge: bool = False, keep: int = 1) -> None:
        """The changelog is the backup."""

    def restore_backup(self, tp: TP | int, latest: bool = True, backup_id: int = 0) -> None:
        """The changelog is the backup."""


class ExecutionTable(faust.Table[bytes, bytes]):
    """The declared table. Its contents belong to the engine."""

    def _new_store(self) -> EngineStore:
        return EngineStore("memory://", self.app, self, table_name=self.name, loop=self.loop)

    def on_key_set(self, key: bytes, value: bytes) -> None:
        raise TypeError("the engine alone writes the table, and awaits what it writes")

    def on_key_del(self, key: bytes) -> None:
        raise TypeError("the engine alone writes the table, and awaits what it writes")

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        """Drop what did not come back, before recovery asks how far each table is known."""
        executions: Executions = self.app.executions  # type: ignore[attr-defined]
        events = self.app.events_topic  # type: ignore[attr-defined]
        await executions.revoke(sorted(tp.partition for tp in revoked if tp.topic == events))


class BulkRecovery(Recovery):
    """Faust's recovery with the records in bulk, and with the claim between recovery and the first event."""

    def _set_recovery_started(self) -> None:
        super()._set_recovery_started()
        self.signal_recovery_end.clear()

    @Service.task
    async def _slurp_changelogs(self) -> None:
        # Faust's takes one record a task, formats a line for each and swallows what goes wrong: see `load`.
        return

    def load(self, tp: TP, records: Iterable[Fetched]) -> None:
        """Load changelog records of one partition, in order."""
        if not self.in_recovery or tp not in self.active_tps:
            return
        executions: Executions = self.app.executions  # type: ignore[attr-defined]
        take = executions.engine.table(tp.partition).load
        offset = self.active_offsets[tp]
        try:
            for record in records:
                take(record)
                offset = record.offset
        except Exception as error:  # noqa: BLE001 - any doubt ends the process
            end_process(f"changelog partition {tp.partition} cannot be read after offset {offset}", error)
        self.active_offsets[tp] = offset
        self._end_if_complete()

    def read_until(self, positions: Mapping[TP, int]) -> None:
        """Everything before these offsets was read: compaction may have taken the last records themselves."""
        for tp, position in positions.items():
            self.active_offsets[tp] = max(self.active_offsets[tp], position - 1)
        self._end_if_complete()

    def _end_if_complete(self) -> None:
        if self.in_recovery and not self.need_recovery():
            self._set_recovery_ended()
            # At once: one more fetch of them would hold up the seek that follows.
            self.app.consumer.pause_partitions(self.active_tps)
            self.signal_recovery_end.set()

    async def _seek_offsets(self, consumer: Any, tps: set[TP], offsets: Any, title: str) -> None:
        # Faust's seeks to the last known record itself, which is below the log's start after a deletion.
        await consumer.seek_wait({tp: offsets[tp] + 1 for tp in tps})

    async def on_recovery_completed(self, generation_id: int = 0) -> None:
        """Claim the partitions, then read events. Faust's resumes reading before it seeks."""
        app = cast(Any, self.app)
        consumer, executions = app.consumer, app.executions
        self._set_recovery_ended()
        consumer.pause_partitions(self.active_tps)
        await app.on_rebalance_complete.send()
        if app.consumer_generation_id != generation_id:
            return  # the next rebalance is under way, and with it the next recovery
        assignment = executions.assignment
        committed = await consumer.committed()
        starts = await executions.claim(committed)
        if executions.assignment != assignment:
            return
        app.flow_control.resume()
        await self._wait(consumer.read_from(starts, committed), timeout=app.conf.broker_request_timeout)
        if executions.assignment != assignment:
            return
        consumer.resume_flow()
        await app._fetcher.maybe_start()
        self.completed.set()
        self.tables.on_actives_ready()
        self.tables.on_standbys_ready()
        app.on_rebalance_end()
        # For whoever started the process (and a supervisor): like every role, it says when it is at work.
        print(f"engine ready: {len(starts)} partitions", file=sys.stderr, flush=True)


class EngineTables(TableManager):
    """Faust's table manager with the recovery above, and without its second of sleep at the start."""

    @property
    def recovery(self) -> BulkRecovery:
        """The recovery service."""
        if self._recovery is None:
            self._recovery = BulkRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return cast(BulkRecovery, self._recovery)

    async def on_start(self) -> None:
        """The agents are declared before the app starts: there is nothing to wait for."""
        await self._update_channels()
        await self.recovery.start()
