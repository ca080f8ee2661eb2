"""Durations, retries, type fits and results: the small parts of authoring."""

from __future__ import annotations

import dataclasses
import enum
import math
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from flowpilot import FlowPilotError, NonRetryable, Retry, RetryAfter, StepContext, on_topic
from flowpilot.authoring.durations import as_text, milliseconds
from flowpilot.authoring.fits import fits
from flowpilot.authoring.results import NotSerialisable, to_json
from flowpilot_schemas.ids import TaskId


class Patient(BaseModel):
    id: str


class Special(Patient):
    extra: int = 0


class OtpSent(BaseModel):
    id: str


@dataclasses.dataclass
class Point:
    x: int


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("text", "ms"),
    [("500ms", 500), ("30s", 30_000), ("1.5m", 90_000), ("1h30m", 5_400_000), ("7d", 604_800_000), ("0s", 0)],
)
def test_durations(text: str, ms: int) -> None:
    assert milliseconds(text) == ms
    assert milliseconds(as_text(ms)) == ms
    assert milliseconds(timedelta(milliseconds=ms)) == ms


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "1 s", "1y", "٣s", 30, None, timedelta(seconds=-1)])
def test_what_is_no_duration_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="duration"):
        milliseconds(text)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"max_attempts": 0}, "max_attempts"), ({"backoff": 0.5}, "backoff"), ({"initial": "31d"}, "initial")],
)
def test_a_retry_out_of_range_is_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Retry(**options)


def test_non_retryable_counts_subclasses_and_names() -> None:
    retry = Retry(non_retryable=(LookupError, "Gone"))
    gone = type("Gone", (Exception,), {})
    assert retry.refuses(KeyError())
    assert retry.refuses(gone())
    assert not retry.refuses(ValueError())
    with pytest.raises(ValueError, match="exception classes"):
        Retry(non_retryable=(3,))  # type: ignore[arg-type]


def test_what_handlers_raise() -> None:
    assert RetryAfter("30s").delay_ms == 30_000
    with pytest.raises(ValueError, match="30 days"):
        RetryAfter("31d")
    assert issubclass(NonRetryable, FlowPilotError)


@pytest.mark.parametrize(("topic", "path"), [("a b", None), ("", None), ("t", ""), ("t", "a..b")])
def test_on_topic_refuses_what_it_cannot_use(topic: str, path: str | None) -> None:
    with pytest.raises(ValueError, match="on_topic"):
        on_topic(topic, unique_by=path)


@pytest.mark.parametrize("start", ["latest", "", "2026-01-31", "2026-01-31T00:00:00", datetime(2026, 1, 31), 17])
def test_on_topic_refuses_a_start_that_is_no_moment(start: Any) -> None:
    with pytest.raises(ValueError, match="registration") as raised:
        on_topic("t", start=start)
    assert "on_topic('t'" in str(raised.value)


@pytest.mark.parametrize("where", ["", "x" * 1_001, 17])
def test_on_topic_refuses_a_where_that_is_no_expression(where: Any) -> None:
    with pytest.raises(ValueError, match="CEL"):
        on_topic("t", where=where)


def test_a_start_is_a_moment_in_utc() -> None:
    assert on_topic("t").start == "registration"
    assert on_topic("t", start="earliest").start_at is None
    assert on_topic("t", start="2026-01-31T02:00:00+02:00").start == "2026-01-31T00:00:00.000Z"
    assert on_topic("t", start=datetime(1969, 12, 31, tzinfo=UTC)).start_at == -86_400_000


FITTING: list[tuple[Any, Any]] = [
    (Patient, Patient),
    (Special, Patient),
    (Patient, Patient | None),
    (Patient, Any),
    (Any, Patient),
    (Patient, Annotated[Patient, Field(description="x")]),
    (Patient, dict[str, Any]),
    (dict[str, Any], Patient),
    (Patient, Mapping[str, Any]),
    (int, float),
    (bool, int),
    (uuid.UUID, str),
    (str, datetime),
    (Colour, str),
    (Literal["a"], str),
    (str, Literal["a", "b"]),
    (list[Special], Sequence[Patient]),
    (tuple[int, ...], list[int]),
    (None, None),
    (None, Patient | None),
    (Point, Point),
    (dict[str, int], Mapping[str, float]),
]
MISFITS: list[tuple[Any, Any]] = [
    (Patient, OtpSent),
    (Patient, Point),
    (Patient, Special),
    (Patient, str),
    (str, int),
    (float, int),
    (None, Patient),
    (Patient | None, Patient),
    (Patient, None),
    (list[Patient], list[OtpSent]),
    (list[int], dict[str, int]),
    (list[int], int),
    (dict[str, Patient], dict[str, OtpSent]),
    (Literal["a"], Literal["b"]),
    (Literal[1], str),
    (int | str, int),
]


@pytest.mark.parametrize(("produced", "wanted"), FITTING)
def test_types_that_fit(produced: Any, wanted: Any) -> None:
    assert fits(produced, wanted)


@pytest.mark.parametrize(("produced", "wanted"), MISFITS)
def test_types_that_do_not_fit(produced: Any, wanted: Any) -> None:
    assert not fits(produced, wanted)


class Reading(BaseModel):
    value: float | None


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (math.nan, Any),
        (math.inf, float),
        (Reading(value=math.nan), Reading),
        ([Reading(value=math.nan)], Any),
        ({"a": {"b": [math.nan]}}, dict[str, Any]),
        (2**64, int),
        (2**64, Any),
        ("\ud800", str),
        ({"\ud800": 1}, Any),
        pytest.param(object(), Any, id="object"),
        (b"\xff", Any),
        (math.sqrt, Any),
    ],
    ids=str,
)
def test_what_is_not_json_is_refused(value: Any, annotation: Any) -> None:
    with pytest.raises(NotSerialisable):
        to_json(value, TypeAdapter(annotation))
    with pytest.raises(NotSerialisable):
        to_json(value)


def test_the_reason_speaks_of_the_value() -> None:
    deep: list[Any] = []
    for _ in range(210):
        deep = [deep]
    for value, reason in (({"v": math.nan}, "NaN"), (math.inf, "NaN"), (deep, "nested"), ({"v": 2**64}, "64 bits")):
        with pytest.raises(NotSerialisable, match=reason):
            to_json(value)


def test_nesting_and_circles_are_refused() -> None:
    deep: list[Any] = []
    for _ in range(1_000):
        deep = [deep]
    circle: list[Any] = []
    circle.append(circle)
    for value in (deep, circle):
        with pytest.raises(NotSerialisable):
            to_json(value)
        with pytest.raises(NotSerialisable):
            to_json(value, TypeAdapter(list[Any]))


def test_what_is_json_stays_what_it_is() -> None:
    assert to_json(Reading(value=None), TypeAdapter(Reading)) == b'{"value":null}'
    assert (
        to_json({"nul": "\0", "big": 2**63 - 1, "none": None})
        == b'{"nul":"\\u0000","big":9223372036854775807,"none":null}'
    )
    assert to_json(Point(1)) == b'{"x":1}'
    assert to_json({"id": "7"}, TypeAdapter(Patient)) == b'{"id":"7"}'  # a dict where a model was promised


def test_the_context_of_a_plain_test() -> None:
    context = StepContext(TaskId("11111111-1111-1111-1111-111111111111", 3, "send", 2))
    assert context.idempotency_key == "11111111-1111-1111-1111-111111111111/3/send"
    assert (context.attempt, context.cancelled, context.last_heartbeat) == (2, False, None)
    context.heartbeat({"done": 3})
    with pytest.raises(ValueError, match="4096"):
        context.heartbeat("x" * 5_000)
    with pytest.raises(ValueError, match="JSON"):
        context.heartbeat(math.nan)
