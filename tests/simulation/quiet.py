"""Whether all is quiet: everybody has come to the end of what he reads, and all executions are over."""

from __future__ import annotations

from flowpilot.core.status import TERMINAL_EXECUTION, ExecutionStatus
from flowpilot.engine.keys import is_state
from flowpilot.engine.table import WATERMARK_KEY
from flowpilot.ports.log import TopicPartition
from flowpilot_schemas.ids import root_id
from tests.simulation.world import World

BOUND = 240.0
"""So many simulated seconds after the last fault all must be quiet (L1)."""


def behind(world: World) -> list[str]:
    """Who has not come to the end of what it reads yet, and which executions are not over."""
    log, topics = world.log, world.topics
    found = ["a deployment"] if world.deploying else []
    for partition in range(world.plan.partitions):
        _, end = log.bounds(topics.events, partition)
        if world.engine_group.committed.get(partition, 0) < end:
            found.append(f"events/{partition}: {world.engine_group.committed.get(partition, 0)} of {end}")
    for (workflow, topic, partition), end in _trigger_ends(world).items():
        if world.online.positions.get((workflow, topic, partition, log.topic_id(topic)), 0) < end:
            found.append(f"{workflow} on {topic}/{partition}")
    for queue in sorted({queue for w in world.workflows for queue in w.definition.queues} - {"nowhere"}):
        group = world.group(topics.worker_group(queue))
        for partition in range(log.partitions(topics.steps(queue))):
            tp = TopicPartition(topics.steps(queue), partition)
            at, end = max(group.committed.get(tp, 0), group.believed.get(tp, 0)), log.bounds(*tp)[1]
            if at < end:
                found.append(f"{tp.topic}/{partition}: {at} of {end}")
    for name in (topics.history, topics.dead_letters, topics.definitions, topics.fates):
        for partition in range(log.partitions(name)):
            tp = TopicPartition(name, partition)
            stored = world.database.tables.positions.get(tp)
            if (stored.next_offset if stored else 0) < log.bounds(*tp)[1]:
                found.append(f"the audit of {name}/{partition}")
    if not found and world.broker.ghosts:
        found.append("ghosts")
    return found or open_executions(world)


def _trigger_ends(world: World) -> dict[tuple[str, str, int], int]:
    found = {("*", world.topics.triggers, 0): world.log.bounds(world.topics.triggers, 0)[1]}
    known = world.versions.known
    for definition in filter(None, map(known.current, known.workflows())):
        for trigger in definition.triggers:
            for partition in range(world.log.partitions(trigger.topic)):
                place = (definition.name, trigger.topic, partition)
                found[place] = world.log.bounds(trigger.topic, partition)[1]
    return found


def open_executions(world: World) -> list[str]:
    """Those that are not over."""
    found = []
    # Of whose events one was given up: its next time-out may be an hour away.
    excused = {root_id((key or b"").decode()) for key in world.online.given_up.values()}
    for partition, key in list(world.online.durable):
        if key == WATERMARK_KEY or not is_state(key):
            continue
        state = world.online.state(partition, key.decode())
        if state is not None and state.status not in TERMINAL_EXECUTION and not state.forgotten:
            if root_id(state.id) in excused:
                continue
            steps = [(step.status.value, step.attempt, step.due) for step in state.steps]
            found.append(f"{state.id}/{state.run} of {state.workflow} is {state.status}: {steps}")
            if state.status is ExecutionStatus.INCIDENT:
                world.report("S3", f"a defect: {found[-1]}")
    return found
