"""docker-compose.yml, Dockerfile and .env.example agree with the code and the tests' containers. No engine here."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowpilot.cli.loading import load_workflow
from flowpilot.settings import Settings
from tests import containers

ROOT = Path(__file__).parents[2]
SETTINGS = {f"FLOWPILOT_{name.upper()}" for name in Settings.model_fields}
ROLES = ("engine", "router", "audit", "api", "worker")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def service(compose: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"][name]
    return found


def names_in(file: str) -> set[str]:
    return set(re.findall(r"\bFLOWPILOT_[A-Z_]+", (ROOT / file).read_text()))


def test_the_broker_is_that_of_the_tests_containers(compose: dict[str, Any]) -> None:
    kafka = service(compose, "kafka")
    port = containers.KAFKA_PORT
    assert kafka["image"] == containers.KAFKA_IMAGE
    assert kafka["environment"] == containers.kafka_environment()
    assert kafka["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert kafka["volumes"] == [f"kafka-data:{containers.KAFKA_DATA}"]
    assert kafka["healthcheck"]["test"][-1] == f"127.0.0.1:{port}"


def test_the_database_is_that_of_the_tests_containers(compose: dict[str, Any]) -> None:
    postgres = service(compose, "postgres")
    port = containers.POSTGRES_PORT
    assert postgres["image"] == containers.POSTGRES_IMAGE
    assert postgres["environment"] == containers.POSTGRES_ENVIRONMENT
    assert postgres["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert postgres["volumes"] == [f"postgres-data:{containers.POSTGRES_DATA}"]


@pytest.mark.parametrize("name", ["setup", *ROLES])
def test_every_role_is_told_of_both_servers(compose: dict[str, Any], name: str) -> None:
    environment = service(compose, name)["environment"]
    database = containers.POSTGRES_ENVIRONMENT
    login = f"{database['POSTGRES_USER']}:{database['POSTGRES_PASSWORD']}"
    where = f"postgres:{containers.POSTGRES_PORT}/{database['POSTGRES_DB']}"
    assert environment["FLOWPILOT_BOOTSTRAP_SERVERS"] == containers.KAFKA_INSIDE
    assert environment["FLOWPILOT_DATABASE_URL"] == f"postgresql://{login}@{where}"
    Settings(
        _env_file=None, **{key.removeprefix("FLOWPILOT_").lower(): value for key, value in environment.items()}
    )


def test_set_up_waits_for_the_servers_and_the_roles_wait_for_it(compose: dict[str, Any]) -> None:
    servers = {name: {"condition": "service_healthy"} for name in ("kafka", "postgres")}
    assert service(compose, "setup")["depends_on"] == servers
    assert service(compose, "setup")["command"] == ["setup"]
    for name in servers:
        assert {"test", "start_period", "start_interval"} <= service(compose, name)["healthcheck"].keys()
    for name in ROLES:
        assert service(compose, name)["depends_on"] == {"setup": {"condition": "service_completed_successfully"}}
        assert service(compose, name)["command"][0] == name


def test_workers_can_be_scaled(compose: dict[str, Any]) -> None:
    worker = service(compose, "worker")
    assert worker["deploy"]["replicas"] == 2
    assert not {"container_name", "ports", "hostname"} & worker.keys()


def test_the_api_is_published_where_it_listens_and_not_without_a_token(compose: dict[str, Any]) -> None:
    api = service(compose, "api")
    given = {key.removeprefix("FLOWPILOT_").lower(): value for key, value in api["environment"].items()}
    settings = Settings(_env_file=None, **given)
    assert settings.api_host == "0.0.0.0"
    assert settings.api_tokens
    assert api["ports"] == [f"127.0.0.1:{settings.api_port}:{settings.api_port}"]
    [token] = settings.api_tokens.values()
    assert f"Bearer {token.get_secret_value()}" in (ROOT / "docker-compose.yml").read_text()
    assert f"Bearer {token.get_secret_value()}" in (ROOT / "docs/deploy.md").read_text()


@pytest.mark.parametrize("name", ROLES)
def test_each_container_is_a_member_of_its_own(
    compose: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = service(compose, name)
    assert "FLOWPILOT_MEMBER_ID" not in role["environment"]
    told = tmp_path / "flowpilot"
    told.write_text('#!/bin/sh\necho "$FLOWPILOT_MEMBER_ID" "$@"\n')
    told.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    entrypoint = [word.replace("$$", "$") for word in role["entrypoint"]]
    said = subprocess.run([*entrypoint, *role["command"]], capture_output=True, text=True, check=True).stdout
    hostname = Path("/etc/hostname").read_text().strip()
    assert said.split() == [*hostname.split(), *role["command"]]


def test_the_workers_workflow_is_where_the_container_finds_it(compose: dict[str, Any]) -> None:
    worker = service(compose, "worker")
    [mount] = worker["volumes"]
    here, there, mode = mount.split(":")
    reference = worker["command"][-1]
    assert there == f"/workflows/{reference.partition('/')[0]}"
    assert mode == "ro"
    file, _, name = reference.partition("/")[2].partition(":")
    path = ROOT / here / file
    assert load_workflow(f"{path}:{name}").name == "orders"
    imported = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "flowpilot", "pydantic"}, "the image has no requirements of examples"


def test_ports_are_open_on_this_machine_alone(compose: dict[str, Any]) -> None:
    for name, found in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in found.get("ports", ())), name


@pytest.mark.parametrize("file", ["docker-compose.yml", "Dockerfile", ".env.example"])
def test_every_variable_is_a_setting(file: str) -> None:
    assert names_in(file) <= SETTINGS


def test_every_setting_is_in_the_example() -> None:
    assert names_in(".env.example") == SETTINGS


def test_what_the_example_says_of_defaults_is_so() -> None:
    shown = re.findall(r"^#FLOWPILOT_([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    values = {name.lower(): value for name, value in shown}
    defaults = {name: field.get_default() for name, field in Settings.model_fields.items()}
    for name, value in values.items():
        default = defaults[name]
        if default not in (None, {}, ()):
            default = getattr(default, "get_secret_value", lambda default=default: default)()
            text = str(default).lower() if isinstance(default, bool) else str(default)
            assert text == value, name
    Settings(_env_file=None, **values)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines]


def test_the_image_runs_as_a_user_without_rights() -> None:
    last = [index for index, (name, _) in enumerate(instructions()) if name == "FROM"][-1]
    final = instructions()[last:]
    assert ("USER", "10001") in final
    assert final.index(("USER", "10001")) > max(i for i, (name, _) in enumerate(final) if name in ("RUN", "COPY"))
    assert ("ENTRYPOINT", '["flowpilot"]') in final


def test_the_image_installs_what_the_lock_names_and_nothing_else() -> None:
    [libraries, ours] = [text for name, text in instructions() if name == "RUN" and "uv" in text]
    for command in [*libraries.split("&&"), *ours.split("&&")]:
        words = shlex.split(command)
        if "install" in words or "build" in words:
            assert "--require-hashes" in words or "--no-deps" in words, command


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore
    copied = [text.split() for name, text in instructions() if name == "COPY" and "--from" not in text]
    sources = {source for words in copied for source in words[:-1]}
    assert sources == kept
    assert all((ROOT / source).exists() for source in sources)


def test_compose_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("there is no docker client")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("the docker client has no compose plugin")
    done = subprocess.run(
        [docker, "compose", "config", "--quiet"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
