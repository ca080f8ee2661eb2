"""How one dead letter is shown, without servers."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta

import pytest

from flowpilot.adapters.postgres.dead_letters import Place
from flowpilot.adapters.postgres.models import DeadLetterRow
from flowpilot.app import dead_letters
from flowpilot.app.dead_letters import Shown
from flowpilot.cli import dead_letter
from flowpilot.cli.failures import CommandFailed, Exit
from flowpilot.cli.main import main

FIELDS = {
    "id": 17, "reason": "too_large", "detail": "9,000,000 bytes", "remedy": None, "record": "u/1/2", "at": None,
    "reported_at": "2026-05-01T12:00:00.000Z", "source": "router", "workflow": None, "size": 9_000_000,
    "sha256": "ab", "truncated": True, "others": [{"id": 3, "reason": "not_json", "workflow": "w"}],
    "headers_left_out": 0,
}  # fmt: skip


@pytest.fixture
def letter(monkeypatch: pytest.MonkeyPatch) -> Shown:
    found = Shown(FIELDS, b"key", b"\x1b" + b"x" * 65_535)
    monkeypatch.setattr(dead_letters, "show_letter", lambda settings, which: found)
    return found


def show(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["dead-letter", "show", "17", *arguments])
    return int(ended.value.code or 0)


def test_what_is_left_out_is_told(letter: Shown, capfd: pytest.CaptureFixture[str]) -> None:
    assert show() == Exit.OK
    told = capfd.readouterr()
    lines = told.out.splitlines()
    assert "size         9,000,000 bytes" in lines
    assert "others       3 (not_json of w)" in lines
    assert "value, the first 4,096 of 65,536 bytes (--raw gives all):" in lines
    assert lines[-1] == r"  \x1b" + "x" * 4_095
    assert told.err == "only the first 65,536 of 9,000,000 bytes were kept: the record was too large\n"


def test_headers_are_shown_and_harmless(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    headers = (
        ("traceparent", b"00-4bf9"),
        ("a\x1b[2J", b"x\nkey:"),
        ("none", b""),
        ("caf\udce9", b"1"),
        ("bytes", b"\xff\x00\x01"),
    )
    found = Shown({**FIELDS, "truncated": False, "headers_left_out": 2}, None, b"{", headers)
    monkeypatch.setattr(dead_letters, "show_letter", lambda settings, which: found)
    assert show() == Exit.OK
    told = capfd.readouterr()
    shown = told.out.partition("\nheaders:\n")[2].partition("\n\n")[0].splitlines()
    assert shown[:4] == ["  traceparent: 00-4bf9", r"  a\x1b[2J: x", "    key:", "  none: "]
    assert shown[4] == r"  caf\xe9: 1"
    assert shown[5].startswith("  bytes: 00000000  ff 00 01")
    assert told.err == "headers that were too large to be kept: 2\n"

    assert show("-o", "json") == Exit.OK
    [trace, *_, latin, strange] = json.loads(capfd.readouterr().out)["headers"]
    told = {"value_base64": "MDAtNGJmOQ==", "value_text": "00-4bf9"}
    assert trace == {"name": "traceparent", "name_base64": None, **told}
    assert (latin["name"], latin["name_base64"]) == ("caf\ufffd", "Y2Fm6Q==")
    assert (strange["value_base64"], strange["value_text"]) == ("/wAB", None)


def test_raw_bytes_go_to_a_file_and_to_a_terminal_only_by_force(
    letter: Shown, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert show("--raw") == Exit.OK
    told = capfdbinary.readouterr()
    assert told.out == letter.value
    assert b"65,536 of 9,000,000" in told.err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert show("--raw") == Exit.USAGE
    told = capfdbinary.readouterr()
    assert told.out == b""
    assert b"--force" in told.err
    assert show("--raw", "--force") == Exit.OK
    assert capfdbinary.readouterr().out == letter.value


def test_how_a_letter_is_named() -> None:
    assert dead_letter._which("17") == 17
    assert dead_letter._which("a.b/3/1207") == Place("a.b", 3, 1207)
    for wrong in ("", "x", "-1", "a/b", "a/1/x", "/1/2", "1" * 30):
        with pytest.raises(CommandFailed):
            dead_letter._which(wrong)


def test_since_takes_a_duration_or_a_moment() -> None:
    now = datetime(2026, 5, 2, tzinfo=UTC)
    assert dead_letter._moment("90m", now) == now - timedelta(minutes=90)
    assert dead_letter._moment("2026-05-01T12:00Z", now) == datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert dead_letter._moment("2026-05-01", now).tzinfo is not None
    for wrong in ("", "yesterday", "99999999999999d"):
        with pytest.raises(CommandFailed, match="15m or 24h"):
            dead_letter._moment(wrong, now)


@pytest.mark.parametrize(("timestamp", "at"), [(0, "1970-01-01T00:00:00.000Z"), (-1, None), (2**62, None)])
def test_the_time_that_a_producer_gave_may_be_anything(timestamp: int, at: str | None) -> None:
    row = DeadLetterRow(topic="u", partition=0, offset=1, timestamp=timestamp, reported_at=datetime.now(UTC))
    assert dead_letters._letter(row)["at"] == at
