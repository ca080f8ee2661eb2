"""The sizes FlowPilot refuses to go beyond. Those of a fold travel in StartExecution: the log decides."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from flowpilot_schemas.topics import LARGE_MESSAGE

KIB = 1024
MAX_STEPS = 10_000
MAX_HEARTBEAT_DETAILS = 4 * KIB
MAX_ERROR_MESSAGE = 4 * KIB
MAX_KEY = 512
MAX_WHERE = 1_000
MAX_PARTITIONS = 10_000


class Limits(BaseModel):
    """Bytes of encoded JSON."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    input: int = Field(default=256 * KIB, ge=1, le=LARGE_MESSAGE // 4)
    result: int = Field(default=64 * KIB, ge=1, le=LARGE_MESSAGE // 4)
    step_inputs: int = Field(default=512 * KIB, ge=1, le=LARGE_MESSAGE // 4)
