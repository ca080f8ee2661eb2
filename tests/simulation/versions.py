"""What the definitions topic says at each moment, read without delay: what the roles know is compared with it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.ports.log import Fetched, TopicPartition
from flowpilot.router.routing import Routes, routes
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.limits import Limits
from flowpilot_schemas.messages import Origin
from flowpilot_schemas.topics import Topics
from flowpilot_schemas.triggers import ANY_WORKFLOW
from tests.simulation.loop import Process
from tests.simulation.reference import finish

if TYPE_CHECKING:
    from flowpilot.adapters.memory.log import MemoryLog


@dataclass
class _Chosen:
    """One choice of versions, as the routing asks for them."""

    by_name: dict[str, WorkflowDefinition]

    def current(self, workflow: str) -> WorkflowDefinition | None:
        return self.by_name.get(workflow)

    def version(self, workflow: str, version: str) -> WorkflowDefinition | None:
        found = self.by_name.get(workflow)
        return found if found is not None and found.version == version else None

    def workflows(self) -> list[str]:
        return sorted(self.by_name)


class Versions:
    """Told of each record that lands. `known`: the definitions of the moment."""

    def __init__(self, log: MemoryLog, topics: Topics, limits: Limits) -> None:
        self._log, self._topics, self._limits = log, topics, limits
        self.known = LogDefinitions(None, self, topics.definitions)  # type: ignore[arg-type]  # it registers nothing
        self.by_hash: dict[str, WorkflowDefinition] = {}
        """Every definition that ever was on the topic."""
        self.by_name: dict[str, list[WorkflowDefinition]] = {}
        """Each workflow's, in the order in which they came."""
        self.has_deletions = False
        self._routes: list[Routes] = []
        self._pointed: dict[str, list[tuple[int, str | None]]] = {}
        self._defined: dict[str, int] = {}
        self._registrations: list[str] = []
        self._landed = 0
        self._at: dict[tuple[str, int, int, str], int] = {}

    # ---- a reader that waits for nothing

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        return self._log.bounds(topic, partition)

    async def read(self, topic: str, partition: int, start: int, end: int) -> list[Fetched]:
        found = self._log.fetch(TopicPartition(topic, partition), start, max(0, end - start))
        return [record for record in found if record.offset < end]

    # ---- what is told

    def landed(self, record: Fetched, sender: Process) -> str | None:
        """A record was appended; what is wrong with that."""
        self._landed += 1
        if record.topic != self._topics.definitions:
            topic_id = self._log.topic_id(record.topic)
            self._at[record.topic, record.partition, record.offset, topic_id] = self._landed
            return None
        finish(self.known.refresh())
        kind, _, name = (record.key or b"").decode().partition("/")
        if kind == "def":
            self._defined[name] = self._landed
            self._registrations.append(name)
            self._take(name)
        elif "@" not in name:
            current = self.known.current(name)
            self.has_deletions = self.has_deletions or current is None
            self._pointed.setdefault(name, []).append((self._landed, current.hash if current else None))
            if sender.role not in ("world", "operator"):
                return f"{sender} moved the pointer of {name}"
        return None

    def _take(self, definition_hash: str) -> None:
        definition = self.known.get(definition_hash)
        if definition is None or definition_hash in self.by_hash:
            return
        self.by_hash[definition_hash] = definition
        self.by_name.setdefault(definition.name, []).append(definition)
        most = max(len(found) for found in self.by_name.values())
        self._routes = [self._choice(number) for number in (*range(most), None)]

    def _choice(self, number: int | None) -> Routes:
        """Every workflow in its version of that number, or its last; or none."""
        found = {} if number is None else self.by_name
        chosen = {name: versions[min(number or 0, len(versions) - 1)] for name, versions in found.items()}
        return routes(_Chosen(chosen), self._topics, self._limits)

    @property
    def routes(self) -> list[Routes]:
        """What the routing may go by: every workflow's first version, its second, …; none, if one was deleted."""
        return self._routes if self.has_deletions else self._routes[:-1]

    def end(self, workflow: str, topic: str, partition: int, position: int) -> int:
        """Up to which offset a workflow has to have read: to the end, or to its position if it reads no more."""
        current = self.known.current(workflow)
        reads = current is not None and any(trigger.topic == topic for trigger in current.triggers)
        return self._log.bounds(topic, partition)[1] if reads or workflow == ANY_WORKFLOW else position

    @property
    def changed(self) -> bool:
        """Whether there was ever more than one version of a workflow, or none."""
        return self.has_deletions or any(len(found) > 1 for found in self.by_name.values())

    def is_of_now(self, workflow: str, definition_hash: str) -> bool:
        """Whether the definition came, or was made current, after the workflow was deleted, if it ever was."""
        pointed = self._pointed[workflow]
        deleted = max((at for at, hash_ in pointed if hash_ is None), default=0)
        return max(self._defined[definition_hash], *(at for at, h in pointed if h == definition_hash), 0) > deleted

    def wrong_code(self, definition_hash: str, step: str, code: WorkflowDefinition) -> str | None:
        """Of a step that `code` runs: whether a worker could know that it may, by what had been registered at any
        time until now: what it knows may be old."""
        if code.hash == definition_hash:
            return None
        wanted = self.by_hash.get(definition_hash)
        if wanted is None or wanted.name != code.name or step not in wanted.index:
            return f"code of {code.name} {code.version} ran {step} of {definition_hash}, which has no such step"
        label = f"{step} of {wanted.name} {wanted.version} ran with the code of version {code.version}"
        contracts = {each.steps[each.index[step]].contract for each in (wanted, code)}
        if len(contracts) != 1:
            return f"{label}, which has another contract"
        found = [each for each in self._registrations if each in (definition_hash, code.hash)]
        if (definition_hash, code.hash) not in pairwise(found):
            return f"{label}, which was never the newer"
        return None

    def wrong_start(self, workflow: str, definition_hash: str, origin: Origin) -> str | None:
        """Of a start that a record made: whether that version was current when the record came, or later."""
        if origin.topic == self._topics.triggers:
            [record] = self._log.fetch(TopicPartition(origin.topic, origin.partition), origin.offset, 1)
            if b'"version"' in (record.value or b""):
                return None
        came = self._at.get((origin.topic, origin.partition, origin.offset, origin.topic_id or ""))
        if came is None:
            return f"no record of {origin.topic} is at {origin.partition}/{origin.offset} under {origin.topic_id}"
        pointed = self._pointed[workflow]
        before = [hash_ for at, hash_ in pointed if at < came][-1:]
        since = [hash_ for at, hash_ in pointed if at >= came]
        if definition_hash in before + since:
            return None
        return f"a record of {origin.topic} started a version of {workflow} that was not current any more"
