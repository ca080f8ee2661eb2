"""Others who write to the log: users' systems, and somebody who sends again, or nonsense."""

from __future__ import annotations

import asyncio
import random

import orjson

from flowpilot.ports.log import Record
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import encode_message
from flowpilot_schemas.ids import keyed_execution_id
from tests.property.storm import BAD_EVENTS
from tests.simulation.loop import WORLD
from tests.simulation.plan import RULES
from tests.simulation.workflows import TOPICS
from tests.simulation.world import World


def duplicate(world: World, chance: random.Random) -> bool:
    """Somebody sends a record again."""
    topics = world.topics
    topic = chance.choice((topics.events, topics.events, topics.steps("q1"), topics.control))
    found = world.log.records(topic)
    if not found:
        return False
    record = chance.choice(found[-30:])
    world.fault("duplicate", f"{topic}/{record.partition}/{record.offset}")
    again = Record(topic, record.key, record.value, record.partition, record.headers)
    partition, offset = world.broker.append(again, WORLD)[:2]
    if topic == topics.events and (record.partition, record.offset) in world.bad_events:
        world.bad_events.append((partition, offset))
    return True


def rule_sets(world: World, chance: random.Random) -> bool:
    """Setup permits the newer rule set, of all partitions or half-way; or a producer asks for one by number."""
    topics, kind = world.topics, chance.random()
    if kind < 0.5:
        rules = chance.choice((RULES, RULES, RULES, RULES + 3))
        reached = chance.choice((1, world.plan.partitions, world.plan.partitions))
        world.fault("rule_sets", f"{rules} for {reached} partitions")
        for partition in range(reached):
            raised = encode_message(m.RulesPermitted(rules=rules))
            world.broker.append(Record(topics.events, b"rules", raised, partition), WORLD)
        return True
    definition = chance.choice(world.workflows).definition
    execution = keyed_execution_id(definition.name, f"rules-{chance.randrange(5)}")
    start = m.StartExecution(
        execution=execution,
        workflow=definition.name,
        version=definition.version,
        definition=definition.hash,
        rules=chance.choice((None, 1, RULES, RULES, RULES + 1)),
        input={"id": "p1", "n": 1, "text": ""},
    )
    world.fault("rule_sets", f"{execution} asks for {start.rules}")
    home = world.events_topic().home(execution)
    world.broker.append(Record(topics.events, execution.encode(), encode_message(start), home), WORLD)
    return True


def bad_event(world: World, chance: random.Random) -> bool:
    topics = world.topics
    kind = chance.random()
    if kind < 0.6:
        partition = chance.randrange(world.plan.partitions)
        record = Record(topics.events, b"k", chance.choice(BAD_EVENTS), partition)
        world.fault("bad_event")
        delivery = world.broker.append(record, WORLD)
        world.bad_events.append((partition, delivery.offset))
    elif kind < 0.75:
        world.fault("bad_event", "a step message")
        value = chance.choice((b"{}", b'{"v":1,"type":"step.ready"}', b"x", None))
        world.strays.add((b"stray", value))
        partition = chance.randrange(world.plan.step_partitions)
        world.broker.append(Record(topics.steps("q1"), b"stray", value, partition), WORLD)
    else:
        return _wrong_answer(world, chance)
    return True


def _wrong_answer(world: World, chance: random.Random) -> bool:
    """An answer of an attempt that was never sent, of another run, or to another partition."""
    topics = world.topics
    found = [record for record in world.log.records(topics.steps("q1")) if record.key != b"stray"]
    if not found:
        return False
    step = orjson.loads(chance.choice(found).value or b"{}")
    execution, run, name, attempt = step["task_id"].split("/")
    task = chance.choice(
        (
            f"{execution}/{run}/{name}/{int(attempt) + 1}",
            f"{execution}/{int(run) + 1}/{name}/{attempt}",
            f"{execution}/{run}/other/{attempt}",
            step["task_id"],
        )
    )
    world.fault("bad_event", f"a wrong answer: {task}")
    answer = m.StepFailed(task_id=task, error=m.StepError(kind="Wrong"))
    partition = step["reply"]["partition"]
    if chance.random() < 0.3:
        partition = chance.randrange(world.plan.partitions)
    key = execution.partition(".")[0].encode()
    world.broker.append(Record(topics.events, key, encode_message(answer), partition), WORLD)
    return True


async def publish(world: World) -> None:
    """Users' systems: one record after another on the trigger topics."""
    chance = world.chance("publisher")
    pause = world.plan.length * 0.8 / world.plan.executions
    for _ in range(world.plan.executions):
        await asyncio.sleep(pause * 2 * chance.random())
        if world.calm:
            return
        topic, value, headers = _record(world, chance)
        key = f"k{chance.randrange(4)}".encode()
        partition = chance.randrange(world.log.partitions(topic))
        world.broker.append(Record(topic, key, value, partition, headers), WORLD)


def _record(world: World, chance: random.Random) -> tuple[str, bytes | None, tuple[tuple[str, bytes], ...]]:
    order = {"id": f"p{chance.randrange(5)}", "n": chance.randrange(3), "text": "z" * chance.choice((0, 0, 0, 700))}
    kind = chance.random()
    topics = [trigger.topic for w in world.workflows for trigger in w.definition.triggers] or list(TOPICS)
    topic = chance.choice(topics)
    if kind < 0.15:
        workflow = chance.choice(world.workflows)
        named = {"v": 1, "workflow": workflow.name, "input": order}
        if len(world.releases) > 1 and chance.random() < 0.3:
            named["version"] = workflow.version
        if chance.random() < 0.5:
            named["key"] = order["id"]
        if chance.random() < 0.15:
            named["workflow"] = "nobody"
        return world.topics.triggers, orjson.dumps(named), ()
    if kind < 0.3:
        headers = (
            ("ce_specversion", b"1.0"),
            ("ce_type", b"ordered"),
            ("ce_source", b"/shop"),
            ("ce_id", str(chance.randrange(4)).encode()),
            ("content-type", b"application/json"),
        )
        return topic, orjson.dumps(order), headers
    if kind < 0.36:
        return topic, None, ()
    if kind < 0.44:
        return topic, chance.choice((b"", b"{", b"[1]", b'{"id":7}', b'{"n":"x"}', b"\xff")), ()
    return topic, orjson.dumps(order), ()
