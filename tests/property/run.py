"""One execution driven by hand: what the fold does with a decision, without its log and table."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from flowpilot.core import decide as d
from flowpilot.core import events as e
from flowpilot.core.decision import Decision
from flowpilot.core.payloads import PayloadGone
from flowpilot.core.render import Home, Outgoing, Rendered, render
from flowpilot.core.state import Execution, OutboxEntry, StepState
from flowpilot.core.status import IN_FLIGHT, TERMINAL_EXECUTION
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import encode
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.history import HEADER_HASH, HEADER_PREV
from flowpilot_schemas.ids import TaskId, keyed_execution_id
from flowpilot_schemas.limits import Limits

EXECUTION = keyed_execution_id("flow", "k")
T0 = 1_700_000_000_000
HOME = Home("flowpilot.events", 3)


class Stored:
    """Inputs and outputs as they were stored, by their names."""

    def __init__(self) -> None:
        self.inputs: dict[tuple[str, int], bytes] = {}
        self.outputs: dict[tuple[str, int, str], bytes] = {}

    def input(self, execution: str, run: int) -> bytes:
        """See `flowpilot.core.payloads.Payloads`."""
        return self._get(self.inputs, (execution, run))

    def output(self, execution: str, run: int, step: str) -> bytes:
        """See `flowpilot.core.payloads.Payloads`."""
        return self._get(self.outputs, (execution, run, step))

    def _get(self, where: dict[Any, bytes], key: Any) -> bytes:
        if key not in where:
            raise PayloadGone(str(key))
        return where[key]


class Turn(NamedTuple):
    """One message and what came of it. `before` and `after` carry no outbox."""

    before: Execution
    message: Any
    at: int
    offset: int
    decision: Decision
    after: Execution
    entry: OutboxEntry | None
    rendered: Rendered | None


class Run:
    """A run of `definition`, started at `T0`. `state` is what is known now, `turns` how it came to that."""

    def __init__(
        self,
        definition: WorkflowDefinition,
        *,
        value: Any = None,
        limits: Limits | None = None,
        offset: int = 7,
        reply: m.ReplyTo | None = None,
        execution: str = EXECUTION,
        traceparent: str | None = None,
    ) -> None:
        self.definition = definition
        self.stored = Stored()
        self.turns: list[Turn] = []
        self.now = T0
        self._offset = offset
        start = m.StartExecution(
            execution=execution,
            workflow=definition.name,
            version=definition.version,
            definition=definition.hash,
            key="k",
            input=value,
            limits=limits or Limits(),
            reply=reply,
            traceparent=traceparent,
        )
        given = encode(value)
        self.stored.inputs[execution, offset] = given
        self.start = start
        decision = d.decide_start(definition, start, len(given), T0, offset)
        self.state = d.opened(start, offset)
        self._commit(self.state, start, decision)

    def send(self, message: d.Message, *, after: int = 0) -> list[e.CoreEvent]:
        """Decide on `message`, `after` ms later than the last one; the events."""
        self.now += after
        self._offset += 1
        decision = d.decide(self.definition, self.state, message, self.now)
        self._commit(self.state, message, decision)
        return decision.events

    def again(self, value: Any, origin: m.Origin | None = None) -> list[e.CoreEvent]:
        """Another start of the same id with the input `value`."""
        self._offset += 1
        start = self.start.model_copy(update={"input": value, "origin": origin})
        decision = d.decide_again(self.state, start)
        self._commit(self.state, start, decision)
        return decision.events

    def fault(self, detail: str = "a defect") -> list[e.CoreEvent]:
        """The fold met a defect of ours."""
        self._offset += 1
        decision = d.fault(self.state, detail)
        self._commit(self.state, None, decision)
        return decision.events

    def _commit(self, before: Execution, message: Any, decision: Decision) -> None:
        if decision.output is not None:
            step, output = decision.output
            self.stored.outputs[before.id, before.run, step] = output
        after, entry, rendered = decision.state, None, None
        told = [event for event in decision.events if not isinstance(event, e.UNRECORDED)]
        if told:
            packed = [e.pack(event) for event in told]
            entry = OutboxEntry(self._offset, self.now, after.seq + 1, after.head, packed)
            rendered = render(self.definition, after, entry, told, self.stored, HOME)
            after = after._replace(seq=rendered.seq, head=rendered.head)
        self.state = after._replace(src=self._offset)
        self.turns.append(Turn(before, message, self.now, self._offset, decision, self.state, entry, rendered))

    # What a worker would say.

    def task(self, step: str, attempt: int | None = None, run: int | None = None) -> str:
        """The task id of an attempt of `step`, the current one unless given."""
        if attempt is None:
            attempt = max(1, self.step(step).attempt)
        return str(TaskId(self.state.id, self.state.run if run is None else run, step, attempt))

    def complete(self, step: str, output: Any = None, **how: Any) -> list[e.CoreEvent]:
        """Answer the current attempt with `output`."""
        return self.send(m.StepCompleted(task_id=self.task(step), output=output), **how)

    def fail(self, step: str, kind: str = "Boom", *, after: int = 0, **error: Any) -> list[e.CoreEvent]:
        """Answer the current attempt with an error."""
        wrong = m.StepError(kind=kind, **error)
        return self.send(m.StepFailed(task_id=self.task(step), error=wrong), after=after)

    def started(self, step: str, **how: Any) -> list[e.CoreEvent]:
        """The worker runs the current attempt."""
        return self.send(m.StepStarted(task_id=self.task(step), worker_id="w"), **how)

    def heartbeat(self, step: str, details: Any = None, **how: Any) -> list[e.CoreEvent]:
        """The current attempt is alive."""
        return self.send(m.StepHeartbeat(task_id=self.task(step), details=details), **how)

    def timer(self, *, after: int | None = None) -> list[e.CoreEvent]:
        """A timer fires: `after` ms from now, or at the moment that something is due."""
        if after is None:
            assert self.state.due is not None, "nothing is due"
            after = max(0, self.state.due - self.now)
        return self.send(m.TimerFired(execution=self.state.id, run=self.state.run), after=after)

    def cancel(self, **how: Any) -> list[e.CoreEvent]:
        """Somebody cancels the execution."""
        return self.send(m.CancelExecution(execution=self.state.id, actor="me", reason="enough", **how))

    # What can be seen of it.

    def step(self, name: str) -> StepState:
        """The state of a step of an execution that is not completed."""
        return self.state.steps[self.definition.index[name]]

    @property
    def statuses(self) -> dict[str, str]:
        """Step name to status; empty once completed."""
        names = [step.name for step in self.definition.steps]
        return {name: str(step.status) for name, step in zip(names, self.state.steps, strict=False)}

    @property
    def in_flight(self) -> list[str]:
        """The names of the steps that a worker has to answer."""
        names = [step.name for step in self.definition.steps]
        if self.state.status in TERMINAL_EXECUTION:
            return []
        return [name for name, step in zip(names, self.state.steps, strict=True) if step.status in IN_FLIGHT]

    @property
    def is_over(self) -> bool:
        """Whether the execution is terminal."""
        return self.state.status in TERMINAL_EXECUTION

    @property
    def outgoing(self) -> list[Outgoing]:
        """Everything that was sent, in order."""
        return [sent for turn in self.turns if turn.rendered for sent in turn.rendered.messages]

    def sent(self, kind: str) -> list[dict[str, Any]]:
        """The messages of one kind, decoded."""
        return [orjson.loads(message.value) for message in self.outgoing if message.kind == kind]

    @property
    def history(self) -> list[dict[str, Any]]:
        """The history records, decoded, with their two hashes under `prev` and `hash` and bytes under `raw`."""
        found = []
        for message in self.outgoing:
            if message.kind == "history":
                headers = dict(message.headers)
                hashes = {"prev": headers[HEADER_PREV], "hash": headers[HEADER_HASH], "raw": message.value}
                found.append({"record": orjson.loads(message.value), **hashes})
        return found

    @property
    def told(self) -> list[str]:
        """The types of the history records."""
        return [record["record"]["type"] for record in self.history]


def workflow(*steps: Any, **of_workflow: Any) -> WorkflowDefinition:
    """A definition; every step needs but its name."""
    filled = [{"queue": "q", **step} for step in steps]
    return WorkflowDefinition.model_validate({"name": "flow", "version": "1", "steps": filled, **of_workflow})


def chain_of(*names: str, **of_each: Any) -> WorkflowDefinition:
    """Steps one after another; each takes its predecessor's output."""
    return workflow(
        *[
            {"name": name, "depends_on": names[i - 1 : i] if i else (), "takes": names[i - 1 : i] if i else ()}
            | of_each
            for i, name in enumerate(names)
        ]
    )
