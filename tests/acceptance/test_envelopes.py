"""Hostile envelopes on every topic of a running system: each costs one dead letter at most, and no role ends."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator, Sequence

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from flowpilot.cli.failures import Exit
from flowpilot.core.murmur2 import partition_of
from flowpilot.local.services import LocalServices
from flowpilot_schemas.ids import keyed_execution_id
from flowpilot_schemas.topics import MEMBER_MESSAGE
from tests import envelopes
from tests.acceptance import flows
from tests.acceptance.running import PATIENCE, Place, RunningSystem, running_system
from tests.acceptance.test_bad_input import definition_of, event, start_of
from tests.envelopes import ANY_TIME, GZIP, HOSTILE, LZ4, SNAPPY, ZSTD, Envelope, batch
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

Records = Sequence[tuple[Envelope, bytes | None]]
ROLES = ("router", "audit", "worker-1", "engine")
PATIENT = 2 * PATIENCE


@pytest.fixture(scope="module")
def alone(services: LocalServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """A system whose topics take the producer's times, once its roles run."""
    folder = tmp_path_factory.mktemp("envelopes")
    with running_system(services, folder, flows.ALL[:1], {}) as system:
        system.cli("workflow", "apply", flows.FOREIGN)
        system.create_topic(f"{system.namespace}-orders", ANY_TIME)
        client = AdminClient({"bootstrap.servers": system.settings.bootstrap_servers})
        topics = system.settings.topics
        changed = [
            ConfigResource(
                ResourceType.TOPIC,
                name,
                incremental_configs=[
                    ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
                    for key, value in ANY_TIME.items()
                ],
            )
            for name in (*(topic.name for topic in topics.core()), topics.steps("shop"))
        ]
        for future in client.incremental_alter_configs(changed).values():
            future.result(30)
        yield system


def produce(system: RunningSystem, topic: str, records: Records, compression: int = envelopes.NONE) -> list[Place]:
    """To partition 0."""
    servers = system.settings.bootstrap_servers
    offsets = asyncio.run(envelopes.produce(servers, topic, records, compression=compression))
    return [Place(topic, 0, offset) for offset in offsets]


def reasons(system: RunningSystem, places: Sequence[Place]) -> list[str | None]:
    found = system.dead_letters(places)
    return [found.get(place) for place in places]


def await_reasons(system: RunningSystem, places: Sequence[Place], wanted: Sequence[str | None]) -> None:
    eventually(lambda: len(system.dead_letters(places)) >= len(wanted) - list(wanted).count(None), PATIENT)
    assert dict(zip(HOSTILE, reasons(system, places), strict=False)) == dict(zip(HOSTILE, wanted, strict=False))


def still_works(system: RunningSystem, restarts: int = 0) -> None:
    execution = system.trigger("shop", {"n": 3})
    assert system.ended(execution)[:2] == ("completed", 36)
    assert system.restarts() == dict.fromkeys(sorted(ROLES), restarts) or restarts


def test_a_user_topic_takes_every_envelope(alone: RunningSystem) -> None:
    topic = f"{alone.namespace}-orders"
    # By then the partition is open: where a workflow begins on it depends on the times of the records.
    alone.publish(topic, b'{"n": 99}', partition=0)
    alone.ended(keyed_execution_id("shop", "99"))
    good = produce(alone, topic, [(each, b'{"n": %d}' % n) for n, each in enumerate(HOSTILE.values(), 100)])
    bad = produce(alone, topic, [(each, b"{") for each in HOSTILE.values()])
    wanted: list[str | None] = ["not_json"] * len(HOSTILE)
    await_reasons(alone, bad, wanted)
    for n in range(100, 100 + len(HOSTILE)):
        assert alone.ended(keyed_execution_id("shop", str(n)))[:2] == ("completed", (2 * n) ** 2)
    assert reasons(alone, good) == [None] * len(HOSTILE)
    # What was kept can be shown.
    listed = alone.cli_json("dead-letter", "list", "--topic", topic, "--limit", "1000")
    assert len(listed) == len(HOSTILE)
    for name in ("names in Latin-1 among good ones", "a key that is not UTF-8", "before the year 1"):
        place = "/".join(map(str, bad[list(HOSTILE).index(name)]))
        alone.cli("dead-letter", "show", place)
        shown = alone.cli_json("dead-letter", "show", place)
        assert len(shown["headers"]) == len(HOSTILE[name].headers)
    still_works(alone)


def test_the_trigger_topic_takes_every_envelope(alone: RunningSystem) -> None:
    mark = uuid.uuid4().hex
    topic = alone.settings.topics.triggers
    record = {"v": 1, "workflow": "shop", "input": {"n": 2}}
    good = [json.dumps({**record, "key": f"{mark}{n}"}).encode() for n in range(len(HOSTILE))]
    produce(alone, topic, list(zip(HOSTILE.values(), good, strict=True)))
    bad = produce(alone, topic, [(each, b"{") for each in HOSTILE.values()])
    await_reasons(alone, bad, ["not_json"] * len(HOSTILE))
    for n in range(len(HOSTILE)):
        assert alone.ended(keyed_execution_id("shop", f"{mark}{n}"))[:2] == ("completed", 16)
    still_works(alone)


def test_the_events_topic_takes_every_envelope(alone: RunningSystem) -> None:
    """What cannot be read is a dead letter; what is on the wrong partition goes on, with its headers."""
    topic, definition = alone.settings.topics.events, definition_of(alone, "shop")
    elsewhere = (str(uuid.uuid4()) for _ in iter(int, 1))
    foreign = (each for each in elsewhere if partition_of(each.encode(), 4))
    executions = [next(foreign) for _ in HOSTILE]
    starts = [
        event("execution.start", **{**start_of(each, definition), "workflow": "shop"}, input={"n": 1})
        for each in executions
    ]
    bad = produce(alone, topic, [(each, b"{") for each in HOSTILE.values()])
    passed = produce(alone, topic, list(zip(HOSTILE.values(), starts, strict=True)))
    await_reasons(alone, bad, ["not_json"] * len(HOSTILE))
    expected: list[str | None] = [
        "wrong_partition" if any(name == b"fp-hops" for name, _ in each.headers) else None
        for each in HOSTILE.values()
    ]
    await_reasons(alone, passed, expected)
    for execution, reason in zip(executions, expected, strict=True):
        if reason is None:
            assert alone.ended(execution)[:2] == ("completed", 4)
    still_works(alone)


def test_a_queue_takes_every_envelope(alone: RunningSystem) -> None:
    bad = produce(alone, alone.settings.topics.steps("shop"), [(each, b"{") for each in HOSTILE.values()])
    await_reasons(alone, bad, ["not_json"] * len(HOSTILE))
    still_works(alone)


def test_what_the_audit_cannot_read_diverges_once(alone: RunningSystem) -> None:
    topics = alone.settings.topics
    count = "select count(*) from audit_divergence where topic = %s"
    for topic in (topics.history, topics.dead_letters, topics.fates):
        produce(alone, topic, [(each, b"{") for each in HOSTILE.values()])
        eventually(lambda topic=topic: alone.ask(count, topic) == [(len(HOSTILE),)], PATIENT)  # type: ignore[misc]
    still_works(alone)


def test_topics_of_the_roles_take_every_envelope(alone: RunningSystem) -> None:
    topics = alone.settings.topics
    keyed = [each for each in HOSTILE.values() if each.key is not None]  # what is compacted takes no others
    for topic in (topics.control, topics.replies):
        produce(alone, topic, [(each, b"{") for each in HOSTILE.values()])
    for topic in (topics.definitions, topics.positions):
        produce(alone, topic, [(each, b"{") for each in keyed])
    # A broker takes only small records there.
    small = [each for each in keyed if len(batch([(each, b"{")])) < MEMBER_MESSAGE]
    assert len(small) > len(keyed) // 2
    produce(alone, topics.members, [(each, b"{") for each in small])
    still_works(alone)


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
def test_records_may_be_compressed(alone: RunningSystem, codec: int) -> None:
    mark, topics = uuid.uuid4().hex, alone.settings.topics
    trigger = json.dumps({"v": 1, "workflow": "shop", "key": mark, "input": {"n": 2}}).encode()
    bad = produce(alone, topics.events, [(Envelope(), b"{" * 200)], codec)
    produce(alone, topics.triggers, [(HOSTILE["a name in Latin-1"], trigger)], codec)
    assert alone.ended(keyed_execution_id("shop", mark))[:2] == ("completed", 16)
    await_reasons(alone, bad, ["not_json"])


def test_a_batch_too_large_to_decompress_is_dead_letters(alone: RunningSystem) -> None:
    """3.7 KB of zstd are 120 MB: the clients refuse it, and would never come to what is behind it."""
    topics = alone.settings.topics
    small = (Envelope(), b"{")
    bomb = [small, (Envelope(), bytes(120_000_000)), small]
    for topic in (f"{alone.namespace}-orders", topics.triggers, topics.events, topics.steps("shop")):
        first = asyncio.run(envelopes.produce_batch(alone.settings.bootstrap_servers, topic, bomb, ZSTD))
        places = [Place(topic, 0, first + n) for n in range(3)]
        eventually(lambda places=places: len(alone.dead_letters(places)) == 3, PATIENT)  # type: ignore[misc]
        assert reasons(alone, places) == ["record_unreadable"] * 3
    still_works(alone)


def test_roles_begin_again_behind_every_envelope(alone: RunningSystem) -> None:
    """After a start all is read again that is not committed, or is not a group's: also a hostile changelog."""
    keyed = [(each, b"x") for each in HOSTILE.values() if each.key is not None]
    alone.supervisor.stop("engine")
    produce(alone, alone.settings.topics.changelog, keyed)
    alone.start("engine", "engine", ready_timeout=PATIENCE)
    for role in ROLES[:-1]:
        alone.supervisor.stop(role)
        arguments = (*flows.ALL[:1],) if role == "worker-1" else ()
        alone.start(role, role.partition("-")[0], *arguments, ready_timeout=PATIENCE)
    still_works(alone)
    assert set(alone.restarts().values()) == {0}
    checks = {check["detail"] for check in json.loads(alone.cli("doctor", "-o", "json", code=Exit.ERROR).stdout)}
    assert any("message.timestamp.type" in detail and "events" in detail for detail in checks)
