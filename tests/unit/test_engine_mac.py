"""With a secret, what the engine sends to workers is signed; what is sent again, by the secret of its own time."""

from __future__ import annotations

from flowpilot.ports.log import Fetched
from flowpilot_schemas import messages as m
from flowpilot_schemas.mac import HEADER_MAC, StepSecrets, mac
from tests.unit.engine_world import CHAIN, Owner, T, World, drain

OLD, NEW = "a secret of yesterday, as long", "a secret of today, long enough"


def on_steps(record: object) -> bool:
    return getattr(record, "topic", "").startswith(T.steps(""))


def signatures(world: World, topic: str) -> list[bytes | None]:
    records = world.log.records(topic)
    return [dict(record.headers).get(HEADER_MAC) for record in records]


def expected(secret: str, record: Fetched) -> bytes:
    return mac(secret.encode(), record.topic, record.value or b"")


def test_step_messages_and_control_records_are_signed() -> None:
    world = World()
    owner = Owner(world, secrets=StepSecrets([NEW, OLD]))
    for partition in range(world.partitions):
        owner.take(partition).to_end()
    execution = world.start(CHAIN, "1")
    drain(owner)
    world.event(m.CancelExecution(execution=execution, actor="user:ann"), execution)
    drain(owner)
    for topic in (T.steps("q"), T.control):
        records = world.log.records(topic)
        assert records
        assert signatures(world, topic) == [expected(NEW, record) for record in records]
    for topic in (T.history, T.events):
        assert set(signatures(world, topic)) == {None}


def test_what_is_sent_again_has_the_secret_of_its_time() -> None:
    world = World()
    first = Owner(world, secrets=StepSecrets([OLD]))
    for partition in range(world.partitions):
        first.take(partition).to_end()
    world.start(CHAIN, "1")
    call = first.process(first.fetch(1))
    call.before(on_steps)
    call.step()  # it lands, and its owner dies before it knows
    first.crash()
    second = Owner(world, secrets=StepSecrets([NEW, OLD]))
    for partition in range(world.partitions):
        second.take(partition).to_end()
    drain(second)
    records = world.log.records(T.steps("q"))
    assert len(records) == 2
    assert records[0].value == records[1].value
    assert signatures(world, T.steps("q")) == [expected(OLD, records[0]), expected(NEW, records[1])]


def test_without_a_secret_nothing_is_signed() -> None:
    world = World()
    owner = world.owner()
    world.start(CHAIN, "1")
    drain(owner)
    assert signatures(world, T.steps("q")) == [None]
