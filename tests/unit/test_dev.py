"""What `flowpilot dev` is made of, without servers: the settings of other terminals, files, versions, words."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Literal, cast

import pytest
from pydantic import BaseModel, Field

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.cli.init import init
from flowpilot.cli.loading import load_workflow
from flowpilot.core.inputs import check_input
from flowpilot.local.dev import roles
from flowpilot.local.dev.banner import banner, start_command
from flowpilot.local.dev.example import example
from flowpilot.local.dev.file import DevFile
from flowpilot.local.dev.found import FoundWorkflow, discover, find
from flowpilot.local.dev.roles import ApiPort, DevRoles, metrics_of
from flowpilot.local.dev.server import DevOptions, DevServer
from flowpilot.local.dev.watch import Watch
from flowpilot.local.errors import ChildFailed, LocalError, PortTaken, StateInUse
from flowpilot.local.ports import free_ports
from flowpilot.local.system import LocalSystem
from flowpilot.ports.definitions import VersionConflict
from flowpilot.settings import (
    DEV_FILE,
    DevNotRunning,
    DevState,
    Settings,
    SettingsError,
    dev_state,
    explain_settings,
    load_given_settings,
    load_settings,
)
from flowpilot_schemas.definition import StepDefinition, WorkflowDefinition, dev_version
from flowpilot_schemas.limits import Limits

SERVERS = {"FLOWPILOT_BOOTSTRAP_SERVERS": "127.0.0.1:17", "FLOWPILOT_DATABASE_URL": "postgresql://me:pass@h/db"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sources() -> dict[str, tuple[object, str]]:
    return {setting.name: (setting.value, setting.source) for setting in explain_settings()}


def test_other_terminals_have_the_settings_for_as_long_as_it_runs(here: Path) -> None:
    assert dev_state() is DevState.NEVER
    assert load_settings().bootstrap_servers == "127.0.0.1:9092"
    with DevFile(here) as file:
        assert dev_state() is DevState.STARTING
        with pytest.raises(DevNotRunning, match="is starting"):
            load_settings()
        file.publish(SERVERS)
        assert dev_state() is DevState.RUNNING
        assert load_settings().bootstrap_servers == "127.0.0.1:17"
        assert stat.S_IMODE((here / DEV_FILE).stat().st_mode) == 0o600
        with pytest.raises(StateInUse, match=rf"already \(process {os.getpid()}\)"):
            DevFile(here)
    assert dev_state() is DevState.ENDED
    with pytest.raises(DevNotRunning, match="not running in this folder: start it"):
        load_settings()


def test_the_environment_goes_before_dot_env_and_that_before_dev(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DevFile(here) as file:
        file.publish({**SERVERS, "FLOWPILOT_EVENT_PARTITIONS": "4", "FLOWPILOT_BATCH_SIZE": "7"})
        (here / ".env").write_text("FLOWPILOT_EVENT_PARTITIONS=5\nFLOWPILOT_STEP_PARTITIONS=5\n")
        monkeypatch.setenv("FLOWPILOT_STEP_PARTITIONS", "6")
        found = sources()
    assert found["FLOWPILOT_BATCH_SIZE"] == (7, ".flowpilot/dev.env")
    assert found["FLOWPILOT_EVENT_PARTITIONS"] == (5, ".env")
    assert found["FLOWPILOT_STEP_PARTITIONS"] == (6, "environment")
    assert found["FLOWPILOT_DATABASE_URL"] == ("postgresql://me:***@h/db", ".flowpilot/dev.env")
    assert found["FLOWPILOT_ACTOR"] == (None, "default")


def test_own_servers_need_no_dev_that_ended(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with DevFile(here) as file:
        file.publish(SERVERS)
    monkeypatch.setenv("FLOWPILOT_BOOTSTRAP_SERVERS", "kafka.example:9092")
    assert load_settings().bootstrap_servers == "kafka.example:9092"


def test_a_command_that_looks_does_not_keep_dev_from_starting(here: Path) -> None:
    DevFile(here).__exit__()
    with (here / DEV_FILE).open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        with pytest.raises(StateInUse):  # after its patience
            DevFile(here)
    DevFile(here).__exit__()


def test_secrets_among_properties_are_masked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWPILOT_KAFKA_PROPERTIES", "sasl.username=me,sasl.password=hidden,ssl.key.pem=hidden")
    value, source = sources()["FLOWPILOT_KAFKA_PROPERTIES"]
    assert value == {"sasl.username": "me", "sasl.password": "***", "ssl.key.pem": "***"}
    assert source == "environment"


def test_dev_refuses_servers_that_would_go_before_its_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / ".env").write_text("FLOWPILOT_BATCH_SIZE=9\n")
    assert load_given_settings().batch_size == 9
    (here / ".env").write_text("FLOWPILOT_BOOTSTRAP_SERVERS=kafka:9092\n")
    with pytest.raises(SettingsError, match=r"FLOWPILOT_BOOTSTRAP_SERVERS is set in .env .* remove it"):
        load_given_settings()
    monkeypatch.setenv("FLOWPILOT_BOOTSTRAP_SERVERS", "kafka:9092")
    with pytest.raises(SettingsError, match="is set in the environment"):
        load_given_settings()


def definition(step: str, version: str = "1") -> WorkflowDefinition:
    return WorkflowDefinition(name="w", version=version, steps=(StepDefinition(name=step, queue="w"),))


async def _registering() -> None:
    log = MemoryLog()
    log.create_topic("definitions", 1)
    plain = LogDefinitions(log.producer(), log.reader(), "definitions")
    dev = LogDefinitions(log.producer(), log.reader(), "definitions", dev_versions=True)
    first, second = definition("a"), definition("b")
    await dev.register(first, move_pointer=True)
    assert dev.registered(first) is first
    assert await dev.register(second, move_pointer=True) is True
    assert await dev.register(second, move_pointer=True) is False
    await plain.refresh()
    current = plain.current("w")
    assert current is not None
    assert current.version == f"1+dev.{second.hash[7:15]}"
    assert (current.steps, current.hash) == (second.steps, dev.registered(second).hash)
    await dev.register(first, move_pointer=True)  # the edit is taken back
    await plain.refresh()
    assert plain.current("w") == first
    with pytest.raises(VersionConflict):
        await plain.register(second)


def test_a_place_where_no_data_can_be_is_one_sentence(here: Path) -> None:
    (here / "file").write_text("")
    said: list[str] = []
    options = DevOptions(here, data=here / "file" / "data")
    with pytest.raises(LocalError, match=r"no data can be in .*file/data: Not a directory; name .* --data"):
        DevServer(options, Settings(_env_file=None), said.append).run(0.0)
    assert said == []


def test_changed_content_of_a_version_becomes_one_of_its_own() -> None:
    import asyncio

    asyncio.run(_registering())


def test_the_longest_version_has_room_for_the_mark() -> None:
    marked = dev_version(definition("a", "9" * 100))
    assert len(marked.version) == 100
    assert "+dev." in marked.version


FLOWS = """
import flowpilot
from flowpilot import Workflow
orders = Workflow("orders", version="1")
returns: Workflow = flowpilot.Workflow("returns", version="1")
number = 17
def inside():
    hidden = Workflow("hidden", version="1")
@orders.step
def pack() -> int:
    return 1
@returns.step
def unpack() -> int:
    return 1
"""


def test_workflows_of_a_folder_are_found_without_importing(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(FLOWS)
    (tmp_path / "other.py").write_text("1 / 0\n")
    (tmp_path / "grammar.py").write_text("from flowpilot import Workflow\ndef :\n")
    assert discover(tmp_path) == ["grammar.py", "shop.py:orders", "shop.py:returns"]


def test_what_is_found_names_the_files_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("print('hello')\nimport prices\n" + FLOWS)
    (tmp_path / "prices.py").write_text("")
    (tmp_path / "unused.py").write_text("")
    found = find(["shop.py:orders"], tmp_path, {})
    assert found.error is None
    assert [(workflow.name, workflow.version) for workflow in found.workflows] == [("orders", "1")]
    assert {path.name for path in found.files} == {"shop.py", "prices.py"}
    (tmp_path / "prices.py").write_text("1 / 0\n")
    broken = find(["shop.py:orders"], tmp_path, {})
    assert broken.error is not None
    assert "ZeroDivisionError" in broken.error
    assert not broken.misnamed
    assert find(["shop.py:order"], tmp_path, {}).misnamed is False  # prices.py comes first
    (tmp_path / "prices.py").write_text("")
    assert find(["shop.py:order"], tmp_path, {}).misnamed
    assert find(["ship.py:orders"], tmp_path, {}).misnamed
    (tmp_path / "prices.py").write_text("import os\nos._exit(3)\n")
    assert "failed" in (find(["shop.py:orders"], tmp_path, {}).error or "")


def test_a_change_is_told_once_and_when_it_has_settled(tmp_path: Path) -> None:
    file, beside = tmp_path / "flows.py", tmp_path / "new.py"
    file.write_text("1")
    watch = Watch()
    watch.look_at([file], [tmp_path])
    assert watch.changed() == []
    file.write_text("22")
    assert watch.changed() == []  # it may still be written
    assert watch.changed() == [file]
    assert watch.changed() == []
    beside.write_text("1")
    watch.look_at([file], [tmp_path])  # it came before anybody looked: this is the state from now on
    assert watch.changed() == []
    file.unlink()
    assert watch.changed() == []
    assert watch.changed() == [file]


def test_the_example_input_is_one() -> None:
    schema = {
        "type": "object",
        "required": ["name", "tags", "kind", "at", "inner"],
        "properties": {
            "name": {"type": "string", "title": "Name"},
            "tags": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
            "kind": {"enum": ["a", "b"]},
            "at": {"type": "string", "format": "date-time"},
            "inner": {"$ref": "#/$defs/Inner"},
            "skipped": {"type": "string"},
        },
        "$defs": {
            "Inner": {"type": "object", "required": ["n"], "properties": {"n": {"anyOf": [{"type": "null"}]}}}
        },
    }
    value = example(schema, datetime(2030, 1, 31, 12, tzinfo=UTC))
    assert value == {"name": "name", "tags": [1], "kind": "a", "at": "2030-01-31T12:00:00Z", "inner": {"n": None}}
    checked = definition("a").model_copy(update={"input_schema": schema})
    check_input(checked, value, Limits().input)


class Booking(BaseModel):
    booking_id: str
    email: str
    phone_number: str
    nights: Annotated[int, Field(ge=2)]
    share: Annotated[float, Field(gt=0, lt=1)]
    discount: Annotated[int, Field(le=0)]
    code: Annotated[str, Field(min_length=6, max_length=8)]
    birth_date: str
    arrival: date
    room: Literal["single", "double"]
    note: Annotated[str, Field(examples=["late"])]
    guests: Annotated[list[str], Field(min_length=1)]


def test_an_example_is_what_its_names_and_bounds_suggest() -> None:
    value = example(Booking.model_json_schema(), datetime(2030, 1, 31, 12, tzinfo=UTC))
    Booking.model_validate(value)
    assert value == {
        "booking_id": "booking-1",
        "email": "ada@example.com",
        "phone_number": "+49 30 901820",
        "nights": 2,
        "share": 0.5,
        "discount": 0,
        "code": "codexx",
        "birth_date": "2030-01-31",
        "arrival": "2030-01-31",
        "room": "single",
        "note": "late",
        "guests": ["guests"],
    }


def test_the_banner_has_at_most_ten_lines() -> None:
    workflows = [FoundWorkflow(f"f.py:w{number}", f"w{number}", "1", ["t"], None) for number in range(9)]
    for error in (None, "importing f.py failed"):
        lines = banner(seconds=1.0, servers="s", database="d", api="a", data="x", workflows=workflows, error=error)
        assert len(lines) <= 10
        assert (error or "and 6 more") in "\n".join(lines)
        assert "  echo '{}' | flowpilot trigger publish t --wait" in lines
    assert start_command(workflows[0]) == "flowpilot execution start w0 --wait"


def run_pytest(folder: Path) -> subprocess.CompletedProcess[str]:
    """As a user runs it there."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_init_writes_a_project_that_loads_and_overwrites_nothing(here: Path) -> None:
    (here / "README.md").write_text("mine")
    init(here)
    assert (here / "README.md").read_text() == "mine"
    assert discover(here) == ["flows.py:orders"]
    orders = load_workflow("flows.py:orders")
    assert [step.name for step in orders.definition.steps] == ["reserve", "charge", "send_receipt"]
    done = run_pytest(here)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    flows = (here / "flows.py").read_text()
    (here / "flows.py").write_text(flows.replace("max_attempts=5", "max_attempts=1"))
    broken = run_pytest(here)
    assert (broken.returncode, "1 failed, 1 passed" in broken.stdout) == (1, True), broken.stdout
    (here / "flows.py").write_text(flows)
    readme = (Path(__file__).parents[2] / "flowpilot/cli/project/README.md.template").read_text()
    given = json.loads(readme.partition("--input '")[2].partition("'\n")[0])
    check_input(orders.definition, given, Limits().input)
    with pytest.raises(Exception, match="nothing is overwritten"):
        init(here)


def test_each_role_has_a_metrics_port_of_its_own() -> None:
    settings = Settings(_env_file=None, metrics_port=9464)
    ports = [metrics_of(role, settings) for role in ("engine", "router", "audit", "worker", "api")]
    assert ports == [{"FLOWPILOT_METRICS_PORT": str(port)} for port in (9464, 9465, 9466, 9467, 9468)]
    assert metrics_of("engine", Settings(_env_file=None)) == {}


def test_the_api_listens_where_it_did_or_at_the_next_free_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered = tmp_path / "api-port"
    first, second, last = sorted(free_ports(3))
    monkeypatch.setattr(roles, "_USUAL", [first, second])
    assert ApiPort(None, remembered).choose() == first
    with socket.socket() as other:
        other.bind(("127.0.0.1", first))
        other.listen()
        assert ApiPort(None, remembered).choose() == second
        monkeypatch.setattr(roles, "_USUAL", [first])
        assert ApiPort(None, remembered).choose() not in (0, first)
        with pytest.raises(PortTaken, match=f"^the API cannot use port {first}: another program has it; stop that"):
            ApiPort(first, remembered)
    ApiPort(None, remembered).remember(last)
    assert ApiPort(None, remembered).choose() == last
    assert ApiPort(first, remembered).choose() == first
    remembered.write_text("nonsense")
    assert ApiPort(None, remembered).choose() == first


class Refusing:
    """A system in which the API does not start; `taken` is what another program has by then."""

    def __init__(self, taken: socket.socket | None) -> None:
        self.taken, self.ports = taken, list[int]()

    def start(self, name: str, role: str, *, environment: dict[str, str], static: bool) -> int:
        self.ports.append(int(environment["FLOWPILOT_API_PORT"]))
        if self.taken is not None and len(self.ports) == 1:
            self.taken.bind(("127.0.0.1", self.ports[0]))
            self.taken.listen()
        elif self.taken is not None:
            return 1
        raise ChildFailed(name, "ended before it was ready (exit status 1)", "", "api.log")


def test_a_port_that_another_one_took_first_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remembered, settings = tmp_path / "api-port", Settings(_env_file=None)
    monkeypatch.setattr(roles, "_USUAL", sorted(free_ports(3)))
    with socket.socket() as taken:
        system = Refusing(taken)
        started = DevRoles(cast(LocalSystem, system), settings, ApiPort(None, remembered))
        started.start("api", {})
        assert len(set(system.ports)) == 2
        assert started.api_port == system.ports[1] == int(remembered.read_text())
    broken = Refusing(None)
    with pytest.raises(ChildFailed):  # for another reason
        DevRoles(cast(LocalSystem, broken), settings, ApiPort(None, remembered)).start("api", {})
    assert len(broken.ports) == 1
