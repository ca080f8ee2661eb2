"""What is checked at the very moment at which a record lands, a commit counts, or a partition is claimed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from flowpilot.authoring import StepContext
from flowpilot.core.state import Execution, decode_execution
from flowpilot.engine.engine import Engine
from flowpilot.engine.table import WATERMARK_KEY, entry_of
from flowpilot.ports.audit import Batch
from flowpilot.ports.log import Fetched, TopicPartition
from flowpilot.router.routing import Omitted, route
from flowpilot.worker.records import read_step
from flowpilot_schemas.codec import BadRecord
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.ids import TaskId
from flowpilot_schemas.messages import DeadLetter, Origin, StartExecution
from flowpilot_schemas.topics import Topics
from flowpilot_schemas.triggers import ANY_WORKFLOW, PositionKey
from tests.simulation.loop import PROCESS, Process
from tests.simulation.workflows import TOPICS

if TYPE_CHECKING:
    from flowpilot.adapters.memory.log import MemoryLog
    from tests.simulation.database import Database
    from tests.simulation.versions import Versions

Report = Callable[[str, str], None]
Fate = tuple[str, str, str, int, int, str]
"""What became of a trigger record: (what, workflow, topic, partition, offset, topic id)."""
Reader = tuple[str, str, int, str]
"""(workflow, topic, partition, topic id)."""


class Online:
    """Called by the broker, the groups, the database and the engines' processes."""

    def __init__(
        self,
        topics: Topics,
        log: MemoryLog,
        versions: Versions,
        report: Report,
        wall_ms: Callable[[Process], int],
    ) -> None:
        self._topics, self._log, self._versions, self._report = topics, log, versions, report
        self._wall_ms = wall_ms
        self.landed_count = 0
        self.durable: dict[tuple[int, bytes], tuple[int, int, bytes | None]] = {}
        """The record of each key of the changelog that a recovery would take now: src, epoch, value."""
        self.first: dict[tuple[str, bytes | None, bytes | None], int] = {}
        """When (counted in landed records) an output was on its topic first."""
        self.commits: list[tuple[int, int, int]] = []
        """(partition, offset, how many records had landed) of the engine's commits."""
        self.places: dict[tuple[int, int], tuple[str, int, int]] = {}
        """(execution, run, seq) of a record of the history topic."""
        self.fates: set[Fate] = set()
        self.positions: dict[Reader, int] = {}
        """The greatest position of each that the routers wrote."""
        self.triggers: dict[tuple[str, int, str], list[Fetched]] = {}
        """By (topic, partition, topic id): all trigger records there were, by their offsets."""
        self.runs_of_others = 0
        """Attempts that ran with the code of another version than the execution's."""
        self._definitions: dict[str, str] = {}
        """By idempotency key, the definition that the step messages name."""
        self.answered: set[str] = set()
        self.over: set[object] = set()
        self.buried: set[tuple[str, int, int]] = set()
        self.crashed: dict[tuple[int, int], bytes | None] = {}
        """Events (partition, offset) with a letter of crashes, which stands for any other of theirs; their keys."""
        self.given_up: dict[tuple[int, int], bytes | None] = {}
        """Events (partition, offset) that no engine folded, since three processes ended over them; their keys."""
        self._bars: dict[tuple[int, bytes], int] = {}
        """The claim under which a record of the key's was given up: what older ones write is nothing."""
        self._epochs: dict[int, int] = {}
        self._reached: dict[tuple[Process, int], int] = {}
        """What each engine has folded of each partition, as it says itself."""
        self._step_commits: dict[TopicPartition, int] = {}
        self._decoded: dict[tuple[int, bytes], tuple[bytes, Execution]] = {}

    # ---- records

    def landed(self, record: Fetched, sender: Process) -> None:
        """A record was appended."""
        topics, topic = self._topics, record.topic
        self.landed_count += 1
        if topic == topics.changelog:
            self._state(record)
            if record.key == WATERMARK_KEY:
                self._reached[sender, record.partition] = entry_of(record).src
            return
        if topic == topics.triggers or topic in TOPICS:
            self.triggers.setdefault((topic, record.partition, self._log.topic_id(topic)), []).append(record)
        self.first.setdefault((topic, record.key, record.value), self.landed_count)
        if topic == topics.events:
            self._event(record, sender)
        elif topic == topics.history:
            self._history(record, sender)
        elif topic.startswith(topics.steps("")):
            self._step(record, sender)
        elif topic == topics.dead_letters:
            self._dead_letter(record, sender)
        elif topic == topics.control:
            value = orjson.loads(record.value or b"{}")
            self.over.add(value.get("task_id") or (value.get("execution"), value.get("run")))
        elif topic == topics.fates:
            self._filtered(record)
        elif topic == topics.positions:
            self._position(record, sender)

    def _state(self, record: Fetched) -> None:
        entry, key = entry_of(record), (record.partition, record.key or b"")
        known, newest = self.durable.get(key), self._epochs.get(record.partition, 0)
        self._epochs[record.partition] = max(newest, entry.epoch)
        if entry.epoch < self._bars.get(key, -1):
            return
        if known is None:
            wins = True
        elif entry.bars:
            wins = entry.epoch >= newest or entry.src > known[0]
        else:
            wins = (entry.src, entry.epoch) >= known[:2]
        if wins:
            self.durable[key] = (entry.src, entry.epoch, entry.value)
            if entry.bars:
                self._bars[key] = entry.epoch

    def state(self, partition: int, execution: str) -> Execution | None:
        """The execution as a recovery would find it now."""
        key = (partition, execution.encode())
        value = self.durable.get(key, (0, 0, None))[2]
        if value is None:
            return None
        known = self._decoded.get(key)
        if known is None or known[0] is not value:
            known = self._decoded[key] = (value, decode_execution(value))
        return known[1]

    def _event(self, record: Fetched, sender: Process) -> None:
        value = record.value or b""
        if b'"origin":{' not in value and b'"type":"step.' not in value:
            return
        try:
            found = orjson.loads(value)
        except orjson.JSONDecodeError:
            return
        kind = found.get("type")
        if kind == "execution.start" and found.get("origin"):
            at = found["origin"]
            place = (at["topic"], at["partition"], at["offset"], at["topic_id"])
            self.fates.add(("started", found["workflow"], *place))
            if not self._is_of(found, *place):
                self._report("S1", f"{sender} started {found['execution']} under the id of another topic: {place}")
            origin = Origin.model_validate(at)
            wrong = self._versions.wrong_start(found["workflow"], found["definition"], origin)
            if wrong is not None:
                self._report("S1", f"{sender}: {wrong}")
        elif kind in ("step.started", "step.completed", "step.failed"):
            self.answered.add(found.get("task_id"))

    def _history(self, record: Fetched, sender: Process) -> None:
        value = orjson.loads(record.value or b"{}")
        execution = value["execution"]
        self.places[record.partition, record.offset] = (execution, value["run"], value["seq"])
        # A zombie's state may land after the letter: then the record is folded after all.
        self.given_up.pop((record.partition, value["cause"]), None)
        src = self.durable.get((record.partition, execution.encode()), (-1, 0, None))[0]
        if value["cause"] > src:
            what = f"{value['type']} {execution}/{value['run']} seq {value['seq']}"
            self._report("S8", f"{sender} told {what} of offset {value['cause']}; its state is at {src}")

    def _step(self, record: Fetched, sender: Process) -> None:
        task = TaskId.parse((record.key or b"").decode())
        if task is None:
            return
        value = orjson.loads(record.value or b"{}")
        self._definitions[task.idempotency_key] = value["definition"]
        partition = value["reply"]["partition"]
        state = self.state(partition, task.execution)
        if state is None:
            if (partition, task.execution.encode()) not in self.durable:
                self._report("S8", f"{sender} sent {task} without any state")
        elif state.run < task.run or (state.run == task.run and not self._has_reached(state, task)):
            self._report("S8", f"{sender} sent {task}; the state is at run {state.run}, src {state.src}")

    def ran(self, ctx: StepContext, code: WorkflowDefinition) -> None:
        """A handler of `code` was called."""
        definition = self._definitions[ctx.idempotency_key]
        self.runs_of_others += definition != code.hash
        wrong = self._versions.wrong_code(definition, ctx.step, code)
        if wrong is not None:
            self._report("S13", f"{PROCESS.get()}: {wrong}")

    def _has_reached(self, state: Execution, task: TaskId) -> bool:
        definition = self._versions.by_hash.get(state.definition)
        if definition is None or not state.steps:
            return True  # what is over keeps no steps
        if task.step not in definition.index:
            self._report("S4", f"{task} was sent, but the pinned version {definition.version} has no such step")
            return True
        return state.steps[definition.index[task.step]].attempt >= task.attempt

    def _dead_letter(self, record: Fetched, sender: Process) -> None:
        value = orjson.loads(record.value or b"{}")
        place = (value["topic"], value["partition"], value["offset"])
        self.buried.add(place)
        # What was folded before (its reading again ended the processes) is in the state, letter or not. An earlier
        # owner's late watermark is no sign of it: only that of whoever gives the record up.
        reached = self._reached.get((sender, value["partition"]), -1)
        if value["reason"] == "engine_crash":
            self.crashed[place[1:]] = record.key
            if reached < value["offset"]:
                self.given_up[place[1:]] = record.key
        if value["source"] == "router":
            for (topic, partition, topic_id), records in self.triggers.items():  # a letter does not know the id
                is_there = (topic, partition) == place[:2] and len(records) > place[2]
                if is_there and records[place[2]].timestamp == value["timestamp"]:
                    self.fates.add(("dead", value.get("workflow") or "", *place, topic_id))

    def _is_of(self, start: dict[str, Any], topic: str, partition: int, offset: int, topic_id: str) -> bool:
        """Whether the record there is the one that the start was made of: its input is in it."""
        records = self.triggers.get((topic, partition, topic_id), [])
        if offset >= len(records):
            return False
        try:
            value = orjson.loads(records[offset].value or b"")
        except orjson.JSONDecodeError:
            return False
        return start.get("input") in (value, value.get("input") if isinstance(value, dict) else None)

    def _filtered(self, record: Fetched) -> None:
        value = orjson.loads(record.value or b"{}")
        for part in value["filtered"]:
            workflow = part["workflow"] or ""
            for first, last in part["ranges"]:
                for offset in range(first, last + 1):
                    place = (value["topic"], value["partition"], offset, value["topic_id"])
                    self.fates.add(("filtered", workflow, *place))
                    if part["reason"] == "expired":
                        self.fates.add(("expired", workflow, *place))

    # ---- R2: below what is committed all is said

    def _position(self, record: Fetched, sender: Process) -> None:
        if record.value is None or sender.role == "world":  # a forged one is no commit
            return
        place = PositionKey.decode(record.key)
        end = orjson.loads(record.value)["next_offset"]
        begin = self.positions.get(place, 0)
        for missing in self.missing_fates(place, begin, end):
            self._report("R2", f"{sender} committed {place} up to {end}, but {missing} is not there")
        self.positions[place] = max(begin, end)

    def missing_fates(self, reader: Reader, begin: int, end: int) -> list[Fate]:
        """Of the records from `begin` to `end`, what the routing says and the log does not."""
        found = []
        workflow, topic, partition, topic_id = reader
        records = self.triggers.get((topic, partition, topic_id), [])
        if end > len(records):
            return [("committed beyond the end", workflow, topic, partition, end, topic_id)]
        for record in records[begin:end]:
            if any(
                ("expired", name, topic, partition, record.offset, topic_id) in self.fates
                for name in (workflow, "" if workflow == ANY_WORKFLOW else workflow)
            ):
                continue
            only = None if workflow == ANY_WORKFLOW else {workflow}
            fates: dict[Fate, None] = {}
            for where in self._versions.routes:
                fates |= dict.fromkeys(
                    _fate(record, topic_id, outcome) for outcome in route(where, record, topic_id, only)
                )
            # Which version was current when it was routed is not known: each is right.
            if fates and not self._versions.changed:
                found += [fate for fate in fates if fate not in self.fates]
            elif fates and not any(fate in self.fates for fate in _in_any_words(fates, workflow)):
                found += list(fates)[:1]
        return found

    def committed(self, group: str, process: Process, positions: Mapping[TopicPartition, int]) -> None:
        """A commit of a worker's, the router's or the audit writer's group counts."""
        for tp, end in positions.items():
            if tp.topic.startswith(self._topics.steps("")):
                begin = self._step_commits.get(tp, 0)
                for record in self._log.fetch(tp, begin, max(0, end - begin)):
                    why = self._unfinished(record, process)
                    if why is not None:
                        self._report("R2", f"{process} committed {tp.topic}/{tp.partition} up to {end}: {why}")
                self._step_commits[tp] = max(begin, end)

    def _unfinished(self, record: Fetched, process: Process) -> str | None:
        place = (record.topic, record.partition, record.offset)
        if place in self.buried:
            return None
        try:
            message, task, not_after = read_step(record)
        except BadRecord:
            return f"the bad record {place} has no dead letter"
        done = message.task_id in self.answered or message.task_id in self.over
        if done or (task.execution, task.run) in self.over or self._wall_ms(process) > not_after:
            return None
        return f"{message.task_id} at {place} is not answered"

    def engine_committed(self, process: Process, partition: int, offset: int) -> None:
        """A commit of the engine's group counts; it is judged when all is known."""
        self.commits.append((partition, offset, self.landed_count))

    # ---- R1, S7

    def claimed(
        self, process: Process, engine: Engine, committed: Mapping[int, int | None], starts: Mapping[int, int]
    ) -> None:
        """An engine has taken partitions over."""
        for partition in starts:
            owned, offset = engine._owned.get(partition), committed.get(partition)
            if owned is not None and offset is not None and owned.recovered_watermark + 1 < offset:
                found = f"recovered {owned.recovered_watermark}, committed {offset}"
                self._report("R1", f"{process} took partition {partition} over: {found}")

    def stored(self, process: Process, batch: Batch, database: Database) -> None:
        """The audit writer's transaction is done: what is below its positions is in it."""
        for advance in batch.advances:
            if advance.partition.topic != self._topics.history:
                continue
            for offset in range(advance.expected, advance.next_offset):
                place = self.places.get((advance.partition.partition, offset))
                if place is not None and place not in database.tables.events:
                    self._report("S7", f"{process} stored the position {advance.next_offset}, but not {place}")


def _in_any_words(fates: Iterable[Fate], workflow: str) -> Iterator[Fate]:
    """What nobody can read is no workflow's fault if several read the topic, and how many do may have changed."""
    for fate in fates:
        yield fate
        if fate[0] == "dead" and workflow != ANY_WORKFLOW:
            yield ("dead", "", *fate[2:])
            yield ("dead", workflow, *fate[2:])


def _fate(record: Fetched, topic_id: str, outcome: StartExecution | DeadLetter | Omitted) -> Fate:
    place = (record.topic, record.partition, record.offset, topic_id)
    if isinstance(outcome, StartExecution):
        return ("started", outcome.workflow, *place)
    if isinstance(outcome, DeadLetter):
        return ("dead", outcome.workflow or "", *place)
    return ("filtered", outcome.workflow or "", *place)
