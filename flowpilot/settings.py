"""Settings: `FLOWPILOT_*` in the environment, then `.env` in the working directory, then these defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from flowpilot_schemas.limits import Limits
from flowpilot_schemas.topics import LARGE_MESSAGE, Topics


class SettingsError(Exception):
    """A setting cannot be used as it is; the message names it and what it takes."""


class Settings(BaseSettings):
    """All settings of all roles. Durations are in seconds, sizes in bytes of encoded JSON."""

    model_config = SettingsConfigDict(env_prefix="FLOWPILOT_", env_file=".env", extra="ignore", frozen=True)

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
    worker_concurrency: int = Field(default=16, ge=1, le=1_000, description="handlers that run at once in a worker")
    batch_size: int = Field(default=500, ge=1, le=5_000, description="records that the engine folds at once")
    actor: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None, description="who asks, in the audit record; unset: the user's name"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="warning", description="what is logged")
    log_format: Literal["console", "json"] = Field(default="console", description="how it is logged")

    @field_validator("kafka_properties", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair for pair in value.split(",") if pair.strip()]
        if any("=" not in pair for pair in pairs):
            raise ValueError("is not of the form name=value,name=value")
        return {name.strip(): text for name, _, text in (pair.partition("=") for pair in pairs)}

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


def load_settings() -> Settings:
    """The settings of this process. Raises `SettingsError` with one sentence."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = "FLOWPILOT_" + "_".join(str(part) for part in first["loc"]).upper()
        raise SettingsError(f"{name} cannot be used: {first['msg']}") from None
