"""Executions: started, looked at, cancelled, retried."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Header, Query, Request, Response

from flowpilot.adapters.postgres.queries import Filter
from flowpilot.api.access import Caller, caller, header_text
from flowpilot.api.backend import Backend, Served
from flowpilot.api.bodies import answer, json_fields, json_value
from flowpilot.api.parameters import (
    After,
    ExecutionId,
    Key,
    Limit,
    Moment,
    Name,
    Parent,
    Run,
    Status,
    Wait,
    WorkflowName,
    cursor,
    only_known,
)
from flowpilot.api.problems import Refusal, documented
from flowpilot.api.shapes import (
    CANCEL_BODY,
    RETRY_BODY,
    START_BODY,
    Accepted,
    CancelBody,
    Ended,
    Execution,
    Executions,
    History,
    RetryBody,
)
from flowpilot.app import executions
from flowpilot.client.errors import RetryUnanswered, StartUnconfirmed
from flowpilot.client.handle import Handle
from flowpilot_schemas.limits import MAX_KEY

router = APIRouter(tags=["executions"], dependencies=[Depends(caller), Depends(only_known)])

# Seconds: for the engine's answer to a retry, and for all of it with what is asked before.
RETRY_ANSWER, RETRY = 10.0, 30.0

ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {
        "model": Accepted,
        "description": "Kafka has it; nothing ran yet, or it had not ended when the wait was over.",
        "headers": {"Location": {"description": "Where the execution is.", "schema": {"type": "string"}}},
    },
    200: {"model": Ended, "description": "It ended within the wait, in whatever way: see `status`."},
}


@router.post(
    "/workflows/{name}/executions",
    status_code=202,
    summary="Start an execution",
    responses={**ACCEPTED, **documented(401, 403, 404, 408, 409, 413, 415, 422, 503)},
    openapi_extra={"requestBody": START_BODY},
)
async def start(
    request: Request,
    backend: Served,
    actor: Caller,
    name: WorkflowName,
    version: Annotated[str | None, Query(description="Not the current version but this one.")] = None,
    if_exists: Annotated[
        Literal["return", "fail"],
        Query(description="What to do if the key has an execution already: answer with it, or 409."),
    ] = "return",
    wait: Wait = None,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="The execution's key: the same key of a workflow is the same execution, so that a start "
            "can be repeated. As it is, without quotes.",
            json_schema_extra={"minLength": 1, "maxLength": MAX_KEY},
        ),
    ] = None,
    traceparent: Annotated[
        str | None,
        Header(
            description="W3C Trace Context: it goes with every step message and into the audit record. What is "
            "none is ignored."
        ),
    ] = None,
) -> Response:
    """The body is the workflow's input. The answer comes before anything runs, unless `wait` is given."""
    value = await json_value(request, backend.settings.trigger_limit)
    key = None if idempotency_key is None else header_text(idempotency_key)
    # A span of this request, if somebody opened one, is below what the header says.
    trace = backend.client.connection.tracer.current() or traceparent
    try:
        handle = await backend.client.start(
            name, value, key=key, version=version, if_exists=if_exists, actor=actor, traceparent=trace
        )
    except StartUnconfirmed as error:
        backend.observed.unconfirmed(error)
        raise
    return await _accepted(backend, handle, wait, {"execution": handle.id, "status": "accepted"})


@router.get(
    "/executions",
    summary="Executions, the newest first",
    responses={200: {"model": Executions}, **documented(401, 403, 422, 503)},
)
async def list_executions(
    backend: Served,
    status: Status = None,
    workflow: Name = None,
    key: Key = None,
    since: Annotated[Moment, Query(description="Only those started then or later.")] = None,
    until: Annotated[Moment, Query(description="Only those started before.")] = None,
    parent: Parent = None,
    limit: Limit = 50,
    after: After = None,
) -> Response:
    """From the audit record, which follows the executions by a moment. `next` is the `cursor` of the next page;
    executions that begin meanwhile move no page."""
    wanted = Filter(status, workflow, key, since, until, parent)
    found = await backend.ask(
        lambda database: executions.list_executions(database, wanted, limit=limit, before=after)
    )
    return answer({"items": found.items, "next": cursor(found.last)})


@router.get(
    "/executions/{execution}",
    summary="One execution with its steps and retries",
    responses={200: {"model": Execution}, **documented(401, 403, 404, 422, 503)},
)
async def show(backend: Served, execution: ExecutionId, run: Run = None) -> Response:
    """From the audit record: one that was started a moment ago may not be there yet (404 with Retry-After)."""
    found = await backend.ask(
        lambda database: executions.show_execution(database, execution, run=run, history=False)
    )
    if found is None:
        raise _unknown(execution, run)
    return answer(found)


@router.get(
    "/executions/{execution}/history",
    summary="What the engine decided, event by event",
    responses={200: {"model": History}, **documented(401, 403, 404, 422, 503)},
)
async def history(
    backend: Served, execution: ExecutionId, run: Run = None, limit: Limit = 100, after: After = None
) -> Response:
    """Each attempt with its worker and error, each retry with its time: the hash-chained events themselves."""
    found = await backend.ask(
        lambda database: executions.history_of(database, execution, run=run, after=after or 0, limit=limit)
    )
    if found is None:
        raise _unknown(execution, run)
    events = [orjson.Fragment(event) for event in found.events]
    return answer({"execution": execution, "run": found.run, "items": events, "next": cursor(found.last)})


@router.post(
    "/executions/{execution}/cancel",
    status_code=202,
    summary="Cancel an execution",
    responses={202: {"model": Accepted}, **documented(401, 403, 408, 413, 415, 422, 503)},
    openapi_extra={"requestBody": CANCEL_BODY},
)
async def cancel(request: Request, backend: Served, actor: Caller, execution: ExecutionId) -> Response:
    """Steps that wait are not begun, handlers that run are told. One that has ended stays as it is."""
    body = await json_fields(request, CancelBody)
    await backend.client.cancel(execution, body.reason, actor=actor)
    return answer({"execution": execution, "status": "accepted"}, 202, location=_location(execution))


@router.post(
    "/executions/{execution}/retry",
    status_code=202,
    summary="Retry an execution that failed or was cancelled",
    responses={**ACCEPTED, **documented(401, 403, 404, 408, 409, 413, 415, 422, 503)},
    openapi_extra={"requestBody": RETRY_BODY},
)
async def retry(
    request: Request, backend: Served, actor: Caller, execution: ExecutionId, wait: Wait = None
) -> Response:
    """As a new execution, which takes the results of completed steps over, or begins `from_start`."""
    body = await json_fields(request, RetryBody)
    try:
        async with asyncio.timeout(RETRY):
            handle = await backend.client.retry(
                execution,
                body.reason,
                from_start=body.from_start,
                version=body.version,
                actor=actor,
                timeout=RETRY_ANSWER,
            )
    except RetryUnanswered:  # which is a TimeoutError too
        raise
    except TimeoutError:
        raise RetryUnanswered(execution, RETRY) from None
    content = {"execution": handle.id, "status": "accepted", "retry_of": execution}
    return await _accepted(backend, handle, wait, content)


async def _accepted(backend: Backend, handle: Handle, wait: float | None, content: dict[str, Any]) -> Response:
    ended = await backend.ended(handle, wait) if wait else None
    if ended is None:
        return answer(content, 202, location=_location(handle.id))
    fields = ended.model_dump(mode="json", include=set(Ended.model_fields))
    return answer(fields, 200, location=_location(handle.id))


def _location(execution: str) -> str:
    return f"/executions/{execution}"


def _unknown(execution: str, run: int | None) -> Refusal:
    which = f"execution {execution}" if run is None else f"run {run} of execution {execution}"
    return Refusal(
        404,
        "unknown_execution",
        f"the audit record does not know {which}; one that was started a moment ago follows at once",
        execution=execution,
        Retry_After="1",
    )
