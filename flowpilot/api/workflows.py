"""What is registered."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from flowpilot.api.access import caller
from flowpilot.api.backend import Served
from flowpilot.api.bodies import answer
from flowpilot.api.parameters import WorkflowName, only_known
from flowpilot.api.problems import documented
from flowpilot.api.shapes import Workflow, Workflows
from flowpilot.app.workflows import chosen, described, summary, versions

router = APIRouter(tags=["workflows"], dependencies=[Depends(caller), Depends(only_known)])


@router.get(
    "/workflows",
    summary="The current version of every workflow",
    responses={200: {"model": Workflows}, **documented(401, 403, 422, 503)},
)
async def list_workflows(backend: Served) -> Response:
    """By name. Read from Kafka, so it is what a start would find."""
    definitions = await backend.definitions()
    found = [definitions.current(name) for name in definitions.workflows()]
    return answer({"items": [summary(definition) for definition in found if definition is not None]})


@router.get(
    "/workflows/{name}",
    summary="One workflow with its steps and versions",
    responses={200: {"model": Workflow}, **documented(401, 403, 404, 422, 503)},
)
async def show_workflow(
    backend: Served,
    name: WorkflowName,
    version: Annotated[str | None, Query(description="Not the current version but this one.")] = None,
) -> Response:
    """Its current version, or another one; `input_schema` describes what a start takes."""
    found = versions(await backend.definitions(), name)
    return answer(described(chosen(found, version), found))
