"""Definitions over the log ports: one behaviour, in memory and on Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

import pytest
from structlog.testing import capture_logs

from flowpilot.adapters.definitions import LARGEST_DEFINITION, LogDefinitions
from flowpilot.ports.definitions import DefinitionTooLarge, VersionConflict, WorkflowDeleted
from flowpilot.ports.log import Delivery, Producer, Record
from flowpilot_schemas.codec import encode, encode_message
from flowpilot_schemas.definition import (
    DefinitionPointer,
    StepDefinition,
    WorkflowDefinition,
    definition_key,
    pointer_key,
    version_key,
)
from tests.contract.logs import MEMORY_AND_KAFKA, InMemory, Log, open_log

run = asyncio.run


@pytest.fixture(params=MEMORY_AND_KAFKA)
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    yield from open_log(request.param, request)


def workflow(version: str = "1", description: str = "", name: str = "onboarding") -> WorkflowDefinition:
    steps = (StepDefinition(name="a", queue="q"), StepDefinition(name="b", queue="q", depends_on=("a",)))
    return WorkflowDefinition(name=name, version=version, description=description, steps=steps)


def definitions(log: Log, topic: str) -> LogDefinitions:
    return LogDefinitions(log.producer(), log.reader(), topic)


def test_what_one_registers_others_read(log: Log) -> None:
    topic = log.topic(compacted=True)

    async def scenario() -> None:
        writer, reader, first = definitions(log, topic), definitions(log, topic), workflow()
        await reader.refresh()
        assert reader.workflows() == []
        assert await writer.register(first) is True
        assert writer.current("onboarding") == first
        assert reader.get(first.hash) is None
        await reader.refresh()
        assert reader.get(first.hash) == reader.current("onboarding") == reader.version("onboarding", "1") == first
        found = reader.get(first.hash)
        assert found is not None
        assert found.hash == first.hash
        assert reader.workflows() == ["onboarding"]
        assert reader.current("other") is reader.version("onboarding", "2") is reader.get("sha256:0") is None

    run(scenario())


def test_a_registration_is_kept_across_versions_and_ends_with_a_deletion(log: Log) -> None:
    topic = log.topic(compacted=True)

    async def scenario() -> None:
        store, fresh = definitions(log, topic), definitions(log, topic)
        assert store.registration("onboarding") is None
        await store.register(workflow())
        first = store.registration("onboarding")
        assert first is not None
        await store.register(workflow("2"), move_pointer=True)
        assert store.registration("onboarding") == first
        await log.producer().send([Record(topic, pointer_key("onboarding"), None, 0)])
        await store.refresh()
        assert store.registration("onboarding") is None
        await store.register(workflow("3"))
        again = store.registration("onboarding")
        assert again is not None
        assert again.deleted is not None
        assert first.at <= again.deleted <= again.at
        await fresh.refresh()
        assert fresh.registration("onboarding") == again

    run(scenario())


def test_order_of_registration_survives_compaction(log: Log) -> None:
    """The latest registration of each counts; the workflow's first registration keeps its time."""
    topic = log.topic(compacted=True)
    one, two, three = (workflow(version) for version in "123")

    async def scenario() -> None:
        store = definitions(log, topic)
        for each in (one, two, three):
            await store.register(each, move_pointer=True)
        registration = store.registration("onboarding")
        assert ordered(store) == ["1", "2", "3"]
        await definitions(log, topic).register(one)  # an old worker that starts again
        await store.refresh()
        assert ordered(store) == ["1", "2", "3"]
        await definitions(log, topic).register(two, move_pointer=True)  # a roll-back
        await store.refresh()
        assert ordered(store) == ["1", "3", "2"]
        await store.register(one, move_pointer=True)
        await store.register(three, move_pointer=True)
        _, end = await log.reader().bounds(topic, 0)
        await store.register(three, move_pointer=True)  # the newest already: only the pointer is written
        assert (await log.reader().bounds(topic, 0))[1] == end + 1
        if isinstance(log, InMemory):
            log.log.compact(topic)
        fresh = definitions(log, topic)
        await fresh.refresh()
        assert ordered(store) == ordered(fresh) == ["2", "1", "3"]
        for each in (one, two, three):
            assert store.position(each.hash) == fresh.position(each.hash)
        assert store.registration("onboarding") == registration
        if not isinstance(log, InMemory):  # compaction has moved nothing but the pointer, whose time is not its
            assert fresh.registration("onboarding") == registration
        assert fresh.position("sha256:0") is None

    def ordered(store: LogDefinitions) -> list[str]:
        return [each.version for each in sorted((one, two, three), key=lambda each: store.position(each.hash) or 0)]

    run(scenario())


def test_order_outlives_a_deletion(log: Log) -> None:
    """What runs of a deleted workflow still asks which of two is the newer."""
    topic = log.topic(compacted=True)
    one, two = workflow("1"), workflow("2")

    async def scenario() -> None:
        store = definitions(log, topic)
        await store.register(one)
        await store.register(two, move_pointer=True)
        before = store.position(one.hash)
        await store.delete("onboarding")
        fresh = definitions(log, topic)
        await fresh.refresh()
        assert fresh.position(one.hash) == before
        await store.register(one, move_pointer=True)  # applied again, as the newest
        await fresh.refresh()
        assert (fresh.position(one.hash) or 0) > (fresh.position(two.hash) or 0)

    run(scenario())


def test_registering_again_changes_nothing(log: Log) -> None:
    topic = log.topic(compacted=True)

    async def scenario() -> None:
        assert await definitions(log, topic).register(workflow()) is True
        reader = log.reader()
        before = await reader.bounds(topic, 0)
        assert await definitions(log, topic).register(workflow()) is False
        assert await reader.bounds(topic, 0) == before

    run(scenario())


def test_the_pointer_moves_only_when_asked(log: Log) -> None:
    topic = log.topic(compacted=True)

    async def scenario() -> None:
        registered, first, second = definitions(log, topic), workflow("1"), workflow("2")
        await registered.register(first)
        assert await registered.register(second) is True
        assert registered.current("onboarding") == first
        assert registered.version("onboarding", "2") == second
        assert await registered.register(second, move_pointer=True) is False
        assert registered.current("onboarding") == second
        assert await registered.register(first) is False  # an old worker's restart rolls nothing back
        assert registered.current("onboarding") == second

    run(scenario())


def test_a_version_has_one_content(log: Log) -> None:
    topic = log.topic(compacted=True)

    async def scenario() -> None:
        await definitions(log, topic).register(workflow(description="one"))
        other = definitions(log, topic)
        with pytest.raises(VersionConflict, match="give the changed workflow another version"):
            await other.register(workflow(description="two"), move_pointer=True)
        assert other.current("onboarding") == workflow(description="one")

    run(scenario())


class Delaying:
    """A producer that lets others act between two of its batches."""

    def __init__(self, producer: Producer, before: Callable[[Sequence[Record]], Awaitable[None]]) -> None:
        self._producer, self._before = producer, before

    async def send(self, records: Sequence[Record]) -> list[Delivery]:
        await self._before(records)
        return await self._producer.send(records)


def test_of_two_that_race_one_wins_for_good(log: Log) -> None:
    topic = log.topic(compacted=True)
    winner, loser = workflow(description="winner"), workflow(description="loser")

    async def scenario() -> None:
        async def overtake(records: Sequence[Record]) -> None:
            if records[0].key == version_key("onboarding", "1") and not overtaken.is_set():
                overtaken.set()
                assert await definitions(log, topic).register(winner) is True

        overtaken = asyncio.Event()
        racing = LogDefinitions(Delaying(log.producer(), overtake), log.reader(), topic)
        with pytest.raises(VersionConflict):
            await racing.register(loser, move_pointer=True)
        assert overtaken.is_set()
        late = definitions(log, topic)
        await late.refresh()
        assert racing.version("onboarding", "1") == late.version("onboarding", "1") == winner
        assert racing.current("onboarding") == late.current("onboarding") == winner
        if isinstance(log, InMemory):
            log.log.compact(topic)
        assert await _last(log, topic, version_key("onboarding", "1")) == encode_message(
            DefinitionPointer(definition=winner.hash, version="1")
        )

    run(scenario())


def test_a_loser_that_died_is_corrected_by_the_next(log: Log) -> None:
    topic = log.topic(compacted=True)
    winner, loser = workflow(description="winner"), workflow(description="loser")

    async def scenario() -> None:
        await definitions(log, topic).register(winner)
        key = version_key("onboarding", "1")
        pointer = encode_message(DefinitionPointer(definition=loser.hash, version="1"))
        await log.producer().send(
            [Record(topic, definition_key(loser.hash), encode(loser.model_dump(mode="json")))]
        )
        await log.producer().send([Record(topic, key, pointer)])
        reader = definitions(log, topic)
        await reader.refresh()
        assert reader.version("onboarding", "1") == winner
        assert await _last(log, topic, key) == pointer
        await reader.register(workflow(name="another"))
        assert await _last(log, topic, key) == encode_message(
            DefinitionPointer(definition=winner.hash, version="1")
        )
        with pytest.raises(VersionConflict):
            await definitions(log, topic).register(loser)

    run(scenario())


async def _last(log: Log, topic: str, key: bytes) -> bytes | None:
    reader = log.reader()
    found = await reader.read(topic, 0, *await reader.bounds(topic, 0))
    return [record.value for record in found if record.key == key][-1]


def test_concurrent_registrations_end_with_one_winner(log: Log) -> None:
    topic = log.topic(compacted=True)

    async def scenario() -> None:
        contents = [workflow(description=str(n)) for n in range(5)]
        answers = await asyncio.gather(
            *(definitions(log, topic).register(content) for content in contents), return_exceptions=True
        )
        assert [answer for answer in answers if not isinstance(answer, VersionConflict)] == [True]
        late = definitions(log, topic)
        await late.refresh()
        assert late.version("onboarding", "1") == late.current("onboarding") == contents[answers.index(True)]

    run(scenario())


def test_bad_records_are_skipped_with_a_warning(log: Log) -> None:
    topic = log.topic(compacted=True)
    good, moved = workflow(), workflow("2")
    value = encode(good.model_dump(mode="json"))
    bad = [
        (b"\xff", b"{}"),
        (b"elsewhere", b"{}"),
        (b"name/", b"{}"),
        (b"def/sha256:0", b"not json"),
        (b"def/sha256:0", value),  # not its hash
        (definition_key("sha256:1"), b'{"v": 2}'),
        (pointer_key("x"), b"[]"),
        (pointer_key("x"), b'{"definition": 7}'),
        (pointer_key("onboarding"), b'{"deleted": "perhaps"}'),
        (version_key("x", "1"), b'{"v": 9, "definition": "sha256:0", "version": "1"}'),
    ]

    async def scenario() -> None:
        await log.producer().send([Record(topic, key, content) for key, content in bad])
        with capture_logs() as logged:
            registered = definitions(log, topic)
            await registered.register(good)
            await registered.register(moved, move_pointer=True)
        assert [(entry["log_level"], entry["offset"]) for entry in logged] == [
            ("warning", n) for n in range(len(bad))
        ]
        assert registered.current("onboarding") == moved
        assert registered.workflows() == ["onboarding"]

    run(scenario())


def test_a_tombstone_removes(log: Log) -> None:
    topic = log.topic(compacted=True)

    async def scenario() -> None:
        registered = definitions(log, topic)
        await registered.register(workflow(description="one"))
        await log.producer().send(
            [Record(topic, pointer_key("onboarding"), None), Record(topic, version_key("onboarding", "1"), None)]
        )
        await registered.refresh()
        assert registered.workflows() == []
        assert registered.version("onboarding", "1") is None
        assert await registered.register(workflow(description="two")) is True

    run(scenario())


def test_what_was_deleted_stays_deleted_until_it_is_applied(log: Log) -> None:
    topic = log.topic(compacted=True)

    async def scenario() -> None:
        registered, first = definitions(log, topic), workflow(description="one")
        await registered.register(first)
        await registered.register(workflow("2"))
        await registered.register(workflow(name="onboarding-2"))
        assert [found.version for found in registered.versions("onboarding")] == ["1", "2"]
        assert await registered.delete("onboarding") == ["1", "2"]
        assert await registered.delete("onboarding") == await registered.delete("nobody") == []
        if isinstance(log, InMemory):
            log.log.compact(topic, tombstones=True)  # a year later
        late = definitions(log, topic)
        await late.refresh()
        for known in (registered, late):
            assert known.is_deleted("onboarding")
            assert known.workflows() == ["onboarding-2"]
            assert known.current("onboarding") is known.version("onboarding", "1") is None
            assert known.versions("onboarding") == []
            assert known.get(first.hash) == first  # for the starts that the log has taken
            with pytest.raises(WorkflowDeleted, match="`flowpilot workflow apply"):
                await known.register(first)  # as a worker does at its start
        assert not late.is_deleted("onboarding-2")
        assert not late.is_deleted("nobody")
        assert await late.register(workflow(description="two"), move_pointer=True) is True
        assert late.current("onboarding") == workflow(description="two")
        await registered.refresh()
        assert not registered.is_deleted("onboarding")
        assert registered.versions("onboarding") == [workflow(description="two")]
        with pytest.raises(VersionConflict):
            await registered.register(first)

    run(scenario())


def test_a_delete_that_died_half_way_hides_everything_and_can_be_repeated(log: Log) -> None:
    topic = log.topic(compacted=True)

    class Died(Exception):
        pass

    async def scenario() -> None:
        await definitions(log, topic).register(workflow(description="one"))

        async def die(records: Sequence[Record]) -> None:
            if records[0].value is None:
                raise Died

        with pytest.raises(Died):
            await LogDefinitions(Delaying(log.producer(), die), log.reader(), topic).delete("onboarding")
        late = definitions(log, topic)
        await late.refresh()
        assert late.is_deleted("onboarding")
        assert late.version("onboarding", "1") is None
        with pytest.raises(WorkflowDeleted):
            await late.register(workflow(description="one"))
        assert await late.delete("onboarding") == ["1"]
        assert await late.register(workflow(description="two"), move_pointer=True) is True

    run(scenario())


def test_who_applies_what_was_deleted_half_way_finishes_that_first(log: Log) -> None:
    """Else the versions of before would be there again, though who mirrors the topic has dropped them."""
    topic = log.topic(compacted=True)

    class Died(Exception):
        pass

    async def scenario() -> None:
        first = definitions(log, topic)
        await first.register(workflow("1", "one"))
        await first.register(workflow("2"), move_pointer=True)

        async def die(records: Sequence[Record]) -> None:
            if records[0].value is None:
                raise Died

        with pytest.raises(Died):
            await LogDefinitions(Delaying(log.producer(), die), log.reader(), topic).delete("onboarding")
        anew = workflow("1", "another one")  # after a deletion a version may have other content
        assert await definitions(log, topic).register(anew, move_pointer=True) is True
        late = definitions(log, topic)
        await late.refresh()
        assert late.versions("onboarding") == [late.current("onboarding")] == [anew]

    run(scenario())


def test_a_registration_that_a_delete_overtakes_brings_nothing_back(log: Log) -> None:
    topic = log.topic(compacted=True)

    async def scenario() -> None:
        await definitions(log, topic).register(workflow("1"))

        async def overtake(records: Sequence[Record]) -> None:
            if records[0].key == version_key("onboarding", "2"):
                await definitions(log, topic).delete("onboarding")

        racing = LogDefinitions(Delaying(log.producer(), overtake), log.reader(), topic)
        with pytest.raises(WorkflowDeleted):
            await racing.register(workflow("2"))
        late = definitions(log, topic)
        await late.refresh()
        assert late.workflows() == late.versions("onboarding") == []

    run(scenario())


def test_a_definition_beyond_the_limit_is_refused(log: Log) -> None:
    topic = log.topic(compacted=True)
    empty = len(encode(workflow().model_dump(mode="json")))

    async def scenario() -> None:
        with pytest.raises(DefinitionTooLarge, match="more than the"):
            await definitions(log, topic).register(workflow(description="x" * (LARGEST_DEFINITION - empty + 1)))
        assert (await log.reader().bounds(topic, 0)) == (0, 0)

    run(scenario())


@pytest.mark.integration
def test_a_definition_at_the_limit_fits(kafka_settings: object, request: pytest.FixtureRequest) -> None:
    from flowpilot.settings import Settings
    from tests.contract.logs import OnKafka

    assert isinstance(kafka_settings, Settings)
    log = OnKafka(kafka_settings)
    largest = workflow(description="x" * (LARGEST_DEFINITION - len(encode(workflow().model_dump(mode="json")))))

    async def scenario() -> None:
        registered = definitions(log, kafka_settings.topics.definitions)
        assert await registered.register(largest) is True
        assert registered.current("onboarding") == largest

    run(scenario())
    log.close()


def test_of_two_versions_applied_at_once_the_current_is_newest(log: Log) -> None:
    """Otherwise workers of the other one would run steps of the executions that start now."""
    topic = log.topic(compacted=True)
    one, two = workflow("1"), workflow("2")

    async def scenario() -> None:
        async def overtake(records: Sequence[Record]) -> None:
            if not overtaken.is_set():
                overtaken.set()
                await definitions(log, topic).register(one, move_pointer=True)

        overtaken = asyncio.Event()
        store = definitions(log, topic)
        await store.register(one)
        await store.register(two, move_pointer=True)
        late = LogDefinitions(Delaying(log.producer(), overtake), log.reader(), topic)
        await late.register(two, move_pointer=True)
        assert overtaken.is_set()
        await store.refresh()
        assert store.current("onboarding") == late.current("onboarding") == two
        assert (store.position(two.hash) or 0) > (store.position(one.hash) or 0)
        assert late.position(two.hash) == store.position(two.hash)

    run(scenario())
