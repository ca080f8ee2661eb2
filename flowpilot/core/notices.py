"""What is told of retries: to the client that asked, to the root, and in the history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from flowpilot.core.state import REFUSAL_KEPT_MS, Execution
from flowpilot_schemas.definition import WorkflowDefinition
from flowpilot_schemas.ids import root_id
from flowpilot_schemas.messages import RetryAnswered, RetryEnded, RetryExecution
from flowpilot_schemas.topics import DAY, HOUR


class Outgoing(NamedTuple):
    """A message to be sent. `kind` is history, step, control, reply, event or dead_letter.

    `queue` belongs to a step message.
    """

    kind: str
    key: str
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    queue: str | None = None
    topic: str | None = None
    partition: int | None = None


# A start that comes later than that after the request, by the broker's time, begins nothing: it may be a copy, from
# an owner that stood still, of one whose family was forgotten. So no family is kept for a shorter time; an hour
# more, since brokers' clocks differ.
LATEST_START_MS = DAY
SHORTEST_FAMILY_MS = LATEST_START_MS + HOUR


def retry_ended(state: Execution, status: str, definition: WorkflowDefinition | None, at: int) -> RetryEnded:
    """What a retry that ended at `at` says to its root. A refused one may have no definition."""
    if status == "refused" or definition is None:
        window = REFUSAL_KEPT_MS
    else:
        window = definition.dedupe_window_ms if status == "completed" else definition.retry_window_ms
    return RetryEnded.model_validate(
        {
            "execution": root_id(state.id),
            "retry": state.id,
            "run": state.run,
            "request": state.retry["request"],
            "status": status,
            "until": at + max(window, SHORTEST_FAMILY_MS),
        }
    )


def tell_retry(body: dict[str, Any]) -> None:
    """Into the body of a history record: what execution is retried, and why."""
    retry = body.pop("retry", None)
    if retry is not None:
        body["parent"] = retry["execution"]
        if "run" in retry:
            body["parent_run"] = retry["run"]
        body |= {"from_start": retry["from_start"], "retry_reason": retry["reason"], "request": retry["request"]}


def answer(
    asked: Mapping[str, Any],
    reply: Any,
    retry: str | None = None,
    refused: str | None = None,
    detail: str | None = None,
    running: str | None = None,
) -> list[Outgoing]:
    """To the client that asked for a retry."""
    if not reply:
        return []
    told = RetryAnswered(
        execution=asked["execution"],
        request=asked["request"],
        retry=retry,
        refused=refused,
        detail=detail,
        running=running,
    )
    key = reply.get("key") or asked["execution"]
    body = orjson.dumps(told.model_dump(exclude_none=True))
    return [Outgoing("reply", key, body, topic=reply["topic"], partition=reply["partition"])]


def refusal_of(message: RetryExecution, refused: str, detail: str) -> list[Outgoing]:
    """The answer to a request about an execution that nothing is known of."""
    reply = message.reply.model_dump(exclude_none=True) if message.reply else None
    asked = {"execution": message.execution, "request": message.request}
    return answer(asked, reply, refused=refused, detail=detail)
