"""Who is live and what is served, as real processes announce it and the command line tells it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from flowpilot.adapters.kafka.config import producer_properties, reader_properties
from flowpilot.adapters.kafka.producer import KafkaProducer
from flowpilot.adapters.kafka.reader import KafkaReader
from flowpilot.adapters.members import LogMembers
from flowpilot.local.services import LocalServices
from flowpilot.ports.members import LiveMembers
from flowpilot_schemas.messages import RULES
from tests.acceptance.running import PATIENCE, RunningSystem, prepared_system
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance

VERSION = """
from flowpilot import Workflow

trip = Workflow("trip", version="{version}")


@trip.step
def go() -> int:
    return 1


@trip.step
def back(go: int) -> int:
    return go + {version}
"""


@pytest.fixture
def system(services: LocalServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Set up, with the versions 1 and 2 of `trip` as files and sessions of two seconds; nothing runs."""
    folder = tmp_path_factory.mktemp("announcements")
    for version in ("1", "2"):
        (folder / f"v{version}.py").write_text(VERSION.format(version=version))
    with prepared_system(services, folder, {"FLOWPILOT_MEMBER_SESSION": "2"}) as system:
        system.run("setup")
        yield system


def live(system: RunningSystem) -> LiveMembers:
    async def look() -> LiveMembers:
        producer = KafkaProducer(producer_properties(system.settings))
        reader = KafkaReader(reader_properties(system.settings))
        try:
            return await LogMembers(reader, system.settings.topics.members, producer).live()
        finally:
            producer.close()
            reader.close()

    return asyncio.run(look())


def test_engine_is_live_from_its_start_to_its_end(system: RunningSystem) -> None:
    system.start("engine", "engine", ready_timeout=PATIENCE)
    [engine] = eventually(lambda: live(system).engines)
    assert engine.rules == RULES
    assert live(system).engines_know(RULES)
    assert not live(system).engines_know(RULES + 1)
    system.supervisor.kill("engine")
    [again] = eventually(lambda: [each for each in live(system).engines if each.engine != engine.engine], PATIENCE)
    eventually(lambda: [each.engine for each in live(system).engines] == [again.engine])
    system.supervisor.stop("engine")
    assert live(system).engines == []
