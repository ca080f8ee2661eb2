"""What a step waits for: whether a live worker serves its definition, and what to do if none does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from flowpilot.core.serving import Registered, judge
from flowpilot.ports.definitions import Definitions
from flowpilot.ports.members import LiveMembers
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.members import WorkerAnnounced

# Versions that a sentence names.
_NAMED = 5


class Needed(NamedTuple):
    """A step as it is sent: to which queue, and of which definition (its hash)."""

    queue: str
    workflow: str
    version: str
    definition: str
    step: str


class Seen(NamedTuple):
    """Who is live, and what is registered. `others`: by queue, members of its group that do not announce."""

    live: LiveMembers
    others: Mapping[str, int]
    definitions: Definitions


class Wait(NamedTuple):
    """What a step waits for, as a word and a sentence; `remedy` is what to do about it, None if nothing.

    `unannounced`: workers are there, and whether they serve the step is not known.
    """

    reason: Literal["no_worker", "not_served", "busy", "unannounced"]
    detail: str
    remedy: str | None = None


def serves(worker: WorkerAnnounced, needed: Needed, definitions: Definitions) -> bool:
    """Whether the worker runs the step, by the rule that workers follow."""
    if any(each.definition == needed.definition for each in worker.definitions):
        return True
    wanted = _registered(needed, needed.definition, definitions)
    if wanted is None:
        return False
    others = (
        _registered(needed, each.definition, definitions)
        for each in worker.definitions
        if each.workflow == needed.workflow
    )
    return any(judge(served, wanted).runs for served in others if served is not None)


def _registered(needed: Needed, definition_hash: str, definitions: Definitions) -> Registered | None:
    """The step as that definition has it."""
    definition = definitions.get(definition_hash)
    if definition is None or definition.name != needed.workflow or needed.step not in definition.index:
        return None
    contract = definition.steps[definition.index[needed.step]].contract
    return Registered(definition_hash, definitions.position(definition_hash), contract)


def waits_for(needed: Needed, seen: Seen) -> Wait:
    """What a step that is ready waits for."""
    workers, others = seen.live.of_queue(needed.queue), seen.others.get(needed.queue, 0)
    able = sum(serves(worker, needed, seen.definitions) for worker in workers)
    if able:
        who = "the worker" if able == 1 else f"one of the {able:,} workers"
        return Wait("busy", f"{who} of queue {needed.queue} that serve{'s' * (able == 1)} it")
    doubtful = others + sum(worker.definitions_left_out > 0 for worker in workers)
    if doubtful:
        who = "a worker" if doubtful == 1 else f"one of {doubtful:,} workers"
        does = "does" if doubtful == 1 else "do"
        return Wait("unannounced", f"{who} of queue {needed.queue} that {does} not announce all that is served")
    if not workers and not seen.live.is_complete:
        return Wait("unannounced", f"a worker of queue {needed.queue}: more is announced than can be read")
    start = f"flowpilot worker MODULE:{needed.workflow}"
    if not workers:
        return Wait("no_worker", f"a worker: queue {needed.queue} has none", start)
    return Wait(
        "not_served",
        f"a worker that serves {needed.workflow} {needed.version}: {_who(workers)} of queue {needed.queue} "
        f"{_versions(workers, needed.workflow)}",
        f"{start} with the code of version {needed.version}",
    )


class Unserved(NamedTuple):
    """A definition of which some steps have no worker: the first of them, and how many there are."""

    definition: WorkflowDefinition
    wait: Wait
    steps: int


def unserved(definitions: Iterable[WorkflowDefinition], seen: Seen) -> list[Unserved]:
    """Those of `definitions` that no live worker serves whole, as far as is known."""
    found = []
    for definition in definitions:
        waits = [waits_for(needed, seen) for needed in needed_of(definition)]
        missing = [wait for wait in waits if wait.remedy is not None]
        if missing:
            found.append(Unserved(definition, missing[0], len(missing)))
    return found


def needed_of(definition: WorkflowDefinition) -> Iterable[Needed]:
    """All steps of a definition."""
    for step in definition.steps:
        yield Needed(step.queue, definition.name, definition.version, definition.hash, step.name)


def _who(workers: Sequence[WorkerAnnounced]) -> str:
    return "the worker" if len(workers) == 1 else f"the {len(workers):,} workers"


def _versions(workers: Sequence[WorkerAnnounced], workflow: str) -> str:
    found = dict.fromkeys(
        each.version for worker in workers for each in worker.definitions if each.workflow == workflow
    )
    if not found:
        return f"serve{'s' * (len(workers) == 1)} no version of {workflow}"
    named = ", ".join(list(found)[:_NAMED])
    more = f" and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
    return f"serve{'s' * (len(workers) == 1)} {named}{more}"
