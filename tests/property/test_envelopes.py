"""Whatever a record carries beside its value: what reads it raises nothing but `BadRecord`, and says little."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowpilot.adapters.definitions import LogDefinitions
from flowpilot.adapters.members import _Look
from flowpilot.adapters.memory.log import MemoryLog
from flowpilot.adapters.postgres.models import DeadLetterRow
from flowpilot.app import dead_letters
from flowpilot.app.dead_letters import Shown
from flowpilot.audit.batches import Definitions, batch_of, set_aside
from flowpilot.client.replies import Inbox, Replies
from flowpilot.core.dead_letters import dead_letter, dead_letter_key
from flowpilot.engine.reading import read, root_of
from flowpilot.engine.table import PartitionTable
from flowpilot.ports.audit import Position
from flowpilot.ports.log import HEADERS_LOST, NAME_LOST, Fetched, TopicPartition, as_time, is_utf8, sendable
from flowpilot.router.positions import Positions
from flowpilot.router.routing import Omitted, route
from flowpilot.worker.control import Control
from flowpilot.worker.records import read_step
from flowpilot_schemas.codec import BadRecord, decode, encode_message, parse
from flowpilot_schemas.history import from_iso, iso
from flowpilot_schemas.messages import DeadLetter, StartExecution
from flowpilot_schemas.topics import LARGE_MESSAGE, Topics
from flowpilot_schemas.tracing import in_headers
from tests.envelopes import HOSTILE, Envelope, envelopes
from tests.unit.test_router_routing import ONBOARDING, known, workflow

T = Topics()
VALUES = (
    *(None, b"", b"{}", b"\xff", b'{"patient_id": "1"}', b'{"execution": "x", "type": "execution.ended"}'),
    b'{"workflow": "onboarding", "input": {"patient_id": "1"}}',
    b'{"type": "trigger.position", "next_offset": 1}',
    b'{"definition": "sha256:0", "version": "1"}',
)
KEYS = (b"*/t/1/id", b"name/onboarding", b"name/onboarding@1", b"def/sha256:0", b"wm", b"client")
FILTERED = workflow("filtered", topic="patients", where="event.id != 'x' || data.n > 1")
ROUTES = known(ONBOARDING, FILTERED)
LONGEST = 2_000


def spoken(test: Callable[..., None]) -> Callable[..., None]:
    """`test(envelope, value)` with any, and with each of the table."""
    any_key = st.none() | st.sampled_from(KEYS)
    made = st.builds(lambda env, key: env if key is None else env._replace(key=key), envelopes(), any_key)
    found = settings(deadline=None)(given(made, st.sampled_from(VALUES))(test))
    return pytest.mark.parametrize("name", ["any", *HOSTILE])(_either(found, test))


def _either(any_of_them: Callable[..., None], test: Callable[..., None]) -> Callable[..., None]:
    def run(name: str) -> None:
        if name == "any":
            any_of_them()
        else:
            for value in VALUES:
                test(HOSTILE[name], value)

    return run


def _says_little(work: Callable[[], Any]) -> None:
    detail = ""
    try:
        work()
    except BadRecord as bad:
        detail = bad.detail
    assert len(detail.encode()) < LONGEST


def _outcomes(envelope: Envelope, value: bytes | None, topic: str) -> list[tuple[str, str]]:
    record = envelope.around(value, topic=topic, offset=7)
    found = []
    for outcome in route(ROUTES, record, "id"):
        if isinstance(outcome, Omitted):
            found.append(("omitted", outcome.reason))
            continue
        again = parse(type(outcome), decode(encode_message(outcome)))
        assert encode_message(again) == encode_message(outcome)
        what = outcome.reason if isinstance(outcome, DeadLetter) else outcome.execution
        found.append((outcome.type, what))
    return found


@spoken
def test_the_router_routes_whatever_the_envelope(envelope: Envelope, value: bytes | None) -> None:
    for topic in ("patients", T.triggers):
        assert _outcomes(envelope, value, topic)


@spoken
def test_headers_that_are_not_text_change_no_outcome(envelope: Envelope, value: bytes | None) -> None:
    foreign = [(name, held) for name, held in envelope.headers if is_utf8(name.decode(errors="surrogateescape"))]
    for topic in ("patients", T.triggers):
        without = envelope._replace(headers=tuple(foreign))
        assert _outcomes(envelope, value, topic) == _outcomes(without, value, topic)


@spoken
def test_the_engine_reads_whatever_the_envelope(envelope: Envelope, value: bytes | None) -> None:
    record = envelope.around(value, topic=T.events, offset=3)
    _says_little(lambda: read(record))
    root_of(record)
    in_headers(record.headers)
    table = PartitionTable(0)
    table.load(record)
    assert table.next_changelog_offset == 4
    assert from_iso(iso(as_time(record.timestamp))) == as_time(record.timestamp)


@spoken
def test_a_worker_and_a_client_read_whatever_the_envelope(envelope: Envelope, value: bytes | None) -> None:
    log = MemoryLog()
    _says_little(lambda: read_step(envelope.around(value, topic=T.steps("q"))))
    Control(log.reader(), T.control, lambda: None)._take(envelope.around(value, topic=T.control))
    replies = Replies(log.reader(), T, "client")
    inbox = replies._inboxes["x"] = Inbox("x")
    replies._sort(envelope.around(value, topic=T.replies))
    assert not inbox.ended


@spoken
def test_topics_of_the_roles_are_read_whatever_the_envelope(envelope: Envelope, value: bytes | None) -> None:
    log = MemoryLog()
    definitions = LogDefinitions(log.producer(), log.reader(), T.definitions)
    positions = Positions(log.producer(), log.reader(), T.positions)
    _says_little(lambda: definitions._take(envelope.around(value, topic=T.definitions)))
    _says_little(lambda: positions._take(envelope.around(value, topic=T.positions), {}, None))
    look = _Look(0)
    look.take(envelope.around(value, topic=T.members))
    assert look.found(is_complete=True).workers == []
    registered = definitions.registration("onboarding")
    assert registered is None or 0 <= registered.at <= 2**43


@spoken
def test_the_audit_keeps_whatever_the_envelope(envelope: Envelope, value: bytes | None) -> None:
    for topic in (T.history, T.dead_letters, T.definitions, T.fates):
        record = envelope.around(value, topic=topic, offset=3)
        stored = {TopicPartition(topic, 0): Position("id", 0)}
        batch = batch_of([record], stored, T, Definitions())
        said = len(batch.events) + len(batch.letters) + len(batch.definitions) + len(batch.filtered)
        assert said + len(batch.divergences) >= 1
        for divergence in (*batch.divergences, *set_aside(record, stored, "why").divergences):
            assert (divergence.key, divergence.body) == (record.key, record.value)
            assert len(divergence.detail or "") < LONGEST


@spoken
def test_a_dead_letter_keeps_the_envelope(envelope: Envelope, value: bytes | None) -> None:
    record = envelope.around(value, offset=3)
    letter = parse(DeadLetter, decode(encode_message(dead_letter(record, "not_json", "why", "router"))))
    kept = letter.headers or []
    assert len(kept) + (letter.headers_left_out or 0) == len(record.headers)
    assert len(encode_message(letter)) + len(dead_letter_key(record) or b"") < LARGE_MESSAGE
    row = DeadLetterRow(
        **letter.model_dump(exclude={"v", "type", "key", "value", "headers"}),
        headers=[header.model_dump(exclude_none=True) for header in kept],
        reported_at=datetime.now(UTC),
    )
    headers = dead_letters.headers_of(row)
    if not letter.headers_left_out:
        assert headers == record.headers
    shown = dead_letters.as_json(Shown(dead_letters._letter(row), record.key, record.value, headers))
    assert b64decode(orjson.loads(orjson.dumps(shown))["key_base64"] or "") == (record.key or b"")


def test_names_that_are_lost_stay_so_in_a_dead_letter() -> None:
    record = Fetched("t", 0, 0, 0, None, b"", ((NAME_LOST, b"1"), ("\udcff", b"2")))
    first, second = dead_letter(record, "x", "y", "router").headers or ()
    assert (first.name, first.name_base64) == ("\ufffd", None)
    assert (second.name, second.name_base64) == ("\ufffd", "/w==")


def test_lost_headers_are_a_dead_letter_of_the_router() -> None:
    """The record may be a CloudEvent: taken for plain JSON it would start an execution with another id."""
    record = Fetched("patients", 0, 0, 0, None, b'{"patient_id": "1"}', ((HEADERS_LOST, b""),))
    reasons = {outcome.reason for outcome in route(ROUTES, record, "id") if not isinstance(outcome, StartExecution)}
    assert reasons == {"headers_unreadable"}


@given(envelopes())
def test_what_can_be_sent_is_text_and_keeps_its_place(envelope: Envelope) -> None:
    sent = sendable(envelope.told)
    assert [value for _, value in sent] == [value for _, value in envelope.told]
    for (name, _), (before, _) in zip(sent, envelope.told, strict=True):
        name.encode()
        assert name == before or not is_utf8(before)
