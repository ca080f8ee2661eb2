"""The application: its endpoints, its errors, and how it describes itself."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer
from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowpilot.api import dead_letters, executions, health, problems, workflows
from flowpilot.api.backend import Backend
from flowpilot.api.observed import Observing
from flowpilot.api.shapes import JSON

# Bytes of an answer that is worth compressing.
COMPRESSED_FROM = 1_024

DESCRIPTION = """\
Starts workflow executions, tells what became of them, cancels and retries them.

Errors are problem details (RFC 9457): `code` is a stable word, `detail` a sentence that says what to do.
Lists are pages: send `next` back as `cursor`.
"""


def create_app(backend: Backend) -> FastAPI:
    """The application on `backend`, whose settings say whether a token is needed."""
    app = FastAPI(
        title="FlowPilot",
        version=version("flowpilot"),
        description=DESCRIPTION,
        docs_url=None,  # pages that load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.backend = backend
    token = [Security(HTTPBearer(auto_error=False, description="A token of FLOWPILOT_API_TOKENS."))]
    guarded = token if backend.settings.api_tokens else []
    for room in (workflows, executions, dead_letters):
        app.include_router(room.router, dependencies=guarded)
    app.include_router(health.router)
    problems.register(app)
    app.add_middleware(GZipMiddleware, minimum_size=COMPRESSED_FROM)
    app.add_middleware(_Careful)
    if backend.observed.is_on:
        app.add_middleware(Observing, observed=backend.observed)
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = described()
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas["Problem"] = problems.Problem.model_json_schema()
            schemas["Json"] = JSON
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
        return described()

    app.openapi = openapi  # type: ignore[method-assign]
    return app


class _Careful:
    """No answer is kept by anybody on the way, or taken for what it does not say it is; and nobody on the way can
    have read a request's length otherwise than it is read here (RFC 9112, section 6.1)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Cache-Control"] = "no-store"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        names = {name for name, _ in scope.get("headers", ())}
        if {b"content-length", b"transfer-encoding"} <= names:
            sentence = "the request has both Content-Length and Transfer-Encoding: send one of them"
            refused = problems.response(problems.Refusal(400, "two_lengths", sentence, Connection="close"))
            await refused(scope, receive, sent)
            return
        try:
            await self._app(scope, receive, sent)
        except ClientDisconnect:
            return  # nobody is there to be answered, and nothing was begun before the body was whole
