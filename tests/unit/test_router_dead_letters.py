"""A dead letter tells the whole record, or, above the size, enough to find and recognise it."""

from __future__ import annotations

import hashlib
from base64 import b64decode

import pytest

from flowpilot.core.dead_letters import WHOLE, dead_letter, dead_letter_key
from flowpilot.ports.log import Fetched
from flowpilot_schemas.codec import decode, encode_message, parse
from flowpilot_schemas.messages import DeadLetter
from flowpilot_schemas.topics import LARGE_MESSAGE


def record(value: bytes | None, key: bytes | None = b"k\xff") -> Fetched:
    return Fetched("patients", 3, 17, 1_700_000_000_000, key, value)


@pytest.mark.parametrize("value", [b"", b"\xff\xfe not text", b"{}", None])
def test_a_record_is_kept_byte_for_byte(value: bytes | None) -> None:
    letter = dead_letter(record(value), "not_json", "why", "router")
    again = parse(DeadLetter, decode(encode_message(letter)))
    assert (None if again.value is None else b64decode(again.value)) == value
    assert b64decode(again.key or "") == b"k\xff"
    assert (again.topic, again.partition, again.offset, again.timestamp) == ("patients", 3, 17, 1_700_000_000_000)
    assert (again.size, again.truncated) == (len(value or b""), False)
    assert again.sha256 == hashlib.sha256(value or b"").hexdigest()


@pytest.mark.parametrize(("extra", "truncated"), [(-1, False), (0, False), (1, True), (WHOLE * 2, True)])
def test_above_the_size_the_head_and_the_hash_stay(extra: int, truncated: bool) -> None:
    value = b"\x00" * (WHOLE - len(b"k\xff") + extra)
    letter = dead_letter(record(value), "too_large", "why" * 5_000, "router", "w" * 100)
    assert letter.truncated is truncated
    assert (letter.size, letter.sha256) == (len(value), hashlib.sha256(value).hexdigest())
    assert len(b64decode(letter.value or "")) == (DeadLetter.HEAD if truncated else len(value))
    assert len(encode_message(letter)) + len(b"k\xff") + 1024 < LARGE_MESSAGE


def test_a_giant_key_is_cut_too() -> None:
    poison = record(b"{}", key=b"k" * (WHOLE + 1))
    letter = dead_letter(poison, "wrong_shape", "why", "engine")
    assert letter.truncated
    assert len(b64decode(letter.key or "")) == DeadLetter.HEAD == len(dead_letter_key(poison) or b"")
    assert dead_letter_key(record(b"", key=None)) is None


def test_what_the_record_says_cannot_break_the_letter() -> None:
    letter = dead_letter(
        record(b"{}"), "unknown_workflow", "there is no \ud800 workflow", "router", "no name!" * 50
    )
    assert letter.workflow is None
    assert encode_message(letter)
    assert dead_letter(record(b"{}"), "x", "", "router", "onboarding").workflow == "onboarding"


TRACE = ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")


def test_headers_are_kept_in_their_order_and_byte_for_byte() -> None:
    headers = (("ce_id", b"1"), TRACE, ("ce_id", b"\xff\x00"), ("", b""))
    poison = record(b"{")._replace(headers=headers)
    letter = dead_letter(poison, "not_json", "why", "router")
    again = parse(DeadLetter, decode(encode_message(letter)))
    assert tuple((header.name, b64decode(header.value)) for header in again.headers or ()) == headers
    assert again.headers_left_out is None
    assert encode_message(dead_letter(poison, "not_json", "why", "router")) == encode_message(letter)


def test_a_name_that_is_not_utf8_is_kept_byte_for_byte() -> None:
    poison = record(b"{")._replace(headers=(("gr\udcf6\udcdfe", b"1"), ("größe", b"2")))
    latin, utf8 = dead_letter(poison, "not_json", "why", "router").headers or ()
    assert (latin.name, b64decode(latin.name_base64 or "")) == ("gr\ufffd\ufffde", b"gr\xf6\xdfe")
    assert (utf8.name, utf8.name_base64) == ("größe", None)


def test_a_record_without_headers_makes_the_bytes_that_it_always_made() -> None:
    assert b"headers" not in encode_message(dead_letter(record(b"{"), "not_json", "why", "router"))


@pytest.mark.parametrize(
    "others",
    [
        [("a", b"x" * 5_000)] * 10,
        [("a", b"x" * 2_000_000)],
        [("", b"")] * 100_000,
        [("\x00" * 5_000, b"")] * 10,
        [("\ud800", b"x")] * 5_000,
    ],
)
def test_headers_beyond_the_room_are_counted_and_the_trace_stays(others: list[tuple[str, bytes]]) -> None:
    value = b"\x00" * (WHOLE - len(b"k\xff"))
    middle = len(others) // 2
    headers = (*others[:middle], TRACE, *others[middle:])
    letter = dead_letter(record(value)._replace(headers=headers), "too_large", "\x00" * 5_000, "router", "w" * 100)
    kept = letter.headers or []
    assert len(kept) + (letter.headers_left_out or 0) == len(headers)
    assert letter.headers_left_out
    assert len(encode_message(letter)) + len(b"k\xff") + 1024 < LARGE_MESSAGE
    assert [b64decode(header.value) for header in kept if header.name == "traceparent"] == [TRACE[1]]
