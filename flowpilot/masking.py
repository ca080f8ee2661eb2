"""Settings as they may be printed: without what opens a door.

In doubt more is masked than has to be: an address that is written wrongly has its password where nobody expects it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MASK = "***"
_SECRET = re.compile(r"pass(word|wd|phrase|file)?|secret|token|key|jaas|credential|assertion", re.IGNORECASE)
# Of SASL everything is masked but these: the other properties are for one mechanism each, and new ones come.
_SASL_SHOWN = frozenset(
    {
        "sasl.mechanism",
        "sasl.mechanisms",
        "sasl.username",
        "sasl.kerberos.service.name",
        "sasl.kerberos.principal",
        "sasl.oauthbearer.method",
        "sasl.oauthbearer.client.id",
        "sasl.oauthbearer.scope",
    }
)
_LOCATIONS = re.compile(r"\.location\Z|\Aenable\.", re.IGNORECASE)  # of a file, a switch


def mask_address(address: str) -> str:
    """A database's address (RFC 3986) without its password and the secrets among its parameters.

    A password may hold any character, unencoded too: all between the first colon and the last `@` is masked.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return MASK
    credentials, at, place = rest.rpartition("@")
    if at:
        user, colon, _ = credentials.partition(":")
        credentials = f"{user}:{MASK}" if colon else user
    place, question, query = place.partition("?")
    parameters = [_mask_parameter(pair) for pair in query.split("&")] if question else []
    return f"{scheme}://{credentials}{at}{place}{question}{'&'.join(parameters)}"


def mask_properties(properties: Mapping[str, str]) -> dict[str, str]:
    """librdkafka's properties without passwords, keys, tokens and what else a login needs."""
    return {name: MASK if _is_secret(name) else value for name, value in properties.items()}


def _mask_parameter(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    return f"{name}={MASK}" if equals and _SECRET.search(name) else pair


def _is_secret(name: str) -> bool:
    if name.startswith("sasl."):
        return name not in _SASL_SHOWN
    return bool(_SECRET.search(name)) and not _LOCATIONS.search(name)
