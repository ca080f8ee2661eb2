"""Who is live and what they serve, asked of Kafka once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import structlog

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.kafka.admin import AdminError, KafkaAdmin
from flowpilot.adapters.kafka.config import announcer_properties, reader_properties
from flowpilot.adapters.kafka.groups import KafkaGroups, Member
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.adapters.members import LogMembers
from flowpilot.app.serving import Needed, Seen, Wait, waits_for
from flowpilot.ports.log import LogUnavailable
from flowpilot.ports.members import LiveMembers
from flowpilot.settings import Settings
from flowpilot_schemas.members import WorkerAnnounced

_log = structlog.get_logger("flowpilot.members")

# Seconds: for each answer, and for all of them.
_PATIENCE, _LONGEST = 2.0, 6.0

Members = dict[str, list[Member]]
Fields = dict[str, Any]


async def look(settings: Settings) -> tuple[LiveMembers, LogDefinitions]:
    """Who is live, and what is registered. Raises `LogUnavailable`."""
    producer = KafkaProducer({**announcer_properties(settings), "message.timeout.ms": round(_PATIENCE * 1_000)})
    reader = KafkaReader(reader_properties(settings), timeout=_PATIENCE)
    try:
        async with asyncio.timeout(_LONGEST):
            definitions = LogDefinitions(producer, reader, settings.topics.definitions)
            await definitions.refresh()
            return await LogMembers(reader, settings.topics.members, producer).live(), definitions
    except TimeoutError:
        raise LogUnavailable(f"no answer within {_LONGEST:g} s") from None
    finally:
        producer.close(timeout=0.5)
        reader.close()


def joined(
    queue: str, topic: str, members: Sequence[Member], live: LiveMembers
) -> list[tuple[Member | None, WorkerAnnounced | None]]:
    """The members of a queue's group, each with its announcement; then the announcements without a member.

    The client id of a FlowPilot worker is its id. That of a static member that was started again is its first
    process's for good, and the settings may name another: such a member is found by its partitions, of which each
    has one owner.
    """
    newest_first = sorted(live.workers, key=lambda worker: worker.started_at, reverse=True)
    announced = {worker.worker: worker for worker in newest_first if queue in worker.queues}
    by_client = [(member, announced.pop(member.client, None)) for member in members]
    found: list[tuple[Member | None, WorkerAnnounced | None]] = []
    for member, worker in by_client:
        if worker is None:
            partitions = [partition for name, partition in member.partitions if name == topic]
            same = next((name for name, other in announced.items() if other.queues[queue] == partitions), None)
            worker = announced.pop(same) if same is not None else None
        found.append((member, worker))
    return found + [(None, announced[name]) for name in sorted(announced)]


def unannounced(queues: Iterable[str], members: Members, settings: Settings, live: LiveMembers) -> dict[str, int]:
    """By queue, how many members of its group do not announce themselves; `members` are by group."""
    found = {}
    for queue in queues:
        there = members.get(settings.topics.worker_group(queue), [])
        pairs = joined(queue, settings.topics.steps(queue), there, live)
        found[queue] = sum(worker is None for _, worker in pairs)
    return found


def waiting(settings: Settings, wanted: Sequence[Needed]) -> list[Wait] | None:
    """What each of these steps waits for; None if Kafka does not tell within seconds."""
    try:
        KafkaAdmin(settings, timeout=_PATIENCE).reach()
        live, definitions = asyncio.run(look(settings))
        queues = list(dict.fromkeys(needed.queue for needed in wanted))
        groups = KafkaGroups(settings, timeout=_PATIENCE)
        members = groups.members(map(settings.topics.worker_group, queues))
    except (AdminError, LogUnavailable) as error:
        _log.info("Kafka does not tell who serves what", error=str(error))
        return None
    seen = Seen(live, unannounced(queues, members, settings, live), definitions)
    return [waits_for(needed, seen) for needed in wanted]


def add_waits(settings: Settings, found: Fields) -> None:
    """Add to each step of `found` (as `executions.show_execution` gives it) that is ready what it `waits_for`.

    Left out if Kafka does not tell: the rest comes from PostgreSQL.
    """
    queues = {step["step"]: step["queue"] for step in found["graph"]}
    ready = [task for task in found["tasks"] if task["status"] == "ready" and task["step"] in queues]
    if not ready or found["definition"] is None:
        return
    wanted = [
        Needed(queues[task["step"]], found["workflow"], found["version"], found["definition"], task["step"])
        for task in ready
    ]
    for task, wait in zip(ready, waiting(settings, wanted) or [], strict=False):
        task["waits_for"] = wait._asdict()
