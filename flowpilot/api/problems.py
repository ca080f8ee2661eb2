"""Every error as problem details (RFC 9457), with a stable word (`code`) and a sentence that says what to do."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from flowpilot.app.database import DatabaseRefused, DatabaseUnreachable
from flowpilot.authoring.errors import InputInvalid
from flowpilot.client.connection import AuditUnavailable
from flowpilot.client.errors import (
    ExecutionExists,
    NotSent,
    ResultTimeout,
    RetryRefused,
    RetryUnanswered,
    StartUnconfirmed,
    UnknownExecution,
    UnknownWorkflow,
)
from flowpilot.ports.definitions import WorkflowDeleted
from flowpilot.ports.log import LogUnavailable
from flowpilot_schemas.codec import BadRecord

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = "5"

_log = structlog.get_logger("flowpilot.api")


class Problem(BaseModel):
    """An error. `code` is a stable word; `execution` stands here if the request has one, however it went."""

    type: str = "about:blank"
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["there is no workflow 'onbording' (registered: onboarding)"])
    code: str = Field(examples=["unknown_workflow"])
    execution: str | None = None


class Refusal(Exception):
    """Ends a request with this problem."""

    def __init__(
        self, status: int, code: str, detail: str, *, execution: str | None = None, **headers: str
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.execution = status, code, detail, execution
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses as OpenAPI describes them."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def register(app: FastAPI) -> None:
    """Let `app` answer every error so."""
    app.add_exception_handler(RequestValidationError, _on_parameters)
    app.add_exception_handler(HTTPException, _on_http)
    for kind in _REFUSED:
        app.add_exception_handler(kind, _on_refused)
    app.add_exception_handler(Exception, _on_defect)


def refusal(error: Exception) -> Refusal | None:
    """What an error of the rooms below means to a caller; None if it is a defect."""
    if isinstance(error, Refusal):
        return error
    execution = getattr(error, "execution", None)
    match error:
        case UnknownWorkflow():
            code = "unknown_workflow" if error.version is None else "unknown_version"
            return Refusal(404, code, str(error))
        case WorkflowDeleted():
            return Refusal(404, "workflow_deleted", str(error))
        case UnknownExecution():
            return Refusal(404, "unknown_execution", str(error), execution=execution)
        case BadRecord():
            return Refusal(422, error.reason, error.detail)
        case InputInvalid():
            return Refusal(422, "input_invalid", str(error))
        case ExecutionExists():
            code = "key_conflict" if error.conflict else "execution_exists"
            return Refusal(409, code, str(error), execution=execution)
        case RetryRefused():
            status = 404 if error.refusal == "unknown_execution" else 409
            return Refusal(status, error.refusal, str(error), execution=execution)
        case _:
            return _unavailable(error, execution)


def _unavailable(error: Exception, execution: str | None) -> Refusal | None:
    match error:
        case StartUnconfirmed():
            # The audit record or the same key tells, so that nobody has to guess.
            code = error.code
            detail = f"Kafka did not acknowledge the start: {error}"
        case LogUnavailable():
            code, detail = "kafka_unavailable", f"Kafka did not answer ({error}); repeat the request later"
        case NotSent():
            code, detail = "kafka_refused", str(error)
        case RetryUnanswered():
            code, detail = "retry_unanswered", str(error)
        case ResultTimeout():
            code = "audit_late"
            detail = f"execution {execution} is there, but the audit record did not tell in time whether it is new"
        case AuditUnavailable() | DatabaseUnreachable():
            # Its own words name addresses and settings, which are the operator's.
            _log.warning("PostgreSQL did not answer", error=str(error))
            code = "postgres_unavailable"
            detail = "PostgreSQL does not answer; executions go on meanwhile: repeat the request later"
        case DatabaseRefused():
            _log.warning("PostgreSQL refused", error=str(error))
            code, detail = "postgres_unavailable", "PostgreSQL refused the question; the server's log has its words"
        case _:
            return None
    return Refusal(503, code, detail, execution=execution, Retry_After=RETRY_AFTER)


_REFUSED = (
    Refusal, UnknownWorkflow, WorkflowDeleted, UnknownExecution, BadRecord, InputInvalid, ExecutionExists,
    RetryRefused, RetryUnanswered, ResultTimeout, NotSent, LogUnavailable, AuditUnavailable, DatabaseUnreachable,
    DatabaseRefused,
)  # fmt: skip


async def _on_refused(_: Request, error: Exception) -> Response:
    found = refusal(error)
    assert found is not None
    return response(found)


async def _on_parameters(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where, *path = (str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    name = ".".join(path)
    return response(Refusal(422, "parameter_invalid", f"{where} parameter {name!r}: {message}"))


_SAID = {
    404: "there is nothing at this address; GET /openapi.json lists what there is",
    405: "this address does not take that method; GET /openapi.json lists what there is",
}


async def _on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    found = Refusal(error.status_code, code, _SAID.get(error.status_code, str(error.detail)))
    found.headers.update(error.headers or {})
    return response(found)


async def _on_defect(_: Request, error: Exception) -> Response:
    # Starlette raises it again once this is sent, and the server logs it.
    detail = f"an unexpected {type(error).__name__}: the server's log has it; please report it"
    return response(Refusal(500, "defect", detail))


def response(found: Refusal) -> Response:
    """The problem details of `found`."""
    problem = Problem(
        title=HTTPStatus(found.status).phrase,
        status=found.status,
        detail=found.detail,
        code=found.code,
        execution=found.execution,
    )
    content = orjson.dumps(problem.model_dump(exclude_none=True))
    return Response(content, found.status, headers=found.headers, media_type=MEDIA_TYPE)
