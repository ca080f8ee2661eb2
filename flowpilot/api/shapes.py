"""What bodies look like. Answers have the command line's own shapes (`-o json`); these models describe them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

_ID = "c66e4a16-8185-50e7-a0b4-7ab3a77f66d5"
_AT = "2026-05-01T12:00:00.123Z"
LONGEST_REASON = 1_000


class Accepted(BaseModel):
    """Taken by Kafka. `retry_of`: what the execution retries."""

    execution: str = Field(examples=[_ID])
    status: Literal["accepted"]
    retry_of: str | None = None


class Ended(BaseModel):
    """How an execution ended. `errors`: step to its error. `output_omitted`: it is too large for one answer."""

    execution: str = Field(examples=[_ID])
    run: int
    status: Literal["completed", "failed", "cancelled", "refused"]
    output: JsonValue = Field(examples=["sent to +49 30 901820"])
    output_omitted: bool = False
    errors: dict[str, JsonValue]
    reason: str | None


class _Row(BaseModel):
    execution: str = Field(examples=[_ID])
    run: int | None
    workflow: str | None = Field(examples=["onboarding"])
    version: str | None = Field(examples=["1"])
    status: str = Field(examples=["completed"])
    key: str | None = Field(examples=["p-17"])
    started_at: str | None = Field(examples=[_AT])
    finished_at: str | None = Field(examples=[_AT])
    created_by: str | None = Field(examples=["billing"])
    origin: str | None = Field(description="The record that started it.", examples=["patients.registered/3/1207"])


class Listed(_Row):
    """An execution in a list. `steps`: completed of all; `retries`: how many there are."""

    steps: str = Field(examples=["2/2"])
    retries: int


class Executions(BaseModel):
    """A page; `next` is null on the last."""

    items: list[Listed]
    next: str | None


class Task(BaseModel):
    """A step of an execution, with its latest attempt. `taken_from`: the execution whose result a retry took."""

    step: str = Field(examples=["send_otp"])
    status: str = Field(examples=["completed"])
    attempt: int
    taken_from: str | None
    ready_at: str | None
    started_at: str | None
    finished_at: str | None
    retry_at: str | None
    worker_id: str | None
    broker_task_id: str | None = Field(description="topic/partition/offset of the step message.")
    output: JsonValue
    error: JsonValue = Field(examples=[{"kind": "ValueError", "message": "no such number"}])


class Execution(_Row):
    """One run. `parent`: what it retries; `retries`: what retries it; `runs`: all runs of this id, newest first."""

    traceparent: str | None = Field(
        description="What it was started with (W3C Trace Context).",
        examples=["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
    )
    definition: str | None = Field(description="The hash of the definition that it is pinned to.")
    parent: str | None
    retry_reason: str | None
    retries: list[str]
    runs: list[int]
    output: JsonValue
    errors: JsonValue
    reason: str | None
    tasks: list[Task]


class History(BaseModel):
    """History events of one run, by `seq`; their fields are in the contract's JSON Schema."""

    execution: str = Field(examples=[_ID])
    run: int | None
    items: list[dict[str, Any]]
    next: str | None


class WorkflowLine(BaseModel):
    """A workflow in a list."""

    workflow: str = Field(examples=["onboarding"])
    version: str = Field(examples=["1"])
    steps: list[str] = Field(examples=[["create_patient", "send_otp"]])
    queues: list[str]
    triggers: list[str] = Field(examples=[["patients.registered"]])
    description: str
    definition: str


class Workflows(BaseModel):
    """All of them."""

    items: list[WorkflowLine]


class Version(BaseModel):
    """A version that is registered."""

    version: str
    definition: str
    current: bool


class Workflow(BaseModel):
    """One version of a workflow, with `steps` in a topological order; times are in ms."""

    workflow: str
    version: str
    description: str
    input_schema: dict[str, Any] | None
    triggers: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    timeout_ms: int | None
    dedupe_window_ms: int
    retry_window_ms: int
    definition: str
    versions: list[Version]


class DeadLetterLine(BaseModel):
    """A dead letter in a list."""

    id: int
    reason: str = Field(examples=["not_json"])
    detail: str
    record: str = Field(examples=["patients.registered/3/1207"])
    topic: str
    partition: int
    offset: int
    at: str | None
    reported_at: str
    source: str = Field(examples=["router"])
    workflow: str | None
    size: int
    sha256: str
    truncated: bool


class DeadLetters(BaseModel):
    """A page; `next` is null on the last."""

    items: list[DeadLetterLine]
    total: int
    next: str | None


class Other(BaseModel):
    """Another dead letter of the same record."""

    id: int
    reason: str
    workflow: str | None


class LetterHeader(BaseModel):
    """A header of a dead letter's record; the bytes of its name only if they are not UTF-8."""

    name: str = Field(examples=["traceparent"])
    name_base64: str | None
    value_base64: str
    value_text: str | None


class DeadLetter(DeadLetterLine):
    """With what to do about it, and the record's bytes and headers as far as they were kept."""

    remedy: str | None
    others: list[Other]
    key_base64: str | None
    value_base64: str | None
    value_text: str | None
    headers: list[LetterHeader]
    headers_left_out: int


class Alive(BaseModel):
    """The process lives."""

    status: Literal["ok"]


class Ready(Alive):
    """And reaches its servers. `postgres` is left out where it was not asked."""

    kafka: Literal["ok"]
    postgres: Literal["ok"] | None = None


class CancelBody(BaseModel):
    """`reason` stands in the audit record."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str = Field(default="", max_length=LONGEST_REASON)


class RetryBody(CancelBody):
    """`from_start`: run all steps again, in `version` if one is given."""

    from_start: bool = False
    version: str | None = None


def _body(schema: dict[str, Any], description: str, **examples: Any) -> dict[str, Any]:
    named = {name: {"value": value} for name, value in examples.items()}
    content = {"application/json": {"schema": schema, "examples": named}}
    return {"required": False, "description": description, "content": content}


_REASON = {"type": "string", "maxLength": LONGEST_REASON}

# What the codec takes: an integer beyond 64 bits, which many decoders would round, is refused.
JSON = {
    "description": "Any JSON, with integers of at most 64 bits.",
    "anyOf": [
        {"type": ["null", "boolean", "string"]},
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        {"type": "number", "not": {"type": "integer"}},
        {"type": "array", "items": {"$ref": "#/components/schemas/Json"}},
        {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Json"}},
    ],
}

START_BODY = _body(
    {"$ref": "#/components/schemas/Json"},
    "The workflow's input, as its `input_schema` says; none for a workflow without input.",
    patient={"patient_id": "p-17", "phone": "+49 30 901820"},
)
CANCEL_BODY = _body(
    {"type": "object", "properties": {"reason": _REASON}, "additionalProperties": False},
    "Why.",
    reason={"reason": "registered twice"},
)
RETRY_BODY = _body(
    {
        "type": "object",
        "properties": {
            "reason": _REASON,
            "from_start": {"type": "boolean", "default": False},
            "version": {"type": ["string", "null"]},
        },
        "additionalProperties": False,
        # Another version has other steps: their results cannot be taken over.
        "anyOf": [
            {"properties": {"version": {"type": "null"}}},
            {"properties": {"from_start": {"const": True}}, "required": ["from_start"]},
        ],
    },
    "Why, and from where.",
    failed={"reason": "the mail server is back"},
    anew={"reason": "wrong template", "from_start": True, "version": "2"},
)
