"""The command line on a running system: what it prints, how it ends, what it says of mistakes."""

from __future__ import annotations

import json
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from flowpilot.cli.failures import Exit
from flowpilot.local.ports import free_ports
from tests.acceptance.running import PATIENCE, RunningSystem
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """All that a failed command says: one line on stderr."""
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_setup_again_changes_nothing_and_refuses_another_partition_count(system: RunningSystem) -> None:
    again = system.cli_json("setup")
    assert {topic["outcome"] for topic in again["topics"]} == {"unchanged"}
    assert again["database"]["created"] is False
    refused = system.cli("setup", code=Exit.ERROR, FLOWPILOT_EVENT_PARTITIONS="8")
    assert "4 partitions" in sentence(refused)


def test_a_version_has_one_content(system: RunningSystem) -> None:
    source = (
        'from flowpilot import Workflow\nw = Workflow("versioned", version="1")\n@w.step\ndef {}() -> int: ...\n'
    )
    file = system.cwd / "versioned.py"
    file.write_text(source.format("first"))
    assert system.cli_json("workflow", "apply", "versioned.py:w")["added"] is True
    file.write_text(source.format("second"))
    refused = system.cli("workflow", "apply", "versioned.py:w", code=Exit.ERROR)
    assert "'versioned' version '1'" in sentence(refused)
    assert "another version" in refused.stderr


def test_an_execution_from_its_start_to_its_rows(system: RunningSystem) -> None:
    key = f"p-{uuid.uuid4()}"
    by_key = ("execution", "start", "shop", "--key", key, "--wait", "--timeout", "60")
    first = system.cli(*by_key, "--input", '{"n": 3}')
    assert first.stdout == "36\n"
    execution = first.stderr.split()[1]

    same = system.cli_json(*by_key, "--input", '{"n": 3}')
    assert same == {"execution": execution, "status": "completed", "output": 36}
    other = system.cli_json(*by_key, "--input", '{"n": 4}')
    assert other == same
    assert len(system.told(execution, "StartDeduplicated")) == 1
    assert len(system.told(execution, "KeyConflict")) == 1
    refused = system.cli(*by_key, "--input", '{"n": 4}', "--if-exists", "fail", code=Exit.ERROR)
    assert execution in refused.stderr
    assert "another input" in refused.stderr

    shown = system.cli_json("execution", "show", execution, "--history")
    assert (shown["status"], shown["output"], shown["key"], shown["created_by"]) == (
        "completed", 36, key, "user:tester",
    )  # fmt: skip
    assert [(task["step"], task["status"], task["attempt"]) for task in shown["tasks"]] == [
        ("double", "completed", 1), ("square", "completed", 1),
    ]  # fmt: skip
    assert [event["seq"] for event in shown["history"]] == list(range(1, len(shown["history"]) + 1))
    [listed] = system.cli_json("execution", "list", "--key", key)
    assert (listed["execution"], listed["steps"]) == (execution, "2/2")


def test_a_workflow_that_fails_tells_its_errors(system: RunningSystem) -> None:
    failed = system.cli(
        *("execution", "start", "shop", "-i", '{"n": -1}', "--wait", "--timeout", "60"), code=Exit.EXECUTION_FAILED
    )
    assert failed.stdout == ""
    execution = failed.stderr.split()[1]
    assert "step double: NonRetryable: n is negative" in failed.stderr
    system.ended(execution)
    shown = system.cli_json("execution", "show", execution)
    assert shown["errors"] == {"double": {"kind": "NonRetryable", "message": "n is negative"}}
    assert [(task["step"], task["status"]) for task in shown["tasks"]] == [
        ("double", "failed"), ("square", "skipped"),
    ]  # fmt: skip


def test_a_cancel_reaches_the_handler_and_who_waits(system: RunningSystem) -> None:
    waiting = system.cli_process("execution", "start", "lingering", "--wait")
    try:
        assert waiting.stderr is not None
        execution = waiting.stderr.readline().split()[1]
        eventually(lambda: f"lingers {execution}" in system.calls(), PATIENCE)
        system.cli("execution", "cancel", execution, "--reason", "registered twice")
        _, said = waiting.communicate(timeout=PATIENCE)
    finally:
        waiting.kill()
    assert waiting.returncode == Exit.CANCELLED
    assert "registered twice" in said
    eventually(lambda: f"noticed {execution}" in system.calls(), PATIENCE)
    assert system.ended(execution).status == "cancelled"
    [cancelled] = system.told(execution, "ExecutionCancelled")
    assert (cancelled["actor"], cancelled["reason"]) == ("user:tester", "registered twice")


def test_who_waits_no_longer_is_told_that_it_goes_on(system: RunningSystem) -> None:
    late = system.cli("execution", "start", "lingering", "--timeout", "0.2", code=Exit.TIMED_OUT)
    execution = late.stderr.split()[1]
    assert "it goes on" in late.stderr
    system.cli("execution", "cancel", execution, "--reason", "seen enough")
    assert system.ended(execution).status == "cancelled"


# What is typed: (exit code, what the sentence has to name).
MISTAKES = {
    ("workflow", "apply", "no_such_module:shop"): (Exit.USAGE, "no_such_module"),
    ("workflow", "apply", "tests.acceptance.flows:shpo"): (Exit.USAGE, "tests.acceptance.flows:shop"),
    ("workflow", "apply", "tests.acceptance.flows:ORDERS"): (Exit.USAGE, "not a Workflow"),
    ("workflow", "apply", "broken.py:w"): (Exit.ERROR, "ZeroDivisionError"),
    ("worker", "tests.acceptance.flows:shop", "--queue", "shpo"): (Exit.ERROR, "shpo"),
    ("execution", "start", "shop"): (Exit.USAGE, "none was given: --input takes it"),
    ("execution", "start", "shop", "--input", "{n: 3}"): (Exit.USAGE, "--input"),
    ("execution", "start", "shop", "--input", '{"n": "three"}'): (Exit.USAGE, "input.n"),
    ("execution", "start", "shpo"): (Exit.NOT_FOUND, "no workflow 'shpo'"),
    ("execution", "start", "shop", "--version", "9"): (Exit.NOT_FOUND, "no version '9'"),
    ("execution", "show", "00000000-0000-5000-8000-000000000000"): (Exit.NOT_FOUND, "execution list"),
    ("execution", "cancel", "shop", "--reason", "typo"): (Exit.USAGE, "not an execution id"),
    ("execution", "list", "--status", "done"): (Exit.USAGE, "completed"),
}


def test_each_mistake_gets_one_sentence(system: RunningSystem) -> None:
    (system.cwd / "broken.py").write_text("w = 1 / 0\n")
    with ThreadPoolExecutor(3) as pool:
        runs = {typed: pool.submit(system.cli, *typed, code=code) for typed, (code, _) in MISTAKES.items()}
        for typed, (_, named) in MISTAKES.items():
            assert named in sentence(runs[typed].result()), typed


def test_servers_that_do_not_answer(system: RunningSystem) -> None:
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    kafka = {"FLOWPILOT_BOOTSTRAP_SERVERS": nobody}
    database = {"FLOWPILOT_DATABASE_URL": f"postgresql://flowpilot@{nobody}/flowpilot"}
    down = [
        (kafka, ("execution", "start", "shop", "-i", '{"n": 1}')),
        (kafka, ("engine",)),
        (database, ("setup",)),
        (database, ("execution", "list")),
    ]
    with ThreadPoolExecutor(len(down)) as pool:
        runs = [pool.submit(system.cli, *typed, code=Exit.UNREACHABLE, **env) for env, typed in down]
        for (env, typed), run in zip(down, runs, strict=True):
            said = run.result().stderr
            [setting] = env
            assert said.count("\n") == 1, (typed, said)
            assert nobody in said, (typed, said)
            assert said.count(setting) == 1, (typed, said)


def test_verify_finds_what_was_tampered_with(system: RunningSystem) -> None:
    execution = system.trigger("shop", {"n": 5})
    system.ended(execution)
    sound = system.cli("execution", "verify", execution)
    assert (sound.stdout, sound.stderr) == ("", "no differences: the audit is sound\n")
    forge = "update workflow_execution set output = %s where execution_id = %s"
    system.ask(forge, "101", execution)
    try:
        [difference] = json.loads(system.cli("execution", "verify", "-o", "json", code=Exit.ERROR).stdout)
    finally:
        system.ask(forge, "100", execution)
    assert difference["execution"] == execution
    assert difference["what"] == "execution.output is 101 instead of 100"
    assert system.cli("execution", "verify", execution).stdout == ""


def test_verify_finds_a_forged_event(system: RunningSystem) -> None:
    """The table refuses changes; whoever owns it can still make them, and is found out by the chain."""
    execution = system.trigger("shop", {"n": 6})
    system.ended(execution)
    [(body,)] = system.ask(
        "select body from audit_event where execution_id = %s and type = 'ExecutionCompleted'", execution
    )
    forge = "update audit_event set body = %s where execution_id = %s and type = 'ExecutionCompleted'"

    def put(value: bytes) -> None:
        system.ask("alter table audit_event disable trigger append_only")
        system.ask(forge, value, execution)
        system.ask("alter table audit_event enable trigger append_only")

    forged = bytes(body).replace(b'"output":144', b'"output":145')
    assert forged != bytes(body)
    put(forged)
    try:
        found = json.loads(system.cli("execution", "verify", execution, "-o", "json", code=Exit.ERROR).stdout)
    finally:
        put(bytes(body))
    assert any("hash" in difference["what"] for difference in found), found
    assert system.cli("execution", "verify", execution).stdout == ""
