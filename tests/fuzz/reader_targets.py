"""What workers, clients, the router and the audit writer read."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.audit.batches import Definitions, batch_of, set_aside
from flowpilot.audit.projection import project
from flowpilot.authoring import Workflow
from flowpilot.client.replies import Inbox, Replies
from flowpilot.engine.reading import read
from flowpilot.ports.audit import Head, Position, RunKey
from flowpilot.ports.log import Fetched, TopicPartition
from flowpilot.router.positions import Positions
from flowpilot.worker.attempt import ended, not_served
from flowpilot.worker.control import Control
from flowpilot.worker.handlers import Handlers
from flowpilot.worker.invoke import call
from flowpilot.worker.records import read_step
from flowpilot_schemas.codec import BadRecord
from flowpilot_schemas.history import HEADER_HASH, HEADER_PREV, chain
from flowpilot_schemas.messages import StepError
from flowpilot_schemas.topics import Topics
from tests.fuzz.frame import Given, framed, given
from tests.fuzz.seeds import EXECUTION, examples, history
from tests.fuzz.states import reached
from tests.fuzz.target import Target, require

T = Topics()


class _Patient(BaseModel):
    patient_id: str
    n: int = 0


_FLOW = Workflow("flow", version="1", input=_Patient)


@_FLOW.step
def _a(input: _Patient) -> dict[str, Any]:
    return {"of": input.patient_id}


@_FLOW.step
def _b(_a: dict[str, Any], input: _Patient) -> list[int]:
    return [input.n]


_HANDLERS = Handlers([_FLOW])


def step(data: bytes) -> None:
    """Step messages: read, given to a handler, answered; the engine understands the answer."""
    for record in given(data)[:4]:
        fetched = Fetched(T.steps("q"), 0, 3, 0, record.key, record.value, record.headers)
        try:
            message, task_id, not_after = read_step(fetched)
        except BadRecord as bad:
            require(bool(bad.detail), bad.reason)
            continue
        require(str(task_id) == message.task_id or "/0" in message.task_id, "the task id is another")
        require(isinstance(not_after, int), "no time")
        answers = [not_served(message, fetched, "w", "no reason", 12)]
        [(_, steps)] = _HANDLERS.all
        for each in [steps[message.step]] if message.step in steps else [steps.get("_a"), steps.get("_b")]:
            if each is not None:
                outcome = call(each, message, None)
                require(isinstance(outcome, bytes | StepError), "no outcome")
                answers.append(ended(message, fetched, "w", outcome, "2026-01-31T00:00:00.000Z"))
        for answer in answers:
            read(Fetched(T.events, 0, 0, 0, answer.key, answer.value))


def audit(data: bytes) -> None:
    """Records of all topics that the audit writer reads, as one batch; what they change is projected."""
    topics = (T.history, T.dead_letters, T.definitions, T.fates)
    records = []
    for offset, record in enumerate(given(data)[:24]):
        topic = topics[0]
        headers = []
        for name, value in record.headers:
            if name == "topic" and value[:1].isdigit():
                topic = topics[int(value[:1]) % 4]
            else:
                headers.append((name, value))
        key = record.key
        if topic == T.history and not headers and record.value is not None:
            key, headers = _as_told(record.value, key)
        records.append(Fetched(topic, 0, offset, 1_700_000_000_000, key, record.value, tuple(headers)))
    stored = {TopicPartition(topic, 0): Position("id", 0) for topic in topics}
    batch = batch_of(records, stored, T, Definitions())
    said = len(batch.events) + len(batch.letters) + len(batch.definitions) + len(batch.filtered)
    require(said + len(batch.divergences) >= len(records), "a record left no trace")
    heads: dict[RunKey, Head] = {}
    changes = project(batch.events, heads)
    for row in (*changes.executions.values(), *changes.tasks.values()):
        require(all(isinstance(name, str) for name in row), row)
    for record in records[:2]:
        set_aside(record, stored, "why\0")


def _as_told(value: bytes, key: bytes | None) -> tuple[bytes | None, list[tuple[str, bytes]]]:
    """The key and hashes that a record of the engine's would have."""
    try:
        execution = json.loads(value)["execution"].encode()
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        execution = key
    previous = bytes(32)
    return execution, [(HEADER_PREV, previous), (HEADER_HASH, chain(previous, value))]


def told(data: bytes) -> None:
    """Control records in a worker, replies in a client, positions in a router."""
    log = MemoryLog()
    control = Control(log.reader(), T.control, lambda: None)
    replies = Replies(log.reader(), T, "c")
    inbox = replies._inboxes[EXECUTION] = Inbox(EXECUTION)
    positions = Positions(log.producer(), log.reader(), T.positions)
    for offset, record in enumerate(given(data)[:8]):
        control._take(Fetched(T.control, 0, offset, 0, record.key, record.value))
        replies._sort(Fetched(T.replies, 0, offset, 0, b"c", record.value))
        try:
            positions._take(Fetched(T.positions, 0, offset, 0, record.key, record.value), {}, None)
        except BadRecord as bad:
            require(bool(bad.detail), bad.reason)
    require(all(isinstance(run, int) for run in inbox.ended), "an end of no run")


# -- seeds ----------------------------------------------------------------------------------------------------


_AT = "2026-01-31T00:00:00.000Z"


def _step_seeds() -> tuple[bytes, ...]:
    start = reached()
    made = [
        {**example, "task_id": f"{EXECUTION}/0/{name}/1", "step": name, "workflow": "flow", "version": "1",
         "input": {"patient_id": "p", "n": 1}, "parents": {"_a": {"of": "p"}}, "not_after": _AT}
        for example in examples("step.ready")
        for name in ("_a", "_b", "c")
    ]  # fmt: skip
    return (
        *(framed([Given(record.value)]) for record in start.steps[:8]),
        *(json.dumps(one).encode() for one in made),
    )


def _audit_seeds() -> tuple[bytes, ...]:
    start = reached()
    found = [Given(record.value, record.key, record.headers) for record in start.history]
    for kind, fields in history().items():
        common = {
            "v": 1,
            "type": kind,
            "execution": EXECUTION,
            "run": 0,
            "seq": 1,
            "at": _AT,
        }
        values = {"attempt": 1, "step": "a", "size": 3, "taken": {EXECUTION: ["a"]}, "errors": {"a": {"kind": "x"}}}
        origin = {"topic": "t", "topic_id": "i", "partition": 0, "offset": 1}
        all_of_them = {name: values.get(name, "x") for name in (*fields["required"], *fields["optional"])}
        if "origin" in all_of_them:
            all_of_them["origin"] = origin  # type: ignore[assignment]
        found.append(Given(json.dumps({**all_of_them, **common}).encode()))
    for number, name in ((1, "dead.letter"), (2, "definition"), (2, "definition-pointer"), (3, "trigger.filtered")):
        keys = {"definition-pointer": b"name/flow@1", "definition": b"def/sha256:none"}
        for example in examples(name):
            found.append(Given(json.dumps(example).encode(), keys.get(name), (("topic", b"%d" % number),)))
    runs = [framed(found[at : at + 8]) for at in range(0, len(found), 8)]
    return (*(framed([record]) for record in found), *runs)


def _told_seeds() -> tuple[bytes, ...]:
    names = ("execution.cancelled", "attempt.superseded", "execution.ended", "retry.answered", "trigger.position")
    made = [Given(json.dumps(example).encode(), b"flow/t/0/id") for name in names for example in examples(name)]
    played = [Given(record.value) for record in reached().told]
    return tuple(framed([record]) for record in (*made, *played))


TARGETS = (
    Target(
        "step", "step messages in a worker, to the answer", step, _step_seeds(), ("_a", "_b", "flow", EXECUTION)
    ),
    Target(
        "history",
        "what the audit writer reads, projected",
        audit,
        _audit_seeds(),
        ("topic=0", "topic=1", "topic=2", "topic=3", "name/flow", "def/", f"{HEADER_PREV}=x", "taken", "parent"),
    ),
    Target("told", "control records, replies and positions", told, _told_seeds(), ("flow/t/0/id", "*/t/1/id")),
)
