"""Who may ask, and under which name it stands in the audit record."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from hashlib import sha256
from ipaddress import ip_address
from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic import SecretStr

from flowpilot.api.backend import Served
from flowpilot.api.problems import Refusal
from flowpilot.core.errors import FlowPilotError

ANONYMOUS = "anonymous"
LONGEST_NAME = 200
# Values of Sec-Fetch-Site (W3C Fetch Metadata) of a request that a page of another origin makes.
_ELSEWHERE = ("cross-site", "same-site")


class OpenToAll(FlowPilotError):
    """The API would listen beyond this machine, and anybody could use it."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"FLOWPILOT_API_HOST={host} would let everybody on the network start and cancel executions: set "
            "FLOWPILOT_API_TOKENS=name=token, or FLOWPILOT_API_HOST=127.0.0.1"
        )


def is_this_machine(host: str) -> bool:
    """Whether `host`, a name or an address, is the loopback interface's."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def owner(token: str, tokens: Mapping[str, SecretStr]) -> str | None:
    """The name of `token`. Takes as long for a token that is nearly right as for one that is not at all."""
    given = sha256(token.encode()).digest()
    found = None
    for name, known in tokens.items():
        if hmac.compare_digest(given, sha256(known.get_secret_value().encode()).digest()):
            found = name
    return found


def token_owner(request: Request, tokens: Mapping[str, SecretStr]) -> str | None:
    """The name of the request's bearer token (RFC 6750); None if it has none of `tokens`."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return owner(token.strip(), tokens) if scheme.lower() == "bearer" else None


def header_text(value: str) -> str:
    """What a header says: UTF-8, as every client sends it today, else Latin-1, as HTTP once meant it."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


async def caller(
    request: Request,
    backend: Served,
    x_flowpilot_actor: Annotated[
        str | None,
        Header(
            alias="X-FlowPilot-Actor",
            description="Who asks, for the audit record; only heeded where there are no tokens.",
            json_schema_extra={"minLength": 1, "maxLength": LONGEST_NAME},
        ),
    ] = None,
) -> str:
    """The name under which the request is made. Raises `Refusal` if nobody may make it so."""
    tokens = backend.settings.api_tokens
    if tokens:
        name = token_owner(request, tokens)
        if name is None:
            remedy = "send a token of FLOWPILOT_API_TOKENS as `Authorization: Bearer TOKEN`"
            raise Refusal(401, "unauthorized", remedy, WWW_Authenticate="Bearer")
    else:
        name = None
        _refuse_strangers(request)
    said = ANONYMOUS if x_flowpilot_actor is None else header_text(x_flowpilot_actor)
    if not 1 <= len(said) <= LONGEST_NAME:
        raise Refusal(422, "parameter_invalid", f"X-FlowPilot-Actor takes 1 to {LONGEST_NAME} characters")
    return name or said


def _refuse_strangers(request: Request) -> None:
    """Without tokens, a page in a browser on this machine could ask as well: by a name of its own that leads
    here (its `Host` is no loopback name), or across sites (`Origin`; Fetch Metadata where that is left out)."""
    places = [request.headers.get("Host", "")]
    origin = request.headers.get("Origin")
    if origin is not None:
        places.append(origin.partition("://")[2])
    elif request.method not in ("GET", "HEAD") and request.headers.get("Sec-Fetch-Site") in _ELSEWHERE:
        sentence = "without FLOWPILOT_API_TOKENS a page of another site may not ask: set tokens"
        raise Refusal(403, "foreign_site", sentence)
    for place in places:
        if not is_this_machine(_without_port(place)):
            raise Refusal(
                403,
                "foreign_site",
                f"without FLOWPILOT_API_TOKENS only localhost and 127.0.0.1 are served, not {place!r}: set tokens",
            )


def _without_port(place: str) -> str:
    return place.partition("]")[0] if place.startswith("[") else place.partition(":")[0].lower()


Caller = Annotated[str, Depends(caller)]
