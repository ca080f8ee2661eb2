"""What a trigger record says: its data, and the attributes of the CloudEvent that it may be.

After the Kafka Protocol Binding for CloudEvents 1.0.2 and the JSON Event Format for CloudEvents 1.0.2:

| record | is |
|---|---|
| a header `content-type: application/cloudevents…` | a structured event: the value is the event as JSON |
| a header `ce_specversion`, `ce_id`, `ce_source` or `ce_type` | a binary event: the value is its data |
| a JSON object with text as `specversion` and two of `id`, `source`, `type` | a structured event as well |
| anything else | plain JSON |

What is meant as a CloudEvent and is none, or holds data that is no JSON, is refused with a reason. But nothing is
refused for the attributes of the distributed tracing extension: what is wrong with them is ignored.
"""

from __future__ import annotations

from base64 import b64decode
from typing import Any, NamedTuple

from flowpilot.ports.log import HEADERS_LOST, Fetched, Headers, is_utf8, refuse_lost
from flowpilot_schemas.codec import BadRecord, as_object, decode

Attributes = dict[str, Any]

_REQUIRED = ("specversion", "id", "source", "type")
_HEADERS = frozenset(f"ce_{name}" for name in _REQUIRED)
_TRACING = frozenset(("traceparent", "tracestate"))
_MEDIA = "application/cloudevents"
_SPOKEN = "1.0"


class Arrived(NamedTuple):
    """The data of a record; `event` has a CloudEvent's attributes, and is None for plain JSON."""

    data: Any
    event: Attributes | None = None


def read(record: Fetched) -> Arrived:
    """What a record with a value says. Raises `BadRecord`: those of `codec.decode`, and

    `cloudevent_version` (a specversion that is not 1.0), `cloudevent_attribute` (one is missing, empty or no text),
    `cloudevent_contradiction` (it says two things), `cloudevent_format` (batches and formats other than JSON),
    `cloudevent_data` (data that is not JSON).
    """
    value = record.value or b""
    media = told = None
    if record.headers:
        refuse_lost(record)
        if record.headers[0][0] == HEADERS_LOST:
            sentence = "the Kafka client cannot read the record's headers, which may make it a CloudEvent"
            raise BadRecord("headers_unreadable", sentence)
        media, told = _media_type(record.headers), _told(record.headers)
        if media is not None and media.startswith(_MEDIA):
            _check_format(media)
            return _structured(as_object(decode(value)), told)
        if not _HEADERS.isdisjoint(told):
            return _binary(value, media, told)
    data = decode(value)
    if isinstance(data, dict) and _looks_like_an_event(data):
        return _structured(data, {})
    return Arrived(data)


def _looks_like_an_event(value: dict[str, Any]) -> bool:
    return isinstance(value.get("specversion"), str) and sum(name in value for name in _REQUIRED) > 2


def _binary(value: bytes, media: str | None, told: dict[str, str]) -> Arrived:
    event: Attributes = {name.removeprefix("ce_"): text for name, text in told.items()}
    if media is not None:
        _agree("datacontenttype", event.setdefault("datacontenttype", media), media)
    _check(event)
    return Arrived(_json(value, event), event)


def _structured(value: dict[str, Any], told: dict[str, str]) -> Arrived:
    """Headers of the binary mode may be there as well, if they say the same."""
    event = {name: held for name, held in value.items() if name not in ("data", "data_base64") and held is not None}
    for name in _TRACING.intersection(event):
        if not isinstance(event[name], str):
            del event[name]
    _check(event)
    for header, text in told.items():
        name = header.removeprefix("ce_")
        if name not in _TRACING:
            _agree(name, event.get(name), text)
    if "data_base64" not in value:
        _check_content(event)
        return Arrived(value.get("data"), event)
    if "data" in value:
        raise BadRecord("cloudevent_contradiction", "the CloudEvent has both data and data_base64")
    try:
        data = b64decode(value["data_base64"], validate=True)
    except (TypeError, ValueError):
        raise BadRecord("cloudevent_data", "the CloudEvent's data_base64 is not Base64") from None
    return Arrived(_json(data, event), event)


def _json(data: bytes, event: Attributes) -> Any:
    _check_content(event)
    try:
        return decode(data)
    except BadRecord as bad:
        detail = bad.detail.replace("the record", "the CloudEvent's data", 1)
        raise BadRecord("cloudevent_data", detail) from None


def _check(event: Attributes) -> None:
    for name in _REQUIRED:
        found = event.get(name)
        if not isinstance(found, str) or not found:
            raise BadRecord(
                "cloudevent_attribute", f"the CloudEvent has no {name}: it must be text that is not empty"
            )
        if name == "specversion" and found != _SPOKEN:
            sentence = f"the CloudEvent's specversion is {found[:20]!r}; this release reads {_SPOKEN}"
            raise BadRecord("cloudevent_version", sentence)
    for name, found in event.items():
        if not isinstance(found, str | bool | int):
            sentence = f"the CloudEvent's attribute {name[:100]!r} is no text, integer or boolean"
            raise BadRecord("cloudevent_attribute", sentence)


def _check_content(event: Attributes) -> None:
    found = event.get("datacontenttype")
    if found is None:
        return
    _, _, subtype = str(found).partition(";")[0].strip().lower().partition("/")
    if subtype != "json" and not subtype.endswith("+json"):
        sentence = f"the CloudEvent's data is {str(found)[:100]!r}; a workflow's input is JSON"
        raise BadRecord("cloudevent_data", sentence)


def _check_format(media: str) -> None:
    essence, _, parameters = media.partition(";")
    charset = parameters.replace(" ", "").replace('"', "").removeprefix("charset=")
    if essence.strip() not in (_MEDIA, f"{_MEDIA}+json") or charset not in ("", "utf-8"):
        sentence = (
            f"the record's content-type is {media[:100]!r}; CloudEvents are read as {_MEDIA}+json, one a record"
        )
        raise BadRecord("cloudevent_format", sentence)


def _agree(name: str, held: Any, told: str) -> None:
    as_text = str(held).lower() if isinstance(held, bool) else str(held)
    if held is None or as_text != told:
        sentence = f"the CloudEvent's {name[:100]} is one thing in its headers and another in itself"
        raise BadRecord("cloudevent_contradiction", sentence)


def _told(headers: Headers) -> dict[str, str]:
    """The `ce_` headers. Raises `BadRecord` if one is no text, or is there twice and differs. One whose name is not
    UTF-8 is no attribute's: it is left alone, like any header that does not concern FlowPilot."""
    told: dict[str, str] = {}
    for name, value in headers:
        if name.startswith("ce_") and is_utf8(name):
            tracing = name.removeprefix("ce_") in _TRACING
            text = value.decode(errors="replace") if tracing else _text(name, value)
            if told.setdefault(name, text) != text and not tracing:
                sentence = f"the record has two headers {name[:100]} that differ"
                raise BadRecord("cloudevent_contradiction", sentence)
    return told


def _media_type(headers: Headers) -> str | None:
    """The content type in lower case; that of a record which is no CloudEvent may be anything."""
    for name, value in headers:
        if name.lower() == "content-type":
            return value.decode(errors="replace").strip().lower()
    return None


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadRecord("cloudevent_attribute", f"the header {name[:100]} is not UTF-8 text") from None
