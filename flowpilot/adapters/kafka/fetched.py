"""What confluent-kafka fetches, for the consumer and the reader: its messages as records, and errors that pass."""

from __future__ import annotations

import gc
from operator import methodcaller
from typing import Any

from confluent_kafka import KafkaError

from flowpilot.ports.log import HEADERS_LOST, NAME_LOST, Fetched, Headers

# Reported while a broker is away or a topic is not there yet; librdkafka goes on trying.
PASSING = frozenset(
    {
        KafkaError._PARTITION_EOF,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._RESOLVE,
        KafkaError._MAX_POLL_EXCEEDED,
    }
)


# Not `message.headers()`: where a name is not UTF-8 the client returns a result although an error is set. The
# interpreter does not check the specialised form of that call, and the error is raised by some later statement.
_headers_of = methodcaller("headers")


def fetched(message: Any) -> Fetched:
    """confluent-kafka's message as the port's record."""
    try:
        found = _headers_of(message)
        headers = tuple((name, value or b"") for name, value in found) if found else ()
    except (UnicodeDecodeError, SystemError) as error:
        headers = _with_lost_names(message, error)
    return Fetched(
        message.topic(),
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        headers,
    )


def _with_lost_names(message: Any, error: BaseException) -> Headers:
    """The headers of a message with names that are not UTF-8.

    The client decodes names strictly. Asked again it returns the pairs that it made, with a hole (a NULL) in place
    of each such name: those pairs must be taken apart by what they refer to. The error has the first such name.
    """
    first: BaseException | None = error
    while first is not None and not isinstance(first, UnicodeDecodeError):
        first = first.__cause__
    known = [] if first is None else [first.object.decode(errors="surrogateescape")]
    try:
        pairs = [(len(pair), gc.get_referents(pair)) for pair in _headers_of(message)]
    except (UnicodeDecodeError, SystemError, TypeError):
        pairs = []
    if not pairs or any(size != 2 for size, _ in pairs):
        return ((HEADERS_LOST, b""),)
    headers = []
    for _, parts in pairs:
        name = next((part for part in parts if isinstance(part, str)), None)
        if name is None:
            name = known.pop() if known else NAME_LOST
        headers.append((name, next((part for part in parts if isinstance(part, bytes)), b"")))
    return tuple(headers)
