"""Histories as the engine writes them, for the audit's tests: chained events, one `Chain` a run."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

import orjson

from flowpilot.audit.records import history_event
from flowpilot.ports.audit import HistoryEvent
from flowpilot.ports.log import Fetched, Record
from flowpilot_schemas.definition import StepDefinition, WorkflowDefinition
from flowpilot_schemas.history import GENESIS, HEADER_HASH, HEADER_PREV, chain, iso
from flowpilot_schemas.ids import root_id

EPOCH = 1_780_000_000_000
TOPIC = "t.history"

DEFINITION = WorkflowDefinition(
    name="onboarding",
    version="1",
    steps=(
        StepDefinition(name="create", queue="onboarding"),
        StepDefinition(name="otp", queue="notify", depends_on=("create",)),
        StepDefinition(name="mail", queue="notify", depends_on=("create",)),
        StepDefinition(name="activate", queue="onboarding", depends_on=("otp", "mail")),
    ),
)


class Chain:
    """One run's history: each call appends an event and gives its record."""

    def __init__(self, execution: str | None = None, run: int = 0, topic: str = TOPIC, partition: int = 0) -> None:
        self.execution = execution or str(uuid.uuid4())
        self.run = run
        self.topic, self.partition = topic, partition
        self.records: list[Record] = []
        self._head = GENESIS

    def __call__(self, kind: str, **fields: Any) -> Record:
        seq = len(self.records) + 1
        body = {
            "v": 1,
            "type": kind,
            "execution": self.execution,
            "run": self.run,
            "seq": seq,
            "at": iso(EPOCH + self.run * 1_000 + seq),
            "cause": self.run + seq - 1,
            **fields,
        }
        value = orjson.dumps(body)
        previous, self._head = self._head, chain(self._head, value)
        headers = ((HEADER_PREV, previous), (HEADER_HASH, self._head))
        record = Record(self.topic, self.execution.encode(), value, self.partition, headers)
        self.records.append(record)
        return record

    def started(self, **fields: Any) -> Record:
        """The first event, of the onboarding workflow."""
        names = {"workflow": "onboarding", "version": "1", "definition": DEFINITION.hash}
        return self("ExecutionStarted", **{**names, "input": {"n": 1}, **fields})

    def step(self, name: str, attempt: int = 1, **fields: Any) -> None:
        """A step that becomes ready and completes."""
        self("StepReady", step=name, attempt=attempt, queue="onboarding")
        worker = {"worker_id": "w-1", "broker_task_id": "steps/0/1"}
        self("StepCompleted", step=name, attempt=attempt, **{"output": {"of": name}, **worker, **fields})

    def retried(self, name: str, attempt: int = 1) -> None:
        """An attempt that fails and is tried again."""
        self("StepReady", step=name, attempt=attempt, queue="notify")
        self(
            "StepRetryScheduled",
            step=name,
            attempt=attempt,
            next_attempt=attempt + 1,
            retry_at=iso(EPOCH + 99_000),
            error={"kind": "OSError", "message": "no"},
            worker_id="w-2",
            broker_task_id="steps/0/2",
        )


def completed(run: int = 0, **place: Any) -> Chain:
    """A run of onboarding in which one step was tried twice."""
    history = Chain(run=run, **place)
    history.started(key=f"k-{run}", origin={"topic": "u", "topic_id": "i", "partition": 0, "offset": run})
    history.step("create")
    history.retried("otp")
    history.step("mail")
    history.step("otp", attempt=2)
    history.step("activate")
    history("ExecutionCompleted", output={"ok": True})
    return history


def spread(executions: int, topic: str, partitions: int, *, first: int = 0) -> list[Chain]:
    """Completed runs, their homes by their number."""
    return [
        completed(number, topic=topic, partition=number % partitions) for number in range(first, first + executions)
    ]


def interleaved(histories: Iterable[Chain]) -> Iterator[Record]:
    """All records, those of each run in their order, turn by turn as concurrent executions are."""
    open_ones = [iter(history.records) for history in histories]
    while open_ones:
        for records in list(open_ones):
            record = next(records, None)
            if record is None:
                open_ones.remove(records)
            else:
                yield record


_offsets = count()


def fetched(record: Record, offset: int | None = None) -> Fetched:
    """A record as it is read."""
    number = next(_offsets) if offset is None else offset
    return Fetched(record.topic, record.partition or 0, number, EPOCH, record.key, record.value, record.headers)


def event(record: Record) -> HistoryEvent:
    """A sound record's event."""
    found, divergence = history_event(fetched(record))
    assert divergence is None
    assert found is not None
    return found


def events(*histories: Chain) -> list[HistoryEvent]:
    """The events of some runs, one run after the other."""
    return [event(record) for history in histories for record in history.records]


def retry_of(history: Chain, number: int, run: int, **taken: Any) -> Chain:
    """A retry `R.n` of a run's execution, just started."""
    execution = f"{root_id(history.execution)}.{number}"
    parent = history.execution if number == 1 else f"{root_id(history.execution)}.{number - 1}"
    chain_ = Chain(execution, run, history.topic, history.partition)
    why = {"retry_reason": "fixed", "request": f"r{number}", "from_start": False, "created_by": "user:ann"}
    chain_.started(parent=parent, parent_run=history.run, **why, **taken)
    return chain_
