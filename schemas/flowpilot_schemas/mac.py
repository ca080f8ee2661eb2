"""The MAC of what the engine tells workers: step messages and control records (HMAC-SHA256, RFC 2104).

The header `fp-mac` holds `v1:` and the hexadecimal HMAC of the topic's name, a line feed, and the record's whole
value. The topic is included so that a genuine message cannot be moved to another queue, to the control topic or to
another namespace. The key of the record, its partition and its other headers are not covered.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence

HEADER_MAC = "fp-mac"
LEAST_SECRET = 16
"""Characters that a secret has at least."""
_VERSION = b"v1:"

MISSING, INVALID = "step_mac_missing", "step_mac_invalid"
"""Why a record is not trusted, as the reason of a dead letter."""


def mac(secret: bytes, topic: str, value: bytes) -> bytes:
    """The value of the header `fp-mac` for a record with this value on `topic`."""
    return _VERSION + hmac.digest(secret, topic.encode() + b"\n" + value, "sha256").hex().encode()


class StepSecrets:
    """The secrets in force: the first signs, each verifies. Without any, nothing is signed and all is trusted."""

    __slots__ = ("_secrets",)

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        self._secrets = [secret.encode() for secret in secrets]

    def __repr__(self) -> str:
        return f"StepSecrets({len(self._secrets)})"

    def __bool__(self) -> bool:
        return bool(self._secrets)

    def header(self, topic: str, value: bytes) -> tuple[tuple[str, bytes], ...]:
        """The headers to add to a record of `topic` with this value: one, or none without a secret."""
        return ((HEADER_MAC, mac(self._secrets[0], topic, value)),) if self._secrets else ()

    def distrust(
        self, topic: str, value: bytes | None, headers: Iterable[tuple[str, bytes]]
    ) -> tuple[str, str] | None:
        """Why the record must not be acted upon: a reason (`MISSING`, `INVALID`) and a sentence; None if it may."""
        if not self._secrets:
            return None
        found = [given for name, given in headers if name == HEADER_MAC]
        if not found:
            return MISSING, (
                "the record has no header fp-mac, and FLOWPILOT_STEP_SECRET is set here: whoever sent it does not "
                "know the secret; if that was the engine, set the secret there too and restart it"
            )
        for secret in self._secrets:
            wanted = mac(secret, topic, value or b"")
            # In constant time, so that nobody learns a MAC from how long its refusal takes.
            if any(hmac.compare_digest(wanted, given) for given in found):
                return None
        return INVALID, (
            "the header fp-mac is not that of this record under any secret in FLOWPILOT_STEP_SECRET: the record is "
            "not the engine's or was changed; if it is genuine, give engines and workers the same secrets"
        )


NO_SECRETS = StepSecrets()
