"""The security settings of librdkafka, translated for Faust's consumer, which is another client."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from faust.auth import Credentials, SASLCredentials, SSLCredentials

from flowpilot.settings import SettingsError

KNOWN = frozenset(
    {
        "security.protocol",
        "sasl.mechanism",
        "sasl.mechanisms",
        "sasl.username",
        "sasl.password",
        "ssl.ca.location",
        "ssl.certificate.location",
        "ssl.key.location",
        "ssl.key.password",
        "ssl.endpoint.identification.algorithm",
    }
)


def credentials(properties: Mapping[str, str]) -> Credentials | None:
    """Faust's credentials, None for an open broker. Raises SettingsError for what cannot be translated."""
    security = {
        name: value for name, value in properties.items() if name.startswith(("security.", "sasl.", "ssl."))
    }
    if unknown := sorted(security.keys() - KNOWN):
        raise SettingsError(f"FLOWPILOT_KAFKA_PROPERTIES: the engine cannot use {', '.join(unknown)}")
    protocol = security.get("security.protocol", "plaintext").upper()
    context = _ssl_context(security) if protocol in ("SSL", "SASL_SSL") else None
    if protocol in ("SASL_PLAINTEXT", "SASL_SSL"):
        mechanism = security.get("sasl.mechanism") or security.get("sasl.mechanisms") or "PLAIN"
        if mechanism not in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
            raise SettingsError(f"FLOWPILOT_KAFKA_PROPERTIES: the engine cannot use sasl.mechanism={mechanism}")
        return SASLCredentials(
            username=security.get("sasl.username"),
            password=security.get("sasl.password"),
            mechanism=mechanism,
            ssl_context=context,
        )
    if protocol == "SSL":
        return SSLCredentials(context)
    if protocol != "PLAINTEXT":
        raise SettingsError(f"FLOWPILOT_KAFKA_PROPERTIES: security.protocol={protocol} is not known")
    return None


def _ssl_context(security: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=security.get("ssl.ca.location"))
    if security.get("ssl.endpoint.identification.algorithm") == "none":
        context.check_hostname = False
    if certificate := security.get("ssl.certificate.location"):
        context.load_cert_chain(certificate, security.get("ssl.key.location"), security.get("ssl.key.password"))
    return context
