"""The records that nobody could process."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from flowpilot.adapters.postgres.dead_letters import Wanted
from flowpilot.api.access import caller
from flowpilot.api.backend import Backend, Served
from flowpilot.api.bodies import answer
from flowpilot.api.parameters import LARGEST, After, Limit, Moment, Name, cursor, only_known
from flowpilot.api.problems import Refusal, documented
from flowpilot.api.shapes import DeadLetter, DeadLetters
from flowpilot.app import dead_letters

router = APIRouter(tags=["dead letters"], dependencies=[Depends(caller), Depends(only_known)])

LetterId = Annotated[int, Path(ge=1, le=LARGEST, description="A dead letter's id.", examples=[1])]


@router.get(
    "/dead-letters",
    summary="Dead letters, the newest first",
    responses={200: {"model": DeadLetters}, **documented(401, 403, 422, 503)},
)
async def list_letters(
    backend: Served,
    reason: Name = None,
    workflow: Name = None,
    topic: Name = None,
    since: Annotated[Moment, Query(description="Only those reported then or later.")] = None,
    limit: Limit = 50,
    after: After = None,
) -> Response:
    """Without the records' bytes. `total` counts all that fit the filters, on whatever page."""
    wanted = Wanted(reason, workflow, topic, since)
    items, total = await backend.ask(lambda database: dead_letters.list_letters(database, wanted, limit + 1, after))
    last = items[limit - 1]["id"] if len(items) > limit else None
    return answer({"items": items[:limit], "total": total, "next": cursor(last)})


@router.get(
    "/dead-letters/{id}",
    summary="One dead letter with its record",
    responses={200: {"model": DeadLetter}, **documented(401, 403, 404, 422, 503)},
)
async def show_letter(backend: Served, id: LetterId) -> Response:
    """Why, what to do about it, and the record's key and value: in base64, the value as text too if it is UTF-8."""
    return answer(dead_letters.as_json(await _found(backend, id)))


@router.get(
    "/dead-letters/{id}/value",
    summary="The record's value, as it is",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        **documented(401, 403, 404, 422, 503),
    },
)
async def letter_value(backend: Served, id: LetterId) -> Response:
    """Bytes of anybody's: a browser saves them, and shows none."""
    found = await _found(backend, id)
    if found.value is None:
        raise Refusal(404, "no_value", f"the record of dead letter {id} has no value (null)")
    return Response(
        found.value,
        headers={"Content-Disposition": f'attachment; filename="dead-letter-{id}.bin"'},
        media_type="application/octet-stream",
    )


async def _found(backend: Backend, id: int) -> dead_letters.Shown:
    found = await backend.ask(lambda database: dead_letters.show_letter(database, id))
    if found is None:
        raise Refusal(404, "unknown_dead_letter", f"there is no dead letter {id}; GET /dead-letters lists them")
    return found
