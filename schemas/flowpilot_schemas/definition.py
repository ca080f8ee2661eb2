"""A workflow's definition as it travels: immutable, named by the hash of its canonical JSON.

Definitions live on the topic `flowpilot.definitions` under three kinds of keys: `def/<hash>` holds the
definition, `name/<workflow>@<version>` and `name/<workflow>` hold `{"definition": "<hash>", "version": …}`.
A deleted workflow's `name/<workflow>` holds `{"deleted": true}`: compaction would forget a null value.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from flowpilot_schemas.codec import content_hash
from flowpilot_schemas.history import from_iso, iso
from flowpilot_schemas.ids import is_legal_name, is_legal_step_name
from flowpilot_schemas.limits import MAX_STEPS, MAX_WHERE
from flowpilot_schemas.topics import DAY, HOUR, MINUTE

# Names a handler's parameters use for other things.
RESERVED_STEP_NAMES = frozenset({"input", "parents"})
_LONGEST_VERSION = 100


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class RetryPolicy(_Frozen):
    """When a failed attempt is tried again: `initial · backoff^(n-1)` ms, at most `max_interval`, jittered."""

    max_attempts: int = Field(default=3, ge=1, le=1_000)
    initial_ms: int = Field(default=1_000, ge=0, le=30 * DAY)
    backoff: float = Field(default=2.0, ge=1.0, le=100.0)
    max_interval_ms: int = Field(default=MINUTE, ge=0, le=30 * DAY)
    non_retryable: tuple[str, ...] = ()


class StepDefinition(_Frozen):
    """One node of the DAG. Times are in ms; `takes` names the parents whose outputs the handler receives.

    `contract` is a hash of what the handler takes and returns: a worker of a later version runs the step if its own
    has the same. Without one, only a worker of this very definition does.
    """

    name: str
    queue: str
    depends_on: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    takes_input: bool = False
    args: dict[str, Any] | None = None
    output: bool = False
    retry: RetryPolicy = RetryPolicy()
    schedule_to_start_ms: int = Field(default=DAY, ge=1, le=6 * DAY)
    on_schedule_to_start: Literal["fail", "retry", "record"] = "fail"
    start_to_close_ms: int = Field(default=10 * MINUTE, ge=1, le=365 * DAY)
    heartbeat_ms: int = Field(default=30_000, ge=1_000, le=DAY)
    contract: str | None = Field(default=None, max_length=100)

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not is_legal_step_name(value) or value in RESERVED_STEP_NAMES:
            raise ValueError(f"{value!r} is not a legal step name")
        return value

    @field_validator("queue")
    @classmethod
    def _queue(cls, value: str) -> str:
        if not is_legal_name(value):
            raise ValueError(f"{value!r} is not a legal queue name")
        return value


class TriggerDefinition(_Frozen):
    """A user topic whose records start executions.

    `unique_by` is a dotted path into the record, `where` a CEL expression over it. `start` says where to begin
    if nothing of the topic was read for the workflow yet: `registration` (with what came since the workflow was
    first registered), `earliest`, or a time as ISO 8601 in UTC with milliseconds.
    """

    topic: str = Field(min_length=1, max_length=249)
    unique_by: str | None = None
    where: str | None = Field(default=None, max_length=MAX_WHERE)
    start: str = "registration"

    @field_validator("start")
    @classmethod
    def _start(cls, value: str) -> str:
        if value not in ("registration", "earliest") and iso(from_iso(value)) != value:
            raise ValueError(f"{value!r} is not a time such as 2026-01-31T00:00:00.000Z")
        return value

    @cached_property
    def start_at(self) -> int | None:
        """The time in ms, if `start` is one."""
        return None if self.start in ("registration", "earliest") else from_iso(self.start)

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A definition that does not use them keeps the hash it had before there were these fields.
        defaults = {"where": None, "start": "registration"}
        return {
            name: value for name, value in dump(self).items() if name not in defaults or value != defaults[name]
        }


class WorkflowDefinition(_Frozen):
    """A workflow version: what an execution is pinned to. Times are in ms.

    `input_schema` describes the input, for people and forms. `input_check` is the JSON Schema that an input has to
    fit before it starts anything, where the type takes more than its description says; None: `input_schema` is.
    """

    v: Literal[1] = 1
    name: str
    version: str = Field(min_length=1, max_length=_LONGEST_VERSION)
    description: str = ""
    input_schema: dict[str, Any] | None = None
    input_check: dict[str, Any] | None = None
    triggers: tuple[TriggerDefinition, ...] = ()
    steps: tuple[StepDefinition, ...] = Field(min_length=1, max_length=MAX_STEPS)
    timeout_ms: int | None = Field(default=None, ge=1, le=365 * DAY)
    dedupe_window_ms: int = Field(default=HOUR, ge=0, le=7 * DAY)
    retry_window_ms: int = Field(default=7 * DAY, ge=0, le=30 * DAY)

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not is_legal_name(value):
            raise ValueError(f"{value!r} is not a legal workflow name")
        return value

    @model_validator(mode="after")
    def _is_a_dag(self) -> Self:
        seen: set[str] = set()
        for step in self.steps:
            if step.name in seen:
                raise ValueError(f"step {step.name!r} is defined twice")
            for parent in step.depends_on:
                if parent not in seen:
                    raise ValueError(f"step {step.name!r} depends on {parent!r}, which is not an earlier step")
            if len(set(step.depends_on)) != len(step.depends_on):
                raise ValueError(f"step {step.name!r} names a dependency twice")
            if not set(step.takes) <= set(step.depends_on):
                raise ValueError(f"step {step.name!r} takes the output of a step it does not depend on")
            seen.add(step.name)
        if sum(step.output for step in self.steps) > 1:
            raise ValueError("more than one step is marked as the output")
        return self

    @cached_property
    def hash(self) -> str:
        """`sha256:<hex>`: the definition's identity."""
        return content_hash(self.model_dump(mode="json"))

    @cached_property
    def index(self) -> dict[str, int]:
        """Step name to its `step_order`: the steps are stored in a topological order."""
        return {step.name: order for order, step in enumerate(self.steps)}

    @cached_property
    def dependents(self) -> tuple[tuple[int, ...], ...]:
        """For each step, the orders of the steps that depend on it."""
        found: list[list[int]] = [[] for _ in self.steps]
        for order, step in enumerate(self.steps):
            for parent in step.depends_on:
                found[self.index[parent]].append(order)
        return tuple(tuple(orders) for orders in found)

    @cached_property
    def queues(self) -> tuple[str, ...]:
        """The queues its steps are sent to, each once, in the steps' order."""
        return tuple(dict.fromkeys(step.queue for step in self.steps))


class DefinitionPointer(_Frozen):
    """What a name on the definitions topic points to."""

    v: Literal[1] = 1
    definition: str
    version: str


class WorkflowDeletion(_Frozen):
    """What the name of a deleted workflow holds, until the workflow is applied again."""

    v: Literal[1] = 1
    deleted: Literal[True] = True


def dev_version(definition: WorkflowDefinition) -> WorkflowDefinition:
    """The same content under `<version>+dev.<hash8>`: a version of its own, for content that still changes."""
    mark = f"+dev.{definition.hash.removeprefix('sha256:')[:8]}"
    version = definition.version[: _LONGEST_VERSION - len(mark)] + mark
    # Through validation: the hash that was computed once would be copied along.
    return WorkflowDefinition.model_validate({**definition.model_dump(), "version": version})


def definition_key(definition_hash: str) -> bytes:
    """The record key of a definition."""
    return f"def/{definition_hash}".encode()


def version_key(workflow: str, version: str) -> bytes:
    """The record key of a workflow version's pointer."""
    return f"name/{workflow}@{version}".encode()


def pointer_key(workflow: str) -> bytes:
    """The record key of a workflow's current-version pointer."""
    return f"name/{workflow}".encode()
