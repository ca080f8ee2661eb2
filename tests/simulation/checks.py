"""What is checked when all is quiet: each invariant as a function that yields sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from flowpilot.audit.verify import verify
from flowpilot.core.state import decode_execution, encode_execution
from flowpilot.engine.keys import RULES_KEY
from flowpilot.engine.table import PartitionTable
from flowpilot.ports.log import Fetched
from flowpilot_schemas.history import GENESIS, HEADER_HASH, HEADER_PREV, chain, from_iso
from flowpilot_schemas.ids import root_id
from flowpilot_schemas.topics import Topics
from flowpilot_schemas.triggers import ANY_WORKFLOW
from tests.property.releases import misjudged
from tests.simulation.outcomes import wrong_letters, wrong_outcomes
from tests.simulation.pinned import not_as_pinned, wrong_workflow_rows
from tests.simulation.reference import Reference, states_of

if TYPE_CHECKING:
    from flowpilot.adapters.memory.audit import AuditTables
    from flowpilot.adapters.memory.log import MemoryLog
    from tests.simulation.online import Online
    from tests.simulation.versions import Versions

Run = tuple[str, int]
_ENDS = {"ExecutionCompleted", "ExecutionFailed", "ExecutionCancelled", "StartRefused"}
_OF_AN_ATTEMPT = ("StepStarted", "StepCompleted", "StepTimedOut", "StepRetryScheduled")
_AFTERWARDS = {
    *("StartDeduplicated", "KeyConflict", "CompletionIgnored", "CancelIgnored"),
    *("RetryRefused", "RetryRequested", "DispatchFailed"),
}


@dataclass
class Evidence:
    """All there is at the end."""

    topics: Topics
    log: MemoryLog
    online: Online
    tables: AuditTables
    reference: Reference
    versions: Versions
    bad_events: list[tuple[int, int]]
    strays: set[tuple[bytes | None, bytes | None]]
    """Step messages that no engine sent."""
    given_up: set[tuple[int, int]]
    """Events (partition, offset) with a dead letter, since three processes ended while they were in hand."""
    asked: list[tuple[str, int]]
    """(execution, home offset) of each start that a client was told to be taken."""
    open: list[str]
    history: dict[Run, list[Fetched]]
    """By run, each history record once: the first of each seq, in the order in which they were told first."""

    def values(self, run: Run) -> list[dict[str, Any]]:
        return [orjson.loads(record.value or b"{}") for record in self.history[run]]


def first_told(log: MemoryLog, topics: Topics) -> tuple[dict[Run, list[Fetched]], list[str]]:
    """The history without what was told again; and what was told again in other words."""
    found: dict[Run, list[Fetched]] = {}
    known: dict[tuple[str, int, int], Fetched] = {}
    wrong = []
    for record in log.records(topics.history):
        value = orjson.loads(record.value or b"{}")
        place = (value["execution"], value["run"], value["seq"])
        before = known.setdefault(place, record)
        if before is record:
            found.setdefault(place[:2], []).append(record)
        elif before.value != record.value or before.headers != record.headers:
            wrong.append(f"{place} was told in two ways")
    return found, wrong


def s1_every_trigger_has_its_fate(e: Evidence) -> Iterator[str]:
    """An acknowledged trigger gets one execution that is terminal, live, or a dead letter with a reason."""
    for reader, position in sorted(e.online.positions.items()):
        workflow, topic, partition, topic_id = reader
        end = position  # a topic that was deleted has been read as far as that
        if topic_id == e.log.topic_id(topic):
            end = e.versions.end(workflow, topic, partition, position)
        for fate in e.online.missing_fates(reader, 0, end):
            yield f"nothing became of {fate}" + (" (any workflow)" if workflow == ANY_WORKFLOW else "")
    known = {execution for execution, _ in e.history}
    for execution, offset in e.asked:
        if execution not in known and (_home(e, execution), offset) not in e.given_up:
            yield f"the start of {execution} at offset {offset} was acknowledged, and nothing was told of it"
    yield from wrong_outcomes(e)
    yield from wrong_letters(e)


def s2_one_end(e: Evidence) -> Iterator[str]:
    """One terminal transition a run, none after it."""
    for run in e.history:
        over = None
        for value in e.values(run):
            if over is not None and value["type"] not in _AFTERWARDS and not value["type"].startswith("Retry"):
                yield f"{run}: {value['type']} (seq {value['seq']}) after {over}"
            if value["type"] in _ENDS:
                over = value["type"]


def s3_the_fold(e: Evidence) -> Iterator[str]:
    """State, audit and emitted work equal the fold of the events topic."""
    yield from s3_rule_sets(e)
    topics, log = e.topics, e.log
    told: dict[str, set[tuple[bytes | None, bytes | None]]] = {}
    wanted: dict[str, dict[tuple[bytes | None, bytes | None], tuple[int, int]]] = {}
    for cause, outputs in e.reference.outputs.items():
        for topic, key, value in outputs:
            wanted.setdefault(topic, {}).setdefault((key, value), cause)
    steps = [name for name in log._topics if name.startswith(topics.steps(""))]
    for topic in (topics.history, topics.control, topics.replies, *steps):
        told[topic] = {(record.key, record.value) for record in log.records(topic)}
        expected = wanted.get(topic, {})
        for entry in [entry for entry in expected if entry not in told[topic]]:
            yield f"{topic}: missing, of offset {expected[entry]}: {(entry[1] or b'')[:300]!r}"
        for _, value in sorted(told[topic] - expected.keys() - e.strays, key=str):
            # A request that is read again after all was forgotten is answered as if nothing had been.
            if topic != topics.replies or b"_gone" not in (value or b""):
                yield f"{topic}: not in the fold: {(value or b'')[:300]!r}"
    found: dict[str, bytes] = {}
    for partition in range(log.partitions(topics.changelog)):
        table = PartitionTable(partition)
        for record in log.records(topics.changelog):
            if record.partition == partition:
                table.load(record)
        found |= states_of(table)
    states, given_up = e.reference.states(), set(e.online.crashed.values())
    for execution in sorted(found.keys() | states.keys()):
        is_, should = found.get(execution), states.get(execution)
        if root_id(execution).encode() in given_up:  # left unread, a record has passed its whole family
            is_, should = _without_src(is_), _without_src(should)
        if is_ != should:
            yield f"the state of {execution} is {is_!r} instead of {should!r}"


def s3_rule_sets(e: Evidence) -> Iterator[str]:
    """A start is judged by the last raise below its own offset, whoever folds it."""
    history = (value for run in e.history for value in e.values(run))
    events = [
        record
        for record in e.log.records(e.topics.events)
        if record.key != RULES_KEY or (record.partition, record.offset) not in e.given_up
    ]
    yield from misjudged(events, lambda execution: _home(e, execution), history)


def _without_src(state: bytes | None) -> bytes | None:
    return state and encode_execution(decode_execution(state)._replace(src=0))


def s4_dependencies(e: Evidence) -> Iterator[str]:
    """A step is sent only when its dependencies allow, under the pinned definition."""
    for run in e.history:
        done: set[str] = set()
        definition = None
        for value in e.values(run):
            if value["type"] == "ExecutionStarted":
                definition = e.versions.by_hash[value["definition"]]
                done |= {step for steps in (value.get("taken") or {}).values() for step in steps}
                yield from not_as_pinned(e, run, value, definition)
            elif value["type"] == "StepCompleted":
                done.add(value["step"])
            elif value["type"] == "StepReady" and definition is not None:
                declared = definition.steps[definition.index[value["step"]]]
                missing = set(declared.depends_on) - done
                if value["queue"] != declared.queue:
                    yield f"{run}: {value['step']} was sent to {value['queue']} instead of {declared.queue}"
                if missing:
                    yield f"{run}: {value['step']} was ready before {sorted(missing)}"


def s5_attempts(e: Evidence) -> Iterator[str]:
    """Only the current attempt's completion is applied; attempts are contiguous and within the limit."""
    for run in e.history:
        current: dict[str, int] = {}
        ended: set[str] = set()
        ignored: set[tuple[str, int, str]] = set()
        definition = None
        for value in e.values(run):
            kind, step, attempt = value["type"], value.get("step"), value.get("attempt")
            if kind == "CompletionIgnored":
                if (step, attempt, value["reason"]) in ignored:
                    yield f"{run}: of {step}/{attempt}, {value['reason']} is recorded twice"
                ignored.add((step, attempt, value["reason"]))
            if kind == "ExecutionStarted":
                definition = e.versions.by_hash[value["definition"]]
            if step is None or definition is None or kind in ("CompletionIgnored", "DispatchFailed"):
                continue
            if kind == "StepReady":
                limit = definition.steps[definition.index[step]].retry.max_attempts
                if attempt - current.get(step, 0) not in (0, 1) or attempt > limit:
                    yield f"{run}: attempt {attempt} of {step} after {current.get(step, 0)}, of {limit}"
                current[step] = attempt
            elif kind in _OF_AN_ATTEMPT and attempt != current.get(step):
                yield f"{run}: {kind} of attempt {attempt} of {step}, whose attempt is {current.get(step)}"
            if kind in ("StepCompleted", "StepFailed", "StepSkipped", "StepCancelled"):
                if step in ended:
                    yield f"{run}: {step} ended twice"
                ended.add(step)


def s6_chains(e: Evidence) -> Iterator[str]:
    """One audit record per (execution, run, seq), contiguous, hashes chain."""
    for run, records in e.history.items():
        head, seq = GENESIS, 0
        for record in records:
            value, headers = orjson.loads(record.value or b"{}"), dict(record.headers)
            if value["seq"] != seq + 1:
                yield f"{run}: seq {value['seq']} came first after {seq}"
            if headers[HEADER_PREV] != head or headers[HEADER_HASH] != chain(head, record.value or b""):
                yield f"{run}: the chain is broken at seq {value['seq']}"
            head, seq = headers[HEADER_HASH], value["seq"]


def s7_the_audit(e: Evidence) -> Iterator[str]:
    """PostgreSQL = history = table."""
    tables = e.tables
    yield from (f"{d.execution}/{d.run} {d.seq or ''}: {d.what}" for d in verify(tables))
    yield from (f"divergence: {d}" for d in tables.divergences.values())
    yield from wrong_workflow_rows(e)
    stored = {(event.execution, event.run, event.seq): event.body for event in tables.events.values()}
    for run, records in e.history.items():
        for record in records:
            value = orjson.loads(record.value or b"{}")
            if stored.pop((*run, value["seq"]), None) != record.value:
                yield f"{run} seq {value['seq']} is not stored"
    yield from (f"{place} is stored and was never told" for place in stored)
    letters = {(v["topic"], v["partition"], v["offset"], v["reason"]) for v in _values(e, e.topics.dead_letters)}
    kept = {(place[0], place[1], place[2], place[5]) for place in tables.letters}
    yield from (f"dead letter {letter} is not stored" for letter in sorted(letters - kept))
    for run, row in tables.executions.items():
        state = e.online.state(_home(e, run[0]), run[0])
        if state is None or state.run != run[1] or state.forgotten or state.refused:
            continue
        if row["status"] != state.status.value:
            yield f"{run} is {row['status']} in the database and {state.status.value} in the table"


def s10_deadlines(e: Evidence) -> Iterator[str]:
    """A timer applies only if the broker's time reached its deadline."""
    for run in e.history:
        values = e.values(run)
        begun: dict[tuple[str, str, int], int] = {}
        again: dict[str, int] = {}
        for value in values:
            kind, at, step = value["type"], from_iso(value["at"]), value.get("step")
            if kind == "ExecutionStarted":
                definition, started = e.versions.by_hash[value["definition"]], at
            elif kind == "ExecutionFailed" and value.get("reason") == "timed_out":
                if at < started + (definition.timeout_ms or 0):
                    yield f"{run} timed out early"
            elif kind == "StepRetryScheduled":
                again[step] = from_iso(value["retry_at"])
            elif kind in ("StepReady", "StepStarted"):
                begun[kind, step, value["attempt"]] = at
                if kind == "StepReady" and at < again.get(step, 0):
                    yield f"{run}: {step} was tried again early"
            elif kind == "StepTimedOut":
                declared = definition.steps[definition.index[step]]
                since, least = {
                    "schedule_to_start": ("StepReady", declared.schedule_to_start_ms),
                    "heartbeat": ("StepStarted", declared.heartbeat_ms),
                }.get(value["timeout"], ("", 0))
                if since and at < begun[since, step, value["attempt"]] + least:
                    yield f"{run}: {step} met its {value['timeout']} early"


def s11_bad_records(e: Evidence) -> Iterator[str]:
    """A bad record makes one dead letter and changes nothing else (the fold does without it)."""
    topics = e.topics
    letters: dict[tuple[str, int, int], set[bytes]] = {}
    for record in e.log.records(topics.dead_letters):
        value = orjson.loads(record.value or b"{}")
        place = (value["topic"], value["partition"], value["offset"])
        known = letters.setdefault(place, set())
        if value["reason"] != "engine_crash" or place[1:] in e.given_up:
            known.add(record.value or b"")
    for partition, offset in e.bad_events:
        found = letters.get((topics.events, partition, offset), set())
        if len(found) != 1 and (partition, offset) not in e.online.crashed:
            yield f"the bad event {partition}/{offset} has {len(found)} dead letters"
        if any(topic != topics.dead_letters for topic, _, _ in e.reference.outputs[partition, offset]):
            yield f"the bad event {partition}/{offset} changed something"


def r2_outputs_before_the_commit(e: Evidence) -> Iterator[str]:
    """Below the committed offset all outputs were acknowledged."""
    said: dict[int, list[tuple[int, tuple[Any, ...]]]] = {}
    for (partition, offset), outputs in e.reference.outputs.items():
        if (partition, offset) in e.online.crashed:
            outputs = [output for output in outputs if output[0] != e.topics.dead_letters]
        said.setdefault(partition, []).extend((offset, output) for output in outputs)
    done: dict[int, int] = {}
    for partition, end, landed in e.online.commits:
        begin = done.get(partition, 0)
        for offset, output in said.get(partition, ()):
            if begin <= offset < end and e.online.first.get(output, landed + 1) > landed:
                yield f"{partition}/{end} was committed before {output[0]} had what offset {offset} says"
        done[partition] = max(begin, end)


def l1_nothing_waits(e: Evidence) -> Iterator[str]:
    """After faults end, all that waits for nobody is terminal within T."""
    yield from e.open


def _values(e: Evidence, topic: str) -> list[dict[str, Any]]:
    return [orjson.loads(record.value or b"{}") for record in e.log.records(topic)]


def _home(e: Evidence, execution: str) -> int:
    return e.reference.home(execution)


CHECKS = {
    "L1": l1_nothing_waits,
    "S1": s1_every_trigger_has_its_fate,
    "S2": s2_one_end,
    "S3": s3_the_fold,
    "S4": s4_dependencies,
    "S5": s5_attempts,
    "S6": s6_chains,
    "S7": s7_the_audit,
    "S10": s10_deadlines,
    "S11": s11_bad_records,
    "R2": r2_outputs_before_the_commit,
}
