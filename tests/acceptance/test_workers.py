"""Handlers that misbehave and workers that come and go, on the running system."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from flowpilot_schemas.history import from_iso
from tests.acceptance.conftest import RESULT_LIMIT, STEP_INPUTS_LIMIT
from tests.acceptance.running import PATIENCE, Ended, RunningSystem
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance


def attempts(system: RunningSystem, execution: str) -> int:
    """How many attempts were sent."""
    return len([event for event in system.history(execution) if event["type"] == "StepReady"])


def error(ended: Ended, step: str) -> tuple[str, str]:
    """Kind and message of the error that the step failed with."""
    assert ended.status == "failed", ended
    assert ended.errors is not None
    return ended.errors[step]["kind"], ended.errors[step]["message"]


def test_a_handler_that_ends_its_process_costs_attempts_and_nobody_else_anything(system: RunningSystem) -> None:
    before = system.restarts()
    neighbours = [system.trigger("shop", {"n": n}) for n in range(10)]
    # One after the other: whoever dies takes what runs beside it with it, and that costs an attempt as well.
    once = system.trigger("crashing", {"attempts": 1})
    assert system.ended(once)[:2] == ("completed", 2)
    always = system.trigger("crashing", {"attempts": 99})
    neighbours += [system.trigger("shop", {"n": n}) for n in range(10, 20)]

    kind, message = error(system.ended(always), "crash")
    assert (kind, message) == ("timed_out", "no heartbeat for 2000 ms")
    timed_out = system.told(always, "StepTimedOut", 2)
    assert [(event["attempt"], event["timeout"], event["outcome"]) for event in timed_out] == [
        (1, "heartbeat", "retry"), (2, "heartbeat", "fail"),
    ]  # fmt: skip
    for n, neighbour in enumerate(neighbours):
        assert system.ended(neighbour)[:2] == ("completed", 4 * n * n)

    # Sent again once, as a suspect; from then on the engine counts. Three attempts crash in all.
    calls = Counter(line for line in system.calls() if line.startswith("crash "))
    assert set(calls) == {f"crash {once} 1", f"crash {once} 2", f"crash {always} 1", f"crash {always} 2"}
    assert max(calls.values()) <= 2
    after = system.restarts()
    assert 3 <= after.pop("worker-1") - before.pop("worker-1") <= 6
    assert after == before


def test_a_handler_that_hangs_is_timed_out_and_tried_again(system: RunningSystem) -> None:
    execution = system.trigger("hanging")
    assert system.ended(execution)[:2] == ("completed", {"hang": 2, "hang_async": 2})
    timed_out = system.told(execution, "StepTimedOut", 2)
    assert {(event["step"], event["attempt"], event["timeout"], event["outcome"]) for event in timed_out} == {
        ("hang", 1, "start_to_close", "retry"), ("hang_async", 1, "start_to_close", "retry"),
    }  # fmt: skip
    retried = system.told(execution, "StepRetryScheduled", 2)
    assert {event["error"]["message"] for event in retried} == {"the handler ran longer than its timeout of 1s"}


# What the handler does: (kind, part of the message, attempts).
FAILURES: dict[str, tuple[dict[str, Any], tuple[str, str, int]]] = {
    "raises": ({}, ("ValueError", "attempt 2 ? went wrong", 2)),
    "exits": ({}, ("SystemExit", "sys.exit(3)", 2)),
    "nan": ({}, ("result_not_serialisable", "NaN", 1)),
    "object": ({}, ("result_not_serialisable", "object", 1)),
    "size": (
        {"size": RESULT_LIMIT + 1},
        ("result_too_large", f"{RESULT_LIMIT + 1} bytes; the limit FLOWPILOT_RESULT_LIMIT is {RESULT_LIMIT}", 1),
    ),
}


def test_what_a_handler_does_wrong_is_the_reason_of_the_failure(system: RunningSystem) -> None:
    before = system.restarts()
    started = {
        trouble: system.trigger("troubles", {"trouble": trouble, **more}) for trouble, (more, _) in FAILURES.items()
    }
    huge = system.trigger("troubles", {"trouble": "size", "size": 10 * RESULT_LIMIT})
    for trouble, (_, (kind, message, tries)) in FAILURES.items():
        found = error(system.ended(started[trouble]), "act")
        assert (found[0], attempts(system, started[trouble])) == (kind, tries), trouble
        assert message in found[1], trouble
    assert error(system.ended(huge), "act")[0] == "result_too_large"
    assert system.restarts() == before


def test_a_result_just_within_the_limit_is_taken(system: RunningSystem) -> None:
    for size in (RESULT_LIMIT - 1, RESULT_LIMIT):
        execution = system.trigger("troubles", {"trouble": "size", "size": size})
        assert system.ended(execution)[:2] == ("completed", "x" * (size - 2))


def test_the_inputs_of_a_step_have_a_limit_together(system: RunningSystem) -> None:
    half = STEP_INPUTS_LIMIT // 2
    within = system.trigger("pair", [half, half])
    beyond = system.trigger("pair", [half, half + 1])
    assert system.ended(within)[:2] == ("completed", STEP_INPUTS_LIMIT)
    kind, message = error(system.ended(beyond), "join")
    assert kind == "input_too_large"
    assert f"{STEP_INPUTS_LIMIT + 1} bytes" in message
    assert f"FLOWPILOT_STEP_INPUTS_LIMIT) is {STEP_INPUTS_LIMIT}" in message


def test_retry_after_is_waited_for(system: RunningSystem) -> None:
    execution = system.trigger("troubles", {"trouble": "later"})
    assert system.ended(execution)[:2] == ("completed", 2)
    [scheduled] = system.told(execution, "StepRetryScheduled")
    assert scheduled["error"] == {"kind": "RetryAfter", "message": "come back later"}
    assert from_iso(scheduled["retry_at"]) - from_iso(scheduled["at"]) >= 2_000
    ready = system.told(execution, "StepReady", 2)[1]
    assert from_iso(ready["at"]) >= from_iso(scheduled["retry_at"])


def members(system: RunningSystem, queue: str) -> int:
    """Members of the queue's group that have partitions, once nothing moves."""
    group = system.settings.topics.worker_group(queue)
    admin = AdminClient({"bootstrap.servers": system.settings.bootstrap_servers})
    found = admin.describe_consumer_groups([group])[group].result(10)
    assigned = [len(member.assignment.topic_partitions) for member in found.members]
    stable = found.state.name == "STABLE" and sum(assigned) == system.settings.step_partitions
    return len(assigned) if stable and all(assigned) else 0


def test_a_long_handler_is_not_started_again_when_a_worker_joins(system: RunningSystem, tmp_path: Path) -> None:
    release = tmp_path / "release"
    executions = [system.trigger("steady", str(release)) for _ in range(8)]
    began = time.monotonic()
    for execution in executions:
        eventually(lambda execution=execution: f"holds {execution} 1" in system.calls(), PATIENCE)
    system.start("worker-2", "worker", "tests.acceptance.flows:steady")
    eventually(lambda: members(system, "steady") == 2, PATIENCE, what="two workers with partitions")
    # What was handed over would have begun by now: a second round of steps has.
    second_round = [system.trigger("steady", str(release)) for _ in range(8)]
    for execution in second_round:
        eventually(lambda execution=execution: f"holds {execution} 1" in system.calls(), PATIENCE)
    eventually(lambda: time.monotonic() > began + 2, PATIENCE)
    release.touch()
    for execution in executions + second_round:
        assert system.ended(execution).status == "completed"
    calls = Counter(line for line in system.calls() if line.startswith("holds "))
    assert {line: calls[line] for line in calls if line.split()[1] in executions} == {
        f"holds {execution} 1": 1 for execution in executions
    }


def test_sigterm_of_a_worker_loses_nothing_and_repeats_nothing(system: RunningSystem, tmp_path: Path) -> None:
    release = tmp_path / "release"
    release.touch()
    restarts = system.restarts()["worker-1"]
    executions = [system.trigger("steady", str(release)) for _ in range(60)]
    eventually(lambda: any(line.split()[1] in executions for line in system.calls() if "brief" in line), PATIENCE)
    system.supervisor.kill("worker-1", signal.SIGTERM)
    begun = sum(line.startswith("brief ") and line.split()[1] in executions for line in system.calls())
    assert begun <= 40, "too few left for the signal to matter"
    system.supervisor.wait_restarted("worker-1", restarts)
    assert system.supervisor.exit_status("worker-1") == 0
    for execution in executions:
        assert system.ended(execution).status == "completed"
    calls = Counter(line for line in system.calls() if line.split()[1] in executions)
    assert calls == {f"{step} {execution} 1": 1 for step in ("holds", "brief") for execution in executions}
