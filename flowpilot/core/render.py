"""A decision as messages. The same outbox entry renders to the same bytes, however often it is sent.

Inputs and outputs of steps are not part of a decision; they come from `payloads` as encoded JSON, and go into
messages as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from flowpilot.core import events as e
from flowpilot.core.dead_letters import refused_input
from flowpilot.core.notices import Outgoing, answer, retry_ended, tell_retry
from flowpilot.core.payloads import Payloads, input_of, output_of, result_of
from flowpilot.core.state import Execution, OutboxEntry
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.definition import StepDefinition, WorkflowDefinition
from flowpilot_schemas.history import HEADER_HASH, HEADER_PREV, chain, iso
from flowpilot_schemas.ids import TaskId, root_id
from flowpilot_schemas.messages import (
    INPUT_INVALID,
    Cancelled,
    ExecutionEnded,
    RetryForget,
    Superseded,
)
from flowpilot_schemas.topics import STEP_RETENTION
from flowpilot_schemas.tracing import HEADER


class Home(NamedTuple):
    """Where answers go: the execution's partition of the events topic."""

    topic: str
    partition: int


class Rendered(NamedTuple):
    """The messages of one entry, in order, and the hash chain's head and `seq` after them."""

    messages: list[Outgoing]
    head: bytes
    seq: int


def render(
    definition: WorkflowDefinition | None,
    state: Execution,
    entry: OutboxEntry,
    events: Sequence[e.CoreEvent],
    payloads: Payloads,
    home: Home,
) -> Rendered:
    """The messages of `entry`, whose events are `events`. Raises `PayloadGone`.

    Of `state` only what never changes within a run is used. `definition` is None for a refused start alone.
    """
    run = _Run(definition, entry.of or state, payloads, home, entry.at)
    messages: list[Outgoing] = []
    head, seq = entry.previous, entry.first_seq - 1
    for event in events:
        if isinstance(event, e.UNRECORDED):
            continue
        if not isinstance(event, e.UNTOLD):
            seq += 1
            value = run.history(event, seq, entry.cause)
            previous, head = head, chain(head, value)
            headers = ((HEADER_PREV, previous), (HEADER_HASH, head))
            messages.append(Outgoing("history", run.state.id, value, headers, partition=home.partition))
        messages.extend(run.consequences(event))
    return Rendered(messages, head, seq)


class _Run:
    """What is common to the messages of one entry."""

    def __init__(
        self, definition: WorkflowDefinition | None, state: Execution, payloads: Payloads, home: Home, at: int
    ) -> None:
        self._definition = definition
        self.state = state
        self._payloads = payloads
        self._home = home
        self._at = at

    @property
    def definition(self) -> WorkflowDefinition:
        if self._definition is None:
            raise ValueError(f"execution {self.state.id} has no definition to render from")
        return self._definition

    def history(self, event: e.CoreEvent, seq: int, cause: int) -> bytes:
        """The bytes of a history record."""
        state = self.state
        body: dict[str, Any] = {
            "v": 1,
            "type": type(event).__name__,
            "execution": state.id,
            "run": state.run,
            "seq": seq,
            "at": iso(self._at),
            "cause": cause,
        }
        for name, value in zip(event._fields, event, strict=True):
            if value is not None:
                body[name] = value
        match event:
            case e.ExecutionStarted():
                del body["input_size"]
                body["input"] = orjson.Fragment(input_of(state, self._payloads))
                tell_retry(body)
                if event.taken:
                    body["taken"] = self._taken(event)
                body.pop("places", None)
                self._tell_trace(body)
            case e.StartRefused():
                tell_retry(body)
                self._tell_trace(body)
            case e.RetryRefused():
                body.pop("reply", None)
            case e.StepCompleted():
                body["output"] = orjson.Fragment(self._payloads.output(state.id, state.run, event.step))
            case e.StepRetryScheduled():
                body["retry_at"] = iso(event.retry_at)
            case e.ExecutionCompleted():
                output = result_of(state, self._payloads, self.definition)
                body["output" if output is not None else "output_omitted"] = (
                    True if output is None else orjson.Fragment(output)
                )
        return orjson.dumps(body)

    def consequences(self, event: e.CoreEvent) -> list[Outgoing]:
        """What is sent beside the history record."""
        state = self.state
        match event:
            case e.StepReady():
                wanted_until = self._at + _wanted_for(self._definition_of(event.step))
                return [self._step(event, 1, None, wanted_until)]
            case e.StepRedispatched():
                return [self._step(event, event.dispatch, event.partition, event.not_after)]
            case e.StepTimedOut() if event.timeout != "schedule_to_start":
                task = str(TaskId(state.id, state.run, event.step, event.attempt))
                return [self._control(Superseded(task_id=task))]
            case e.ExecutionCancelled():
                cancelled = Cancelled(execution=state.id, run=state.run)
                return [self._control(cancelled), *self._over("cancelled", reason=event.reason)]
            case e.ExecutionFailed():
                over = [self._control(Cancelled(execution=state.id, run=state.run))] if event.reason else []
                if event.reason == INPUT_INVALID:
                    over.append(self._input_refused(event))
                return [*over, *self._over("failed", errors=event.errors, reason=event.reason)]
            case e.ExecutionCompleted():
                output = result_of(state, self._payloads, self.definition)
                return self._over("completed", output=output, output_omitted=output is None)
            case e.StartRefused():
                return self._over("refused", reason=event.detail)
            case e.RetryBegun():
                start = event.start
                told = answer(start["retry"], start.get("reply"), retry=start["execution"])
                return [self._event(start), *told]
            case e.RetryKnown():
                return answer({"execution": event.of, "request": event.request}, event.reply, retry=event.retry)
            case e.RetryRefused():
                asked = {"execution": event.of, "request": event.request}
                return answer(asked, event.reply, refused=event.refusal, detail=event.detail, running=event.running)
            case e.RetryChecked():
                return [self._event(event.check)]
            case e.RetryDisowned():
                return [self._forget(event.retry, event.run)]
            case e.RetryEndTold():
                return [self._ended(event.status)]
            case e.FamilyForgotten():
                return [self._forget(execution, run) for execution, run in event.retries]
            case _:
                return []

    def _definition_of(self, step: str) -> StepDefinition:
        return self.definition.steps[self.definition.index[step]]

    def _step(
        self, event: e.StepReady | e.StepRedispatched, dispatch: int, partition: int | None, not_after: int
    ) -> Outgoing:
        state, step = self.state, self._definition_of(event.step)
        task = TaskId(state.id, state.run, event.step, event.attempt)
        message: dict[str, Any] = {
            "v": 1,
            "type": "step.ready",
            "task_id": str(task),
            "workflow": state.workflow,
            "version": state.version,
            "definition": state.definition,
            "step": event.step,
            "attempt": event.attempt,
            "dispatch": dispatch,
            "idempotency_key": task.idempotency_key,
        }
        if step.takes_input:
            message["input"] = orjson.Fragment(input_of(state, self._payloads))
        message["parents"] = {
            parent: orjson.Fragment(output_of(state, self._payloads, parent)) for parent in step.takes
        }
        if step.args:
            message["args"] = step.args
        if event.last_heartbeat is not None:
            message["last_heartbeat"] = event.last_heartbeat
        message |= {
            "start_to_close_ms": step.start_to_close_ms,
            "heartbeat_ms": step.heartbeat_ms,
            "result_limit": state.limits.result,
            "not_after": iso(not_after),
            "reply": {"topic": self._home.topic, "partition": self._home.partition, "key": state.id},
        }
        headers = ((HEADER, state.traceparent.encode()),) if state.traceparent else ()
        return Outgoing("step", str(task), orjson.dumps(message), headers, queue=step.queue, partition=partition)

    def _tell_trace(self, body: dict[str, Any]) -> None:
        if self.state.traceparent:
            body["traceparent"] = self.state.traceparent

    def _taken(self, event: e.ExecutionStarted) -> dict[str, list[str]]:
        """Whose results were taken over: execution to names of steps."""
        taken: dict[str, list[str]] = {}
        for order, _, place in event.taken:
            taken.setdefault(event.places[place], []).append(self.definition.steps[order].name)
        return taken

    def _over(self, status: str, **fields: Any) -> list[Outgoing]:
        """To the client that waits, and from a retry to its root."""
        state = self.state
        told = self._reply(status, **fields)
        if state.retry is None:
            return told
        return [*told, self._ended(status)]

    def _ended(self, status: str) -> Outgoing:
        """From a retry to its root."""
        return self._event(retry_ended(self.state, status, self._definition, self._at).model_dump())

    def _forget(self, execution: str, run: int) -> Outgoing:
        """From a root to its retry."""
        return self._event(RetryForget(execution=execution, run=run).model_dump())

    def _event(self, message: Mapping[str, Any]) -> Outgoing:
        """A record to this very partition of the events topic."""
        topic, partition = self._home
        return Outgoing("event", root_id(self.state.id), orjson.dumps(message), topic=topic, partition=partition)

    def _input_refused(self, event: e.ExecutionFailed) -> Outgoing:
        """The dead letter of the record that the run came from."""
        given = input_of(self.state, self._payloads)
        letter = refused_input(self.state, given, event.detail or "", self._home, self._at)
        return Outgoing("dead_letter", self.state.id, encode_message(letter), partition=self._home.partition)

    def _control(self, message: Cancelled | Superseded) -> Outgoing:
        return Outgoing("control", self.state.id, message.model_dump_json().encode(), partition=0)

    def _reply(self, status: str, *, output: bytes | None = None, **fields: Any) -> list[Outgoing]:
        reply = self.state.reply
        if not reply:
            return []
        ended = ExecutionEnded.model_validate(
            {"execution": self.state.id, "run": self.state.run, "status": status, **fields}
        )
        body = ended.model_dump(mode="json", exclude_none=True)
        if output is not None:
            body["output"] = orjson.Fragment(output)
        key = reply.get("key") or self.state.id
        return [Outgoing("reply", key, orjson.dumps(body), topic=reply["topic"], partition=reply["partition"])]


def _wanted_for(step: StepDefinition) -> int:
    """How long, in ms, a worker may begin a step: where nobody gives the wait up, as long as Kafka keeps it."""
    return STEP_RETENTION if step.on_schedule_to_start == "record" else step.schedule_to_start_ms
