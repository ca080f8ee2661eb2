"""What others wrote reaches a terminal as text alone: no escape sequence, no override, no forged line."""

from __future__ import annotations

import json

import pytest

from flowpilot.cli import output
from flowpilot.cli.failures import report
from flowpilot.cli.safe import escaped, escaped_json, shown
from flowpilot.client.errors import ExecutionFailed

# Colour, title, the same by C1, a bidirectional override, a line of its own, backspaces, an invisible tag.
HOSTILE = "a\x1b[31mb\x1b]0;title\x07\x9b2J\u202egnp.exe\r\nerror: none\b\b\u2028\x7f\U000e0041\ud800"


def is_harmless(text: str) -> bool:
    """Whether nothing but printable characters and line feeds is in it."""
    return all(char.isprintable() or char == "\n" for char in text)


def test_every_strange_character_is_written_out() -> None:
    assert escaped(HOSTILE) == (
        r"a\x1b[31mb\x1b]0;title\x07\x9b2J\u202egnp.exe\r\nerror: none\x08\x08\u2028\x7f\U000e0041\ud800"
    )
    plain = "Grüße, 日本\u3000語, עברית, 😀"
    assert escaped(plain) == plain
    assert escaped("a\nb\tc", keep="\n") == "a\nb\\tc"


@pytest.mark.parametrize("indent", [None, 2])
def test_json_stays_the_same_json(indent: int | None) -> None:
    value = {HOSTILE: [HOSTILE, {"plain": "Grüße"}], "n": 1}
    text = escaped_json(json.dumps(value, ensure_ascii=False, indent=indent))
    assert is_harmless(text)
    assert json.loads(text) == value
    assert "Grüße" in text


@pytest.mark.parametrize("form", list(output.Format))
def test_no_form_of_output_lets_anything_through(form: output.Format, capfd: pytest.CaptureFixture[str]) -> None:
    row = {"execution": HOSTILE, "key": HOSTILE, "error": {"kind": "Error", "message": HOSTILE}}
    output.rows([row, row], ("execution", "key", "error"), form, empty="none")
    output.record(row, form)
    output.value(HOSTILE)
    output.line(HOSTILE)
    output.say(HOSTILE)
    report(ExecutionFailed("e", {"step": {"kind": "Error", "message": HOSTILE}}))
    told = capfd.readouterr()
    assert is_harmless(told.out + told.err)
    assert told.err.splitlines()[-1].startswith("error: execution e failed")
    if form is output.Format.TABLE:
        assert told.out.count("\n") == 3 + 3 + 1 + 1


def test_a_table_on_a_terminal_is_harmless_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    output.table([{"key": "[red]" + HOSTILE, "status": "failed"}], ("key", "status"))
    told = capfd.readouterr().out
    assert r"[red]a\x1b[31mb" in told
    assert "\x1b[31m" not in told
    assert is_harmless(told.replace("\x1b[1m", "").replace("\x1b[0m", ""))


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", [""]),
        (b'{"a": 1}\r\n{', [r'{"a": 1}\r', "{"]),
        ("ünï ".encode() * 5 + b"\xff", ["ünï " * 5 + r"\xff"]),
        (b"ok \x1b[2J and on and on", [r"ok \x1b[2J and on and on"]),
        (b"\x00\x01\xfeA\x1b", ["00000000  00 01 fe 41 1b" + " " * 33 + "  ...A."]),
        (bytes(range(17)), [
            "00000000  00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f  ................",
            "00000010  10" + " " * 45 + "  .",
        ]),
    ],
)  # fmt: skip
def test_bytes_as_text_or_as_a_dump(data: bytes, lines: list[str]) -> None:
    assert shown(data) == lines
    assert all(is_harmless(line) for line in shown(data))


def test_a_cut_falls_between_characters() -> None:
    assert shown("ü".encode() * 10, most=5) == ["üü"]
    assert shown(b"\xff" * 100, most=16) == ["00000000  " + " ".join(["ff"] * 16) + "  " + "." * 16]
