"""What a step that is ready waits for, as it is told from who is live."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.kafka.groups import Member
from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.app.members import add_waits, unannounced
from flowpilot.app.serving import Needed, Seen, Wait, needed_of, unserved, waits_for
from flowpilot.app.topics import _served
from flowpilot.authoring import Workflow
from flowpilot.cli.operate import _versions
from flowpilot.ports.members import LiveMembers
from flowpilot.settings import Settings
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.members import ServedDefinition, WorkerAnnounced, worker_announced
from flowpilot_schemas.topics import Topics


def orders(version: str, returns: type) -> WorkflowDefinition:
    workflow = Workflow("orders", version=version, queue="mail")

    def send() -> Any:
        return None

    send.__annotations__["return"] = returns
    workflow.add_step(send)
    return workflow.definition


ONE, TWO, THREE = orders("1", int), orders("2", int), orders("3", str)
[NEEDED] = needed_of(ONE)


def worker(name: str, *definitions: WorkflowDefinition, **fields: Any) -> WorkerAnnounced:
    found = worker_announced(
        name,
        started_at="",
        release="",
        queues={"mail": [0]},
        definitions=[
            ServedDefinition(workflow=each.name, version=each.version, definition=each.hash) for each in definitions
        ],
        session_ms=30_000,
    )
    return found.model_copy(update=fields)


def registered(*definitions: WorkflowDefinition) -> LogDefinitions:
    async def register() -> LogDefinitions:
        log, topic = MemoryLog(), Topics().definitions
        log.create_topic(topic, 1, compacted=True)
        found = LogDefinitions(log.producer(), log.reader(), topic)
        for definition in definitions:
            await found.register(definition)
        return found

    return asyncio.run(register())


def told(
    *workers: WorkerAnnounced, others: int = 0, is_complete: bool = True, needed: Needed = NEEDED
) -> tuple[str, str, str | None]:
    seen = Seen(LiveMembers(list(workers), [], 0, is_complete), {"mail": others}, registered(ONE, TWO, THREE))
    return tuple(waits_for(needed, seen))


START = "flowpilot worker MODULE:orders"


def test_queue_without_a_worker_names_the_command_that_starts_one() -> None:
    assert told() == ("no_worker", "a worker: queue mail has none", START)
    elsewhere = worker("w1", ONE, queues={"other": [0]})
    assert told(elsewhere) == ("no_worker", "a worker: queue mail has none", START)


def test_version_that_nobody_serves_is_named_with_those_served() -> None:
    remedy = f"{START} with the code of version 1"
    assert told(worker("w1", THREE)) == (
        "not_served",
        "a worker that serves orders 1: the worker of queue mail serves 3",
        remedy,
    )
    several = [orders(str(version), str) for version in range(10, 17)]
    assert told(worker("w1", THREE), worker("w2", *several))[1] == (
        "a worker that serves orders 1: the 2 workers of queue mail serve 3, 10, 11, 12, 13 and 3 more"
    )
    assert told(worker("w1"))[1] == (
        "a worker that serves orders 1: the worker of queue mail serves no version of orders"
    )


def test_worker_of_a_later_version_serves_steps_of_equal_contract() -> None:
    assert told(worker("w2", TWO)) == ("busy", "the worker of queue mail that serves it", None)
    assert told(worker("w3", THREE))[0] == "not_served"  # it returns another type
    [newer] = needed_of(TWO)
    assert told(worker("w1", ONE), needed=newer)[0] == "not_served"  # registered after what the worker has


def test_step_that_is_served_waits_for_its_turn() -> None:
    assert told(worker("w1", ONE)) == ("busy", "the worker of queue mail that serves it", None)
    assert told(worker("w1", ONE), worker("w2", THREE, ONE), worker("w3", THREE), others=1) == (
        "busy",
        "one of the 2 workers of queue mail that serve it",
        None,
    )


def test_workers_that_do_not_announce_may_serve_it() -> None:
    doubt = "a worker of queue mail that does not announce all that is served"
    assert told(others=1) == ("unannounced", doubt, None)
    assert told(worker("w1", THREE, definitions_left_out=9)) == ("unannounced", doubt, None)
    assert told(worker("w1", THREE), others=2)[1] == (
        "one of 2 workers of queue mail that do not announce all that is served"
    )


def test_nothing_is_missed_where_more_is_announced_than_is_read() -> None:
    assert told(is_complete=False)[0] == "unannounced"


@pytest.mark.parametrize(
    ("clients", "expected"),
    [
        ([], 0),  # announced, and not a member yet
        (["w1"], 0),
        (["w1", "a foreign one"], 1),
        (["of the process before it"], 0),
        (["set by kafka_properties", "set by kafka_properties"], 1),
    ],
)
def test_members_of_the_group_that_do_not_announce_are_counted(clients: list[str], expected: int) -> None:
    settings = Settings(_env_file=None)
    members = {
        settings.topics.worker_group("mail"): [
            Member("m", "host", [(settings.topics.steps("mail"), number)], client)
            for number, client in enumerate(clients)
        ]
    }
    live = LiveMembers([worker("w1", ONE)], [], 0)
    assert unannounced(["mail"], members, settings, live) == {"mail": expected}


def test_rows_of_a_queue_join_members_with_what_they_announce() -> None:
    topic = Topics().steps("mail")
    members = [
        Member("w1-4711", "h1", [(topic, 0)], "w1"),
        Member("static", "h1", [(topic, 2)], "w0"),
        Member("foreign-1", "h2", [(topic, 1)], "rdkafka"),
    ]
    sms = worker("w3", ONE, queues={"sms": [0]})
    live = LiveMembers([worker("w0", ONE), worker("w1", ONE, TWO), worker("w2", TWO), sms], [], 0)
    rows = _served("mail", topic, members, live)
    assert [(row["worker"], row["host"], row["partitions"], _versions(row)) for row in rows] == [
        ("w1", "h1", [0], "orders 1, 2"),
        ("static", "h1", [2], "orders 1"),
        ("foreign-1", "h2", [1], ""),
        ("w2", None, [0], "orders 2"),
    ]
    assert rows[2]["versions"] is None
    assert [row["worker_id"] for row in rows] == ["w1", "w0", None, "w2"]


def test_restarted_static_member_is_one_row() -> None:
    topic = Topics().steps("mail")
    members = [Member("static", "h1", [(topic, 0)], "the first process")]
    [row] = _served("mail", topic, members, LiveMembers([worker("the second", ONE)], [], 0))
    assert (row["worker"], row["worker_id"], _versions(row)) == ("static", "the second", "orders 1")


def test_killed_worker_does_not_take_the_row_of_the_one_that_follows() -> None:
    topic = Topics().steps("mail")
    members = [Member("static", "h1", [(topic, 0)], "unknown")]
    killed = worker("a", ONE, started_at="2026-01-01T00:00:00.000Z")
    follows = worker("b", TWO, started_at="2026-01-01T00:01:00.000Z")
    rows = _served("mail", topic, members, LiveMembers([killed, follows], [], 0))
    assert [(row["worker"], row["worker_id"]) for row in rows] == [("static", "b"), ("a", "a")]


def test_a_worker_of_many_versions_has_a_short_row() -> None:
    many = [orders(str(version), str) for version in range(20)]
    live = LiveMembers([worker("w1", *many, definitions_left_out=7)], [], 0)
    [row] = _served("mail", Topics().steps("mail"), [], live)
    assert _versions(row) == "orders 0, 1, 2, 3, 4, 5, 6, 7 and 19 more"


def test_definition_is_unserved_if_one_of_its_steps_is() -> None:
    two = Workflow("two", version="1", queue="mail")
    two.add_step(lambda: None, name="a")
    two.add_step(lambda: None, name="b", queue="sms")
    seen = Seen(LiveMembers([worker("w1", two.definition, ONE)], [], 0), {}, registered(ONE, two.definition))
    [found] = unserved([ONE, two.definition], seen)
    assert (found.definition, found.wait.reason, found.steps) == (two.definition, "no_worker", 1)


def test_without_kafka_what_is_waited_for_is_left_out() -> None:
    found: dict[str, Any] = {
        "workflow": "orders",
        "version": "1",
        "definition": ONE.hash,
        "graph": [{"step": "send", "queue": "mail"}],
        "tasks": [{"step": "send", "status": "ready"}],
    }
    began = time.monotonic()
    add_waits(Settings(_env_file=None, bootstrap_servers="127.0.0.1:1"), found)
    assert found["tasks"] == [{"step": "send", "status": "ready"}]
    assert time.monotonic() - began < 10


def test_kafka_is_not_asked_if_no_step_is_ready() -> None:
    found: dict[str, Any] = {"definition": ONE.hash, "graph": [{"step": "send", "queue": "mail"}]}
    found["tasks"] = [{"step": "send", "status": "running"}]
    began = time.monotonic()
    add_waits(Settings(_env_file=None, bootstrap_servers="127.0.0.1:1"), found)
    assert time.monotonic() - began < 0.5


def test_every_step_of_a_definition_is_needed() -> None:
    assert Needed("mail", "orders", "1", ONE.hash, "send") == NEEDED
    assert Wait("busy", "").remedy is None
