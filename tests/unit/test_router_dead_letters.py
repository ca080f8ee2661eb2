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
