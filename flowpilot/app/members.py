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


def unannounced(queues: Iterable[str], members: Members, settings: Settings, live: LiveMembers) -> dict[str, int]:
    """By queue, how many members of its group do not announce themselves; `members` are by group.

    The client id of a FlowPilot worker is its id, unless the settings name another: then each announcement stands
    for one member.
    """
    found = {}
    for queue in queues:
        announced = {worker.worker for worker in live.of_queue(queue)}
        there = members.get(settings.topics.worker_group(queue), [])
        known = sum(member.client in announced for member in there)
        found[queue] = max(0, len(there) - (known or len(announced)))
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


def tell_waits(settings: Settings, found: Fields) -> None:
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
