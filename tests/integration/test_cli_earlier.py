"""What a start says of its key's earlier execution: soon, of the audit record's word alone, or nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from flowpilot.adapters.postgres.earlier import Earlier, earlier
from flowpilot.cli.earlier import Glance
from flowpilot.settings import Settings
from flowpilot_schemas.ids import keyed_execution_id
from tests.audit_history import Chain, completed, events
from tests.audit_world import AuditWorld

pytestmark = pytest.mark.integration
KEPT = ", with another input, which it keeps"


@pytest.fixture
def world(database_url: str) -> Iterator[AuditWorld]:
    made = AuditWorld(database_url)
    yield made
    made.close()


def glance(url: str, key: str = "k") -> Glance:
    return Glance(Settings(_env_file=None, database_url=SecretStr(url)), "onboarding", key)


def test_the_newest_run_is_told(world: AuditWorld) -> None:
    execution = keyed_execution_id("onboarding", "k")
    assert earlier(world.url, execution) is None
    assert glance(world.url).sentence(100, None) is None

    done = completed(execution=execution)
    world.write(events(done))
    found = earlier(world.url, execution)
    assert found is not None
    assert (found.run, found.status, found.has_ended) == (done.run, "completed", True)
    assert earlier(world.url.replace("postgresql://", "postgresql+psycopg2://"), execution) == found
    told = glance(world.url).sentence(100, found.input)
    assert told == "key 'k' has this execution already (completed): a new run begins only if its window has passed"

    again = Chain(execution=execution, run=20)
    again.started(input={"patient_id": "p-20"})
    world.write(events(again))
    assert earlier(world.url, execution) == Earlier(20, "running", False, {"patient_id": "p-20"})
    told = glance(world.url).sentence(100, {"patient_id": "p-21"})
    assert told == f"key 'k' has this execution already (running{KEPT}): no other one begins"
    assert glance(world.url).sentence(20, None) is None  # its own start, which the audit knows already
    assert glance(world.url, "other").sentence(100, None) is None


def test_a_refused_input_leaves_no_execution_to_tell_of(world: AuditWorld) -> None:
    refused = Chain(execution=keyed_execution_id("onboarding", "k"), run=3)
    refused.started()
    world.write(events(refused))
    assert glance(world.url).sentence(100, None) is not None
    refused("ExecutionFailed", errors={}, reason="input_invalid", detail="it does not fit")
    world.write(events(refused))
    assert glance(world.url).sentence(100, None) is None


def test_a_server_that_does_not_answer_costs_next_to_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asked = glance(f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/x")
        connected, _ = silent.accept()
        with connected:
            began = time.monotonic()
            assert asked.sentence(100, None) is None
            assert time.monotonic() - began < 1.5  # 0.2 s of a busy machine; the connection has two
            assert asked._thread.daemon


@pytest.mark.parametrize("url", ["postgresql://me@127.0.0.1:1/x", "nonsense", ""])
def test_what_goes_wrong_is_not_told(url: str) -> None:
    assert glance(url).sentence(100, None) is None


def test_a_key_that_no_text_can_hold() -> None:
    assert glance("postgresql://me@127.0.0.1:1/x", "\ud800").sentence(100, None) is None
