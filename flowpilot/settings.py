"""Settings: `FLOWPILOT_*` in the environment, then `.env` in the working directory, then what a `flowpilot dev`
that runs in this directory has written to `.flowpilot/dev.env`, then these defaults.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from flowpilot.core.errors import FlowPilotError
from flowpilot.masking import MASK, mask_address, mask_properties
from flowpilot_schemas.limits import Limits
from flowpilot_schemas.mac import LEAST_SECRET, StepSecrets
from flowpilot_schemas.members import LONGEST_SESSION_MS
from flowpilot_schemas.topics import LARGE_MESSAGE, Topics

PREFIX = "FLOWPILOT_"
ENV_FILE = Path(".env")
DEV_FILE = Path(".flowpilot/dev.env")
_SERVERS = ("bootstrap_servers", "database_url")
_LONGEST_ACTOR = 200


class SettingsError(FlowPilotError):
    """A setting cannot be used as it is; the message names it and what it takes."""


class DevNotRunning(SettingsError):
    """`flowpilot dev` was used in this directory, does not run now, and no other servers are named."""


class DevState(Enum):
    """What is known of `flowpilot dev` in this directory."""

    NEVER = "never started"
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "not running"


class Settings(BaseSettings):
    """All settings of all roles. Durations are in seconds, sizes in bytes of encoded JSON."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=ENV_FILE, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    bootstrap_servers: str = Field(
        default="127.0.0.1:9092", description="Kafka brokers, host:port, comma separated"
    )
    kafka_properties: Annotated[dict[str, str], NoDecode] = Field(
        default={}, description="further librdkafka properties (TLS, SASL), `name=value` separated by commas"
    )
    database_url: SecretStr = Field(
        default=SecretStr("postgresql://flowpilot@127.0.0.1:5432/flowpilot"),
        description="PostgreSQL for the audit record",
    )
    namespace: str = Field(
        default="flowpilot",
        pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_-]{0,39}$",
        description="prefix of all topics and groups",
    )
    event_partitions: int = Field(
        default=16, ge=1, le=1024, description="partitions of the events topic, fixed for life"
    )
    step_partitions: int = Field(default=12, ge=1, le=1024, description="partitions of each worker topic")
    replication_factor: int = Field(
        default=1, ge=1, le=9, description="replicas of each topic that is created; 3 on a cluster"
    )
    min_insync_replicas: int | None = Field(
        default=None,
        ge=1,
        le=9,
        description="replicas that must have a record before it is acknowledged; unset: half of the topic's, "
        "rounded up",
    )
    member_id: str | None = Field(
        default=None, description="static group membership (KIP-345), one a process; unset: dynamic"
    )
    member_session: int = Field(
        default=30,
        ge=1,
        le=LONGEST_SESSION_MS // 1_000,
        description="seconds that the announcement of a worker or engine counts after its last repetition",
    )
    trigger_limit: int = Field(
        default=Limits().input, ge=1, le=LARGE_MESSAGE // 4, description="largest trigger record"
    )
    result_limit: int = Field(
        default=Limits().result, ge=1, le=LARGE_MESSAGE // 4, description="largest result of a step"
    )
    step_inputs_limit: int = Field(
        default=Limits().step_inputs,
        ge=1,
        le=LARGE_MESSAGE // 4,
        description="largest total of what one step is given",
    )
    step_secret: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="secrets of at least 16 characters, comma separated: the engine signs step messages with the "
        "first, workers run only what one of them signed; unset: nothing is signed or checked",
    )
    worker_concurrency: int = Field(default=16, ge=1, le=1_000, description="handlers that run at once in a worker")
    batch_size: int = Field(default=500, ge=1, le=5_000, description="records that the engine folds at once")
    actor: Annotated[str, Field(min_length=1, max_length=_LONGEST_ACTOR)] | None = Field(
        default=None, description="who asks, in the audit record; unset: the user's name"
    )
    api_host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="where the HTTP API listens; anything but this machine needs `FLOWPILOT_API_TOKENS`",
    )
    api_port: int = Field(default=8080, ge=0, le=65_535, description="its port; 0: any that is free")
    api_connections: int = Field(
        default=1_000, ge=1, le=100_000, description="connections that the HTTP API serves at once"
    )
    api_tokens: Annotated[dict[str, SecretStr], NoDecode] = Field(
        default={},
        description="who may use the HTTP API: `name=token` separated by commas; the audit record has the name",
    )
    dev_versions: bool = Field(
        default=False,
        description="register changed content of a version as VERSION+dev.HASH instead of refusing it, and let "
        "each worker make its version the current one; set by `flowpilot dev`",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="where a role serves Prometheus metrics, one port a process; unset: none are kept",
    )
    metrics_host: str = Field(default="127.0.0.1", min_length=1, description="the address that it listens on")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="warning", description="what is logged")
    log_format: Literal["console", "json"] = Field(default="console", description="how it is logged")

    @field_validator("kafka_properties", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = _partitioned(value)
        if any(not equals for _, equals, _ in pairs):
            raise ValueError("is not of the form name=value,name=value")
        return {name.strip(): text for name, _, text in pairs}

    @field_validator("api_tokens", mode="before")
    @classmethod
    def _tokens(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [(name.strip(), token.strip()) for name, _, token in _partitioned(value)]
        if any(not name or not token for name, token in pairs):
            raise ValueError("is not of the form name=token,name=token")
        if len(dict(pairs)) < len(pairs) or len({token for _, token in pairs}) < len(pairs):
            raise ValueError("has a name or a token twice")
        if any(len(name) > _LONGEST_ACTOR for name, _ in pairs):
            raise ValueError(f"has a name of more than {_LONGEST_ACTOR} characters")
        return dict(pairs)

    @field_validator("step_secret", mode="before")
    @classmethod
    def _secrets(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        found = [secret.strip() for secret in value.split(",") if secret.strip()]
        if any(len(secret) < LEAST_SECRET for secret in found):
            raise ValueError(f"has a secret of fewer than {LEAST_SECRET} characters")
        if len(set(found)) < len(found):
            raise ValueError("has a secret twice")
        return tuple(found)

    @property
    def step_secrets(self) -> StepSecrets:
        """What step messages and control records are signed and checked with."""
        return StepSecrets([secret.get_secret_value() for secret in self.step_secret])

    @property
    def topics(self) -> Topics:
        """The topics under this namespace."""
        return Topics(self.namespace)

    def in_sync(self, replicas: int) -> int:
        """`min.insync.replicas` of a topic that has so many."""
        return self.min_insync_replicas or (replicas + 1) // 2

    @property
    def limits(self) -> Limits:
        """What StartExecution carries of the limits."""
        return Limits(input=self.trigger_limit, result=self.result_limit, step_inputs=self.step_inputs_limit)


def _partitioned(pairs: str) -> list[tuple[str, str, str]]:
    return [pair.partition("=") for pair in pairs.split(",") if pair.strip()]


def load_settings() -> Settings:
    """The settings of this process. Raises `SettingsError` with one sentence.

    `DevNotRunning` rather than the default servers: they may be others than those that were worked with here.
    """
    state = dev_state()
    settings = _read(state)
    if state in (DevState.STARTING, DevState.ENDED) and not settings.model_fields_set.intersection(_SERVERS):
        if state is DevState.STARTING:
            raise DevNotRunning(
                "`flowpilot dev` is starting in this folder: try again when it says that it is ready"
            )
        raise DevNotRunning(
            "`flowpilot dev` is not running in this folder: start it, or set FLOWPILOT_BOOTSTRAP_SERVERS and "
            "FLOWPILOT_DATABASE_URL to servers of your own"
        )
    return settings


def could_use_dev() -> bool:
    """Whether the default servers are used, in a directory where `flowpilot dev` never ran."""
    state = dev_state()
    return state is DevState.NEVER and not _read(state).model_fields_set.intersection(_SERVERS)


def load_given_settings() -> Settings:
    """What the environment and `.env` alone say: what `flowpilot dev` itself starts from. Raises `SettingsError`.

    It must not be given servers, which would go before those that it starts.
    """
    settings = _read(DevState.NEVER)
    for name in settings.model_fields_set.intersection(_SERVERS):
        variable = f"{PREFIX}{name.upper()}"
        place = "in the environment" if variable in map(str.upper, os.environ) else f"in {ENV_FILE}"
        raise SettingsError(
            f"{variable} is set {place} and would go before the servers that `flowpilot dev` starts: remove it "
            "there, or run the roles on your servers instead (flowpilot setup, engine, router, audit, worker)"
        )
    return settings


class Setting(NamedTuple):
    """A setting as it is in force; `source` is "environment", a file's path, or "default"."""

    name: str
    value: Any
    source: str
    description: str


def explain_settings() -> list[Setting]:
    """Every setting with where it comes from, secrets masked. Raises `SettingsError`."""
    state = dev_state()
    settings = _read(state)
    sources: list[tuple[str, set[str]]] = [("environment", {name.lower() for name in os.environ})]
    for file in _files(state):
        sources.insert(1, (str(file), {name.lower() for name in dotenv_values(file)}))
    found = []
    for name, field in Settings.model_fields.items():
        variable = f"{PREFIX}{name}".lower()
        source = next((place for place, names in sources if variable in names), "default")
        value = _shown(name, getattr(settings, name))
        found.append(Setting(f"{PREFIX}{name.upper()}", value, source, field.description or ""))
    return found


def dev_state(folder: Path = Path()) -> DevState:
    """Whether `flowpilot dev` runs in `folder`: it holds a lock on its file, which ends with it however it ends."""
    try:
        file = (folder / DEV_FILE).open()
    except OSError:
        return DevState.NEVER
    import fcntl  # not on Windows, where there is no `flowpilot dev` either

    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return DevState.RUNNING if "\nFLOWPILOT_" in file.read() else DevState.STARTING
    return DevState.ENDED


def _files(state: DevState) -> list[Path]:
    """The files that are read, the last one goes before the others."""
    return [DEV_FILE, ENV_FILE] if state is DevState.RUNNING else [ENV_FILE]


def _read(state: DevState) -> Settings:
    try:
        return Settings(_env_file=_files(state))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        raise SettingsError(f"{name} cannot be used: {first['msg']}") from None


def _shown(name: str, value: Any) -> Any:
    """The value without what opens a door: an address's password, the secrets among librdkafka's properties."""
    if isinstance(value, SecretStr):
        return mask_address(value.get_secret_value())
    if name == "api_tokens":
        return dict.fromkeys(value, MASK)
    if name == "step_secret":
        return ",".join(MASK for _ in value) or None
    if name == "kafka_properties":
        return mask_properties(value)
    return value
