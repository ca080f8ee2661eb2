"""What a test sees of an execution: the production projection of its history, as the audit record has it."""

from __future__ import annotations

from typing import Any, NamedTuple

from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.audit.projection import REFUSED, project
from flowpilot.audit.records import history_event
from flowpilot.client.errors import ExecutionCancelled, ExecutionFailed, ExecutionRefused
from flowpilot.ports.audit import HistoryEvent, Row, RunKey, TaskKey
from flowpilot.ports.log import Fetched
from flowpilot.testing.errors import NotFinished


class StepView(NamedTuple):
    """A task execution: `attempt` 0 was never sent; `output` and `error` are JSON values."""

    status: str
    attempt: int = 0
    output: Any = None
    error: Any = None


class History:
    """The history topic, each event once, in its order."""

    def __init__(self, log: MemoryLog, topic: str) -> None:
        self._log, self._topic = log, topic
        self._read = 0
        self._events: dict[RunKey, list[HistoryEvent]] = {}
        self._runs_by_cause: dict[tuple[str, int], int] = {}

    def of(self, run: RunKey) -> list[HistoryEvent]:
        """The events of one run."""
        self._catch_up()
        return list(self._events.get(run, ()))

    def run_that_answers(self, execution: str, start: int) -> RunKey:
        """The run of the execution that the start at offset `start` began, or found."""
        self._catch_up()
        return RunKey(execution, self._runs_by_cause[execution, start])

    def running(self) -> list[RunKey]:
        """The runs that have not ended."""
        self._catch_up()
        return [run for run, events in self._events.items() if row_of(run, events)["status"] == "running"]

    def _catch_up(self) -> None:
        records = self._log.records(self._topic)
        for record in records[self._read :]:
            self._take(record)
        self._read = len(records)

    def _take(self, record: Fetched) -> None:
        event, divergence = history_event(record)
        if event is None or divergence is not None:
            raise AssertionError(f"the history has a broken record: {divergence}")
        events = self._events.setdefault(RunKey(event.execution, event.run), [])
        if event.seq == len(events) + 1:  # what an engine that recovered sends again is there already
            events.append(event)
            self._runs_by_cause[event.execution, event.fields["cause"]] = event.run


def row_of(run: RunKey, events: list[HistoryEvent]) -> Row:
    """The execution's row in the audit record."""
    return project(events, {}).executions[run]


class Execution:
    """One run of an execution, as of now: look again after time has moved on."""

    def __init__(
        self,
        run: RunKey,
        steps: list[str],
        history: History,
        raised: dict[tuple[str, str], BaseException],
    ) -> None:
        self.id, self.run = run
        self._key, self._steps, self._history, self._raised = run, steps, history, raised

    def __repr__(self) -> str:
        return f"<Execution {self.id}, {self.status}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Execution) and other._key == self._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def history(self) -> list[HistoryEvent]:
        """Its events: `type`, `at`, `step`, `attempt`, and all else in `fields`."""
        return self._history.of(self._key)

    @property
    def status(self) -> str:
        """`running`, `completed`, `failed`, `cancelled`, `refused` or `incident`."""
        return str(self._row()["status"])

    @property
    def steps(self) -> dict[str, StepView]:
        """Its steps by name, in their order."""
        changes = project(self.history, {})
        found = {}
        for name in self._steps:
            key = TaskKey(self.id, self.run, name)
            row = changes.tasks.get(key, {"status": "pending"})
            attempt = row.get("attempt", changes.attempts.get(key, 0))
            found[name] = StepView(row["status"], attempt, row.get("output"), row.get("error"))
        return found

    def result(self) -> Any:
        """The output, as `Handle.result` of the client gives it.

        Raises `ExecutionFailed` (its cause is what the handler raised), `ExecutionCancelled`, `ExecutionRefused`,
        or `NotFinished`.
        """
        row = self._row()
        match row["status"]:
            case "completed":
                return row.get("output")
            case "failed":
                errors = row.get("errors") or {}
                causes = (self._raised.get((self.id, step)) for step in errors)
                failed = ExecutionFailed(self.id, errors, row.get("reason"))
                raise failed from next((cause for cause in causes if cause is not None), None)
            case "cancelled":
                raise ExecutionCancelled(self.id, row.get("reason"))
            case status if status == REFUSED:
                raise ExecutionRefused(self.id, row.get("reason"))
        raise NotFinished(
            f"execution {self.id} is {row['status']} ({self.waits_for()}); let time pass: "
            "env.advance(…), or env.finish()"
        )

    def waits_for(self) -> str:
        """Its steps that are not over, in one phrase."""
        open_steps = [
            f"{name} is {step.status}, attempt {step.attempt}"
            for name, step in self.steps.items()
            if step.status in ("ready", "running", "retrying")
        ]
        return "; ".join(open_steps) or "no step is under way"

    def _row(self) -> Row:
        return row_of(self._key, self.history)
