"""The command line without servers: help, loading of workflows, exit codes, what is printed where."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowpilot.adapters.kafka.cluster import KafkaUnreachable
from flowpilot.app.database import DatabaseUnreachable
from flowpilot.app.triggers import NobodyReads, TopicMissing, all_told, of_topic
from flowpilot.cli import output
from flowpilot.cli.failures import CommandFailed, Exit, explain
from flowpilot.cli.loading import load_workflow
from flowpilot.cli.main import main
from flowpilot.cli.trigger import columns
from flowpilot.client.errors import ExecutionCancelled, ExecutionFailed, ExecutionRefused, ResultTimeout
from flowpilot.ports.log import LogUnavailable
from flowpilot.settings import SettingsError

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join(str(ROOT / part) for part in (".", "agents", "schemas"))

FLOWS = """
from flowpilot import Workflow

orders = Workflow("orders", version="1")
returns = Workflow("returns", version="1")
number = 17

@orders.step
def pack() -> int:
    return 1

@returns.step
def unpack() -> int:
    return 1
"""


WRONG = """
from flowpilot import Workflow

flow = Workflow("shop", version="1")

def elsewhere() -> int:
    return 1

@flow.step(depends_on=[elsewhere])
def pack() -> int:
    return 1
"""


def flowpilot(*arguments: str, cwd: Path = ROOT, given: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("FLOWPILOT_")}
    return subprocess.run(
        [sys.executable, "-m", "flowpilot.cli.main", *arguments],
        capture_output=True, text=True, cwd=cwd, input=given, timeout=60, check=False,
        env={**clean, "PYTHONPATH": PATHS, **env},
    )  # fmt: skip


@pytest.fixture
def flows(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(FLOWS)
    (tmp_path / "typo.py").write_text("import no_such_library\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "grammar.py").write_text("def :\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "empty.py").write_text("from flowpilot import Workflow\nbare = Workflow('bare', version='1')\n")
    return tmp_path


GROUPS = ("workflow", "execution", "trigger", "dead-letter", "config", "topic", "db", "queue")
HELPS = [
    (),
    *((name,) for name in ("init", "dev", "doctor", "setup", "schema")),
    *((name,) for name in ("engine", "router", "worker", "audit", "api")),
    *((name,) for name in GROUPS),
    ("config", "show"),
    *(("topic", name) for name in ("list", "plan", "apply")),
    ("db", "upgrade"),
    ("queue", "list"),
    *(("workflow", name) for name in ("apply", "list", "show", "delete", "validate")),
    *(("dead-letter", name) for name in ("list", "show")),
    *(("execution", name) for name in ("start", "list", "show", "watch", "cancel", "verify")),
    *(("trigger", name) for name in ("publish", "fate", "dry-run")),
]


@pytest.mark.parametrize("command", HELPS, ids=" ".join)
def test_help_leads_with_examples(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    told = capsys.readouterr()
    assert (ended.value.code, told.err) == (0, "")
    assert "\x1b" not in told.out
    if command not in [(group,) for group in GROUPS]:
        assert told.out.index("Examples:") < told.out.index("Options:")


@pytest.mark.parametrize("group", [(), *((group,) for group in GROUPS)])
def test_lists_of_commands_are_whole_on_eighty_columns(
    group: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*group, "--help"])
    listed = capsys.readouterr().out.partition("Commands:\n")[2]
    assert listed.count("\n") >= 1
    assert "...\n" not in listed


@pytest.mark.parametrize(
    "command",
    [("--help",), ("execution", "start", "--help"), ("execution", "watch", "-h"), ("dev", "-h"), ("doctor", "-h")],
)
def test_help_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom flowpilot.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'faust', 'sqlalchemy', 'confluent_kafka', 'fastapi', 'alembic', 'flowpilot.settings'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": PATHS},
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_schema_lists_the_messages_and_prints_each(capsys: pytest.CaptureFixture[str]) -> None:
    main_ok("schema")
    heads, *lines = capsys.readouterr().out.splitlines()
    assert heads.split() == ["MESSAGE", "TOPIC", "DESCRIPTION"]
    assert ["step.ready", "flowpilot.steps.<queue>"] in [line.split()[:2] for line in lines]

    main_ok("schema", "-o", "json")
    every = {row["message"]: row["schema"] for row in json.loads(capsys.readouterr().out)}
    assert len(every) == len(lines)
    for form in ([], ["-o", "json"], ["-o", "jsonl"]):
        main_ok("schema", "step.failed", *form)
        assert json.loads(capsys.readouterr().out) == every["step.failed"]
    assert every["step.failed"]["required"] == ["task_id", "error"]


def test_schema_of_what_is_no_message(capsys: pytest.CaptureFixture[str]) -> None:
    for name, hint in (("step.faild", "did you mean 'step.failed'?"), ("orders", "`flowpilot schema` lists them")):
        with pytest.raises(SystemExit) as ended:
            main(["schema", name])
        assert ended.value.code == Exit.NOT_FOUND
        assert capsys.readouterr().err == f"error: there is no message {name!r}; {hint}\n"


def main_ok(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    assert ended.value.code == 0


@pytest.mark.parametrize(
    ("reference", "code", "words"),
    [
        ("nowhere:orders", Exit.USAGE, ["no module 'nowhere'", "MODULE:WORKFLOW or path/file.py:name"]),
        ("nowhere.py:orders", Exit.USAGE, ["there is no file nowhere.py"]),
        ("./shop:orders", Exit.USAGE, ["did you mean shop.py"]),
        ("shop:order", Exit.USAGE, ["shop has no 'order'", "shop:orders, shop:returns"]),
        ("shop.py:number", Exit.USAGE, ["is a int, not a Workflow", "shop.py:orders"]),
        ("shop", Exit.USAGE, ["shop:orders, shop:returns"]),
        (":orders", Exit.USAGE, ["not of the form"]),
        ("typo:flow", Exit.ERROR, ["importing typo failed", "no_such_library", "install it"]),
        ("broken:flow", Exit.ERROR, ["importing broken failed: ZeroDivisionError", "broken.py, line 1"]),
        ("grammar.py:flow", Exit.ERROR, ["importing grammar.py failed", "line 1"]),
        ("leaves:flow", Exit.ERROR, ["importing leaves failed: SystemExit"]),
        ("empty:bare", Exit.ERROR, ["workflow 'bare'", "no steps"]),
    ],
)
def test_each_mistake_in_naming_a_workflow(flows: Path, reference: str, code: Exit, words: list[str]) -> None:
    done = flowpilot("workflow", "apply", reference, cwd=flows)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("reference", ["shop:orders", "shop.py:orders", "./shop.py:orders"])
def test_a_workflow_is_found_and_kafka_is_not(flows: Path, reference: str) -> None:
    done = flowpilot("workflow", "apply", reference, cwd=flows, FLOWPILOT_BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert done.returncode == Exit.UNREACHABLE, done.stderr
    assert "127.0.0.1:1" in done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    "command", [("setup",), ("engine",), ("execution", "start", "w"), ("execution", "cancel", "e", "-r", "x")]
)
def test_kafka_that_is_not_there_is_told_in_seconds(command: tuple[str, ...]) -> None:
    began = time.monotonic()
    done = flowpilot(*command, FLOWPILOT_BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert time.monotonic() - began < 45  # it was minutes for a cancel; the rest is for a busy machine
    assert done.returncode == Exit.UNREACHABLE, done.stderr
    assert done.stderr == "error: cannot reach Kafka at 127.0.0.1:1: start it or set FLOWPILOT_BOOTSTRAP_SERVERS\n"


def test_a_terminal_is_told_what_is_waited_for() -> None:
    master, slave = pty.openpty()
    env = {**os.environ, "PYTHONPATH": PATHS, "FLOWPILOT_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "flowpilot.cli.main", "workflow", "list"], cwd=ROOT, env=env, stderr=slave
    )
    os.close(slave)
    said = b""
    try:
        while chunk := os.read(master, 4096):
            said += chunk
    except OSError:  # so a pseudo-terminal says that the other end is closed
        pass
    finally:
        os.close(master)
    assert process.wait(60) == Exit.UNREACHABLE
    first, second = said.decode().splitlines()
    assert first == "waiting for Kafka at 127.0.0.1:1 …"
    assert second.startswith("error: cannot reach Kafka")


def test_workflows_are_validated_without_a_server(flows: Path) -> None:
    done = flowpilot("workflow", "validate", "shop:orders", "shop.py:returns", cwd=flows)
    assert done.returncode == Exit.OK, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "REFERENCE        WORKFLOW  VERSION  STEPS",
        "shop:orders      orders    1        1",
        "shop.py:returns  returns   1        1",
    ]
    (flows / "wrong.py").write_text(WRONG)
    done = flowpilot(
        *("workflow", "validate", "shop:orders", "wrong:flow", "empty:bare", "nowhere:x", "-o", "json"), cwd=flows
    )
    assert done.returncode == Exit.ERROR
    found = json.loads(done.stdout)
    assert [(row["reference"], row.get("workflow")) for row in found] == [
        ("shop:orders", "orders"), ("wrong:flow", None), ("empty:bare", None), ("nowhere:x", None),
    ]  # fmt: skip
    problems = [row["problem"] for row in found]
    assert problems[0] is None
    assert "workflow 'shop', step 'pack': " in problems[1]
    assert "declare it above" in problems[1]
    assert "workflow 'bare'" in problems[2]
    assert "no module 'nowhere'" in problems[3]
    told = flowpilot("workflow", "validate", "wrong:flow", cwd=flows)
    assert (told.returncode, told.stdout) == (Exit.ERROR, "")
    assert told.stderr == f"error: wrong:flow: {problems[1]}\n"


def test_postgresql_that_is_not_there() -> None:
    done = flowpilot("execution", "list", FLOWPILOT_DATABASE_URL="postgresql://me:secret@127.0.0.1:1/x")
    assert done.returncode == Exit.UNREACHABLE
    assert "127.0.0.1:1/x" in done.stderr
    assert "FLOWPILOT_DATABASE_URL" in done.stderr
    assert "secret" not in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("execution", "start", "w", "--input", "{"), "--input: "),
        (("execution", "start", "w", "--input", "@no-such-file"), "no-such-file cannot be read"),
        (("execution", "start", "w", "--input", "-"), "stdin: "),
        (("execution", "start", "w", "--if-exists", "explode"), "return or fail"),
        (("execution", "list", "--status", "done"), "running"),
        (("execution", "list", "--limit", "0"), "limit"),
        (("execution", "cancel", "an-id"), "--reason"),
        (("trigger", "fate", "orders", "0", "-1"), "OFFSET"),
        (("trigger", "fate", "orders", "one", "0"), "PARTITION"),
        (("trigger", "fate", "orders", "0"), "TOPIC/PARTITION/OFFSET"),
        (("trigger", "fate", "orders/0/1", "0"), "TOPIC/PARTITION/OFFSET"),
        (("trigger", "fate", "orders/0"), "TOPIC/PARTITION/OFFSET"),
        (("execution", "show", "orders"), "'orders' is not an execution id; `flowpilot execution list` shows some"),
        (("execution", "verify", "orders"), "'orders' is not an execution id"),
        (("execution", "start", "w", "--input", "README.md"), "did you mean @README.md?"),
        (("execution", "start", "w", "--input", "{a: 1}"), "--input: it is not JSON: "),
        (("execution", "start", "no-such.py"), "there is no file no-such.py"),
        (("trigger", "dry-run", "orders", "--header", "ce_id"), "NAME=VALUE"),
        (("trigger", "publish", "orders", "-H", "=x"), "NAME=VALUE"),
        (("trigger", "publish", "orders", "-H", "caf\udce9=x"), "must be UTF-8"),
        (("trigger", "publish", "orders", "--file", "no-such-file"), "cannot read no-such-file"),
        (("workflow", "delete", "w"), "workflow delete w --yes"),
        (("dead-letter", "show", "not-a-place/x/1"), "TOPIC/PARTITION/OFFSET"),
        (("dead-letter", "list", "--since", "yesterday"), "15m"),
        (("worker",), "WORKFLOW"),
        (("frobnicate",), "frobnicate"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], word: str) -> None:
    done = flowpilot(*arguments, given="not json")
    assert done.returncode == Exit.USAGE
    assert done.stdout == ""
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_setting_that_cannot_be_used() -> None:
    done = flowpilot("router", FLOWPILOT_EVENT_PARTITIONS="many")
    assert done.returncode == Exit.USAGE
    assert "FLOWPILOT_EVENT_PARTITIONS" in done.stderr
    assert "Traceback" in flowpilot("--debug", "router", FLOWPILOT_EVENT_PARTITIONS="many").stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandFailed("x", Exit.NOT_FOUND), Exit.NOT_FOUND),
        (SettingsError("x"), Exit.USAGE),
        (ExecutionFailed("e", {}), Exit.EXECUTION_FAILED),
        (ExecutionRefused("e", "x"), Exit.EXECUTION_FAILED),
        (ResultTimeout("e", 1.0), Exit.TIMED_OUT),
        (ExecutionCancelled("e", "x"), Exit.CANCELLED),
        (LogUnavailable("x"), Exit.UNREACHABLE),
        (NobodyReads("x", "flowpilot.triggers", {}), Exit.NOT_FOUND),
        (TopicMissing("x"), Exit.NOT_FOUND),
        (KeyError("x"), Exit.ERROR),
    ],
)
def test_each_error_has_its_exit_code(error: Exception, code: Exit) -> None:
    sentence, found = explain(error)
    assert found is code
    assert sentence


def test_forms_of_output(capfd: pytest.CaptureFixture[str]) -> None:
    found: list[dict[str, object]] = [
        {"a": "x\x1b[31m", "b": 1, "hidden": None},
        {"a": "long one", "b": None, "hidden": [1]},
    ]
    output.rows(found, ("a", "b"), output.Format.TABLE, empty="none")
    assert capfd.readouterr().out.splitlines() == ["A          B", "x\\x1b[31m  1", "long one"]
    output.rows(found, ("a", "b"), output.Format.JSON, empty="none")
    assert json.loads(capfd.readouterr().out) == found
    output.rows(found, ("a", "b"), output.Format.JSONL, empty="none")
    assert [json.loads(line) for line in capfd.readouterr().out.splitlines()] == found
    output.rows([], ("a",), output.Format.TABLE, empty="none here")
    assert capfd.readouterr() == ("", "none here\n")
    output.rows([], ("a",), output.Format.JSON, empty="none here")
    assert capfd.readouterr() == ("[]\n", "")


def test_a_workflow_is_always_what_its_file_says_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes bytecode for fresh if the file's size and second are the same; an editor saves faster."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for version in ("1", "2"):
        (tmp_path / "saved_twice.py").write_text(FLOWS.replace('"1"', f'"{version}"'))
        os.utime("saved_twice.py", (1_000_000_000, 1_000_000_000))
        assert load_workflow("saved_twice.py:orders").version == version
        del sys.modules["saved_twice"]


def test_who_publishes_where_nobody_reads_is_told_what_is_read() -> None:
    readers = {"payments": ["billing", "ledger"], "orders": ["shop"]}
    told = str(NobodyReads("pyaments", "flowpilot.triggers", readers))
    assert "no registered workflow reads pyaments (orders starts shop; payments starts billing, ledger)" in told
    assert "on flowpilot.triggers" in told
    assert "(no workflow has a trigger)" in str(NobodyReads("x", "t", {}))
    many = str(NobodyReads("x", "t", {f"topic-{number:02}": ["w"] for number in range(25)}))
    assert ("topic-09 starts w; and 15 more" in many, "topic-10" in many) == (True, False)


def test_fates_are_awaited_of_every_workflow_that_was_foretold() -> None:
    foretold = [{"workflow": "a"}, {"workflow": "b"}]
    assert not all_told([], foretold)
    assert not all_told([{"workflow": "a"}], foretold)
    assert all_told([{"workflow": "a"}, {"workflow": "b"}], foretold)
    assert all_told([{"workflow": None}], foretold)


def test_outcomes_of_an_earlier_topic_are_told_apart() -> None:
    earlier, now, unknown = ({"workflow": "a", "topic_id": id} for id in ("old", "new", None))
    assert of_topic([earlier], "new") == []
    assert of_topic([earlier, now, unknown], "new") == [now, unknown]
    assert of_topic([earlier, now], None) == [earlier, now]
    assert columns([earlier, now])[-1] == "topic_id"
    assert "topic_id" not in columns([now, unknown])


def test_who_has_no_servers_is_told_of_flowpilot_dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FLOWPILOT_BOOTSTRAP_SERVERS", "FLOWPILOT_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for error in (KafkaUnreachable("cannot reach Kafka"), DatabaseUnreachable("PostgreSQL did not let us in")):
        assert explain(error) == (f"{error}, or run `flowpilot dev` in this folder", Exit.UNREACHABLE)
        with monkeypatch.context() as own:
            own.setenv("FLOWPILOT_BOOTSTRAP_SERVERS", "kafka.example:9092")
            assert explain(error) == (str(error), Exit.UNREACHABLE)
